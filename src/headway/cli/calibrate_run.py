"""Runs `headway calibrate`: a recording in, a TOML file and its errors out."""

from __future__ import annotations

from dataclasses import fields, replace

from headway.bench.calibration.fitting import Calibrated, calibrate_linear, calibrate_profile
from headway.bench.calibration.recording_files import read_recording
from headway.bench.calibration.scalars import SCALARS, ScalarName
from headway.bench.metrics.agreement import Agreement, percent
from headway.bench.metrics.recording import Recording
from headway.bench.output_files import check_files, replacing
from headway.bench.progress import say
from headway.bench.traces.writing import write_jsonl
from headway.bench.user_mistake import UserMistake, as_mistakes
from headway.cli.calibrate_options import DEFAULT_FIT, CalibrationOutputs, EngineLimits, FitOptions, MeasuringOptions
from headway.cli.command_options import DEFAULT_MODEL, Precision
from headway.cli.modelled_replica import whole_blocks
from headway.simulator.calibration import calibration_text
from headway.simulator.replica import Replica, replica
from headway.simulator.rules import EngineRules
from headway.simulator.scaled_step_time import Scalars
from headway.simulator.step_time import LinearStepTime


def run_calibration(
    source: str, outputs: CalibrationOutputs, fit: FitOptions, limits: EngineLimits, measuring: MeasuringOptions
) -> None:
    """Measure or read, fit, print, write.

    Args:
        source: a recording's path, or a live server's address.
        outputs: what is written.
        fit: what is fitted.
        limits: the engine's.
        measuring: how the recording is read or the server measured.

    Raises:
        UserMistake: an option or the recording is wrong; wherever possible, before load is sent to a server.
    """
    check_files({"--out": outputs.out, "--record": outputs.record}, [source])
    names = _scalars(fit.fit)
    is_live = source.startswith(("http://", "https://"))
    _check_no_idle_option(fit, measuring, is_live)
    server = None if fit.hardware is None else _profile_replica(fit.hardware, fit, limits)
    rules = _rules_of_limits(limits) if server is None else server.rules
    recording = _measured(source, rules, measuring) if is_live else _recorded(source, measuring)
    if outputs.record is not None:
        with replacing(outputs.record, "--record") as temporary:
            write_jsonl(recording.as_trace(), temporary)
        say(f"recording: {outputs.record}")
    name = outputs.name or recording.trace.name
    say(f"fitting to {len(recording.trace):,} requests of {recording.label}")
    if server is None:
        calibrated = calibrate_linear(recording, rules, name)
    else:
        profile_names = (str(fit.hardware), fit.model or DEFAULT_MODEL)
        calibrated = calibrate_profile(recording, server, names, name, profile_names)
    print(_report(calibrated))
    with replacing(outputs.out, "--out") as temporary:
        temporary.write_text(calibration_text(calibrated.calibration), encoding="utf-8")
    say(f"calibration: {outputs.out}; give it to headway compare with --calibration")


def _check_no_idle_option(fit: FitOptions, measuring: MeasuringOptions, is_live: bool) -> None:
    """Refuse an option that would change nothing, before any work."""
    of_a_profile = {
        "--model": fit.model is not None,
        "--tp": fit.tp is not None,
        "--precision": fit.precision is not Precision.bf16,
        "--fit": fit.fit != DEFAULT_FIT,
    }
    for option, given in of_a_profile.items():
        if given and fit.hardware is None:
            raise UserMistake(f"{option} is about a profile; name its GPU with --hardware, or leave {option} out")
    if measuring.served_model is not None and not is_live:
        raise UserMistake("--served-model is for a live server; give its address, or leave --served-model out")
    of_a_recording = {"--columns": measuring.columns is not None, "--skip-bad-lines": measuring.skip_bad_lines}
    for option, given in of_a_recording.items():
        if given and is_live:
            raise UserMistake(f"{option} is for a recording; leave it out with a live server")


def _recorded(source: str, measuring: MeasuringOptions) -> Recording:
    recording = read_recording(source, columns=measuring.columns, skip_bad_lines=measuring.skip_bad_lines)
    for note in recording.notes:
        say(note)
    return recording


def _scalars(text: str) -> list[ScalarName]:
    names: list[ScalarName] = []
    for part in text.split(","):
        known = [name for name in SCALARS if name == part.strip()]
        if not known:
            raise UserMistake(f"--fit: {part.strip()!r} is no scalar; write some of {', '.join(SCALARS)}")
        names += known
    return names


def _profile_replica(hardware: str, fit: FitOptions, limits: EngineLimits) -> Replica:
    """The replica of a GPU and a model, under the engine's limits."""
    with as_mistakes():
        server = replica(
            hardware,
            fit.model or DEFAULT_MODEL,
            tp=fit.tp,
            precision=fit.precision.value,
            kv_tokens=limits.kv_tokens,
            max_model_tokens=limits.max_model_len,
            max_num_seqs=limits.max_num_seqs,
            max_num_batched_tokens=limits.max_num_batched_tokens,
            async_scheduling=limits.async_scheduling,
            prefix_caching=limits.prefix_caching,
        )
        tokens = limits.kv_tokens or server.rules.kv_blocks * server.rules.block_tokens
        blocks = whole_blocks(tokens, limits.block_tokens)
        return replace(server, rules=replace(server.rules, kv_blocks=blocks, block_tokens=limits.block_tokens))


def _rules_of_limits(limits: EngineLimits) -> EngineRules:
    """The limits that the engine runs under, from the command line alone.

    Raises:
        UserMistake: one that has no default is missing, or they contradict each other.
    """
    with as_mistakes():
        return EngineRules(
            kv_blocks=whole_blocks(_needed("--kv-tokens", limits.kv_tokens), limits.block_tokens),
            block_tokens=limits.block_tokens,
            max_model_tokens=limits.max_model_len or EngineRules(kv_blocks=1).max_model_tokens,
            max_num_seqs=_needed("--max-num-seqs", limits.max_num_seqs),
            max_num_batched_tokens=_needed("--max-num-batched-tokens", limits.max_num_batched_tokens),
            async_scheduling=limits.async_scheduling is not False,
            prefix_caching=limits.prefix_caching,
        )


def _needed(option: str, value: int | None) -> int:
    if value is None:
        raise UserMistake(f"{option} is missing; give the engine's own value, or name its GPU with --hardware")
    return value


def _measured(source: str, rules: EngineRules, measuring: MeasuringOptions) -> Recording:
    from headway.bench.calibration.probe_load import measure

    say(f"sending {measuring.requests} requests to {source}; it should have no other traffic now")
    return measure(source, rules, requests=measuring.requests, seed=measuring.seed, model=measuring.served_model)


def _report(calibrated: Calibrated) -> str:
    """What was fitted and its error, for stdout."""
    calibration = calibrated.calibration
    lines = [f"{calibration.name}: {calibration.source}", ""]
    times = calibration.step_times
    if isinstance(times, LinearStepTime):
        named = {"step": times.fixed_ps, "token": times.ps_per_token, "request": times.ps_per_request}
        named |= {"token of context": times.ps_per_context_token, "pair of prompt tokens": times.ps_per_pair}
        lines += [f"  µs per {what:<22} {ps / 1e6:,.4g}" for what, ps in named.items()]
    else:
        lines += [f"  {field.name:<20} {getattr(times.scalars, field.name):.4g}" for field in fields(Scalars)]
        lines.append(f"  over {times.model} on {times.tp} × {times.hardware}")
    lines += [
        "",
        f"{'simulated against measured':<28}" + "".join(f"{name:>12}" for name in calibrated.held_out.figures),
    ]
    if calibrated.before is not None:
        lines.append(_row("held out, profile alone", calibrated.before))
    lines += [_row("held out", calibrated.held_out), _row("fitted", calibrated.fitted)]
    return "\n".join(lines)


def _row(name: str, errors: Agreement) -> str:
    return f"{name:<28}" + "".join(f"{percent(figure.error):>12}" for figure in errors.figures.values())
