"""Runs `headway tune`: traffic in, a search, a table, a bundle and a state file out."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import get_args

from headway.bench.experiment.bundles import Bundle
from headway.bench.experiment.comparison import Json
from headway.bench.experiment.saturation import measure_saturation
from headway.bench.experiment.simulated_runs import simulate_bundle
from headway.bench.metrics.run_metrics import Slo
from headway.bench.output_files import check_files, replacing
from headway.bench.progress import progress, say
from headway.bench.user_mistake import UserMistake, as_mistakes
from headway.cli.command_options import OtherPolicies, ReplicaOptions
from headway.cli.modelled_replica import profile_files
from headway.cli.result_files import command_line
from headway.cli.traffic import Traffic
from headway.cli.tune_options import SearchOptions
from headway.policies.catalog import canonical, find
from headway.policies.contracts import Stateful
from headway.simulator.replica import Replica
from headway.simulator.trace import Trace
from headway.tuning.offline import Problem, RewardName, Tuned, tune
from headway.tuning.rewards import Objective
from headway.tuning.search import SearchBox
from headway.tuning.state_file import SavedState, Tried, Unreadable, read_state, write_state

STARVED_AFTER = 30  # times the TTFT SLO; a request that waits longer counts as starved


def run_tuning(
    traffic: Traffic, replica: ReplicaOptions, search: SearchOptions, others: OtherPolicies, *, slo: str
) -> None:
    """Search, print, write.

    Raises:
        UserMistake: an option, a name or a trace is wrong; wherever possible, before anything is simulated.
    """
    search = replace(search, ordering=canonical("ordering", search.ordering))
    check_files({"--out": search.out, "--state": search.state}, [*traffic.files(), *profile_files(replica)])
    problem, box = _problem(traffic, replica, search, others, slo)
    known = [] if search.state is None else _known(search.state, problem)
    with progress("tuning", search.trials) as on_trial, as_mistakes():
        tuned = tune(problem, box, trials=search.trials, known=known, on_trial=on_trial)
    for line in report(tuned, problem):
        print(line)
    if search.out is not None:
        with replacing(search.out, "--out") as temporary:
            temporary.write_text(bundle_text(tuned, problem, command_line()), encoding="utf-8")
        say(f"bundle: headway compare … --bundles {search.out}")
    if search.state is not None:
        learned = tuned.policy.state() if isinstance(tuned.policy, Stateful) else {}
        write_state(search.state, SavedState(search.ordering, learned, tuned.tried, _in_words(problem)))
        say(f"state: headway explain {search.ordering} --state {search.state}")


def report(tuned: Tuned, problem: Problem) -> list[str]:
    """Every trial with its reward, then the best, in lines."""
    lines = [f"{'trial':>5}  {'reward':>8}  {'TTFT p99':>9}  values"]
    for number, trial in enumerate(tuned.tried):
        end = "  excluded: p99 clearly worse than under FCFS and the defaults" if trial.fenced else ""
        values = "the defaults" if number == 0 else _listed(trial.values)
        lines.append(f"{number:>5}  {trial.reward:>8.4f}  {trial.ttft_p99_seconds:>7.2f} s  {values}{end}")
    held = tuned.held_out
    return [
        *lines,
        "",
        f"best: {_listed(tuned.best)}",
        f"on the 30 % of {problem.trace.name} outside the search, {problem.reward} reward: "
        f"{held['best']:.4f} with it, {held['defaults']:.4f} with the defaults; "
        f"plain reward of fcfs {held['fcfs']:.4f}",
    ]


def bundle_text(tuned: Tuned, problem: Problem, command: str) -> str:
    """The TOML that `compare --bundles` reads."""
    options = {**problem.fixed, **tuned.best}
    inline = ", ".join(f"{name} = {_toml(value)}" for name, value in options.items())
    others = "".join(f'{kind} = "{name}"\n' for kind, name in problem.others.items())
    return (
        f"# Written by: {' '.join(command.split())}\n"
        f"# {problem.reward} reward on the held-out 30 %: {tuned.held_out['best']:.4f}, "
        f"with the defaults {tuned.held_out['defaults']:.4f}\n"
        f"[bundle.{problem.policy}-tuned]\n"
        f'ordering = {{name = "{problem.policy}", options = {{{inline}}}}}\n{others}'
    )


def _problem(
    traffic: Traffic, replica: ReplicaOptions, search: SearchOptions, others: OtherPolicies, slo: str
) -> tuple[Problem, SearchBox]:
    if search.reward not in get_args(RewardName):
        raise UserMistake(f"--reward {search.reward}: choose from {', '.join(get_args(RewardName))}")
    reward: RewardName = "published" if search.reward == "published" else "plain"
    bounds = Slo.parse(slo)
    if bounds.ttft_seconds is None:
        raise UserMistake(f"--slo {slo}: tuning needs a bound on ttft, for example ttft=2s")
    fixed = dict(_assignment(text) for text in search.set_ or [])
    other_names = {"admission": others.admission, "preemption": others.preemption, "prediction": others.prediction}
    template = Bundle(search.ordering, search.ordering, others.admission, others.preemption, others.prediction)
    replace(template, options={"ordering": fixed}).check()
    ranges = dict(_range(text) for text in search.range_ or [])
    both = next((name for name in ranges if name in fixed), None)
    if both is not None:
        raise UserMistake(f"{both} is kept by --set and searched by --range; give one of them")
    with as_mistakes():
        box = SearchBox.of(find("ordering", search.ordering), search.ordering, ranges, fixed)
    (name,) = traffic.names
    server, trace = traffic.prepare(name, replica, bounds)
    return (
        Problem(
            _at_load(trace, server, traffic),
            server.rules,
            server.step_time,
            server.costs,
            search.ordering,
            other_names,
            fixed,
            reward,
            Objective(bounds.ttft_seconds, STARVED_AFTER * bounds.ttft_seconds),
            traffic.reading.seed,
        ),
        box,
    )


def _at_load(trace: Trace, server: Replica, traffic: Traffic) -> Trace:
    (name,) = traffic.names
    (load,) = traffic.loads_of(name)
    if load is None:
        return trace
    fcfs, seed = Bundle("fcfs"), traffic.reading.seed
    measured = measure_saturation(trace, lambda day: simulate_bundle(day, server, fcfs, seed))
    return measured.at_load(trace, load)


def _known(state: Path, problem: Problem) -> list[Tried]:
    """Trials of an earlier run on the same problem. Where they cannot be used, one sentence on stderr says why."""
    saved = read_state(state, problem.policy)
    if saved is None:
        return []
    if isinstance(saved, Unreadable):
        say(saved.reason)
        return []
    if saved.problem != _in_words(problem):
        say(f"{state}: its trials are of another problem ({saved.problem}); they are ignored")
        return []
    say(f"{state}: going on from {len(saved.trials)} trials")
    return saved.trials


def _in_words(problem: Problem) -> str:
    trace = problem.trace
    span = float(trace.arrived_seconds[-1])
    return (
        f"{trace.name}, {len(trace)} requests in {span:.3f} s, {problem.rules.kv_blocks} KV blocks, "
        f"{problem.reward} reward, {tuple(problem.objective)}, {dict(problem.fixed)}, {dict(problem.others)}, "
        f"replica and traffic {_fingerprint(problem)}"
    )


def _fingerprint(problem: Problem) -> str:
    """Twelve digits that differ for another engine or other requests, whose trials are not comparable."""
    trace = problem.trace
    digest = hashlib.sha256(f"{problem.rules} {problem.costs}".encode())
    columns = (
        *(trace.arrived_seconds, trace.prompt_tokens, trace.output_tokens, trace.max_output_tokens),
        *(trace.tenant, trace.deadline_seconds, trace.priority),
    )
    for column in columns:
        digest.update(b"-" if column is None else column.tobytes())
    later = (
        *(trace.tpot_deadline_seconds, trace.end_deadline_seconds),
        *(trace.program, trace.stage, trace.stages, trace.program_deadline_seconds),
    )
    for name, column in enumerate(later):
        if column is not None:
            digest.update(b"%d" % name + column.tobytes())
    if trace.adapter is not None:
        digest.update(trace.adapter.tobytes())
    for ids in trace.prefix_ids or ():
        digest.update(repr(list(ids)).encode())
    return digest.hexdigest()[:12]


def _range(text: str) -> tuple[str, tuple[float, float]]:
    name, _, bounds = text.partition("=")
    low, _, high = bounds.partition(":")
    try:
        return name.strip(), (float(low), float(high))
    except ValueError:
        raise UserMistake(f"--range {text}: write OPTION=LOW:HIGH, for example b_u=0.1:5") from None


def _assignment(text: str) -> tuple[str, Json]:
    name, equals, value = text.partition("=")
    if not equals:
        raise UserMistake(f"--set {text}: write OPTION=VALUE, for example lanes_max=50")
    try:
        return name.strip(), ast.literal_eval(value.strip())
    except (ValueError, SyntaxError):
        return name.strip(), value.strip()  # a word, such as kv-volume


def _listed(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in values.items())


def _toml(value: object) -> str:
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(value)
