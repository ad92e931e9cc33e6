"""What `headway calibrate` does once its options are read: a recording in, a TOML file and its errors out."""

from __future__ import annotations

from dataclasses import fields, replace

from headway.bench.calibration.fitting import Calibrated, calibrate_linear, calibrate_profile
from headway.bench.calibration.recording_files import read_recording
from headway.bench.calibration.scalars import SCALARS, ScalarName
from headway.bench.metrics.agreement import Agreement, percent
from headway.bench.metrics.recording import Recording
from headway.bench.output_files import check_files, replacing
from headway.bench.traces.writing import write_jsonl
from headway.bench.user_mistake import UserMistake, as_mistakes
from headway.cli.calibrate import CalibrateOptions
from headway.cli.compare_options import DEFAULT_MODEL, Precision, whole_blocks
from headway.cli.progress import say
from headway.simulator.calibration import calibration_text
from headway.simulator.replica import Replica, replica
from headway.simulator.rules import EngineRules
from headway.simulator.scaled_step_time import Scalars
from headway.simulator.step_time import LinearStepTime

_NEEDED = ("kv_tokens", "max_num_seqs", "max_num_batched_tokens")


def run_calibration(options: CalibrateOptions) -> None:
    """Measure or read, fit, print, write.

    Raises:
        UserMistake: an option or the recording is wrong; before any load is put on a server, wherever it can be known.
    """
    check_files({"--out": options.out, "--record": options.record}, [options.source])
    names = _scalars(options.fit)
    is_live = options.source.startswith(("http://", "https://"))
    _check_heeded(options, is_live)
    server = _profile_replica(options) if options.hardware is not None else None
    rules = _rules(options, server)
    recording = _measured(options, rules) if is_live else _recorded(options)
    if rules.prefix_caching and recording.trace.prefix_ids is None:
        raise UserMistake(f"--prefix-caching: {recording.label} does not say which prompts share blocks; leave it out")
    if options.record is not None:
        with replacing(options.record, "--record") as temporary:
            write_jsonl(recording.as_trace(), temporary)
        say(f"recording: {options.record}")
    name = options.name or recording.trace.name
    say(f"fitting to {len(recording.trace):,} requests of {recording.label}")
    if server is None:
        found = calibrate_linear(recording, rules, name)
    else:
        found = calibrate_profile(
            recording, server, names, name, (str(options.hardware), options.model or DEFAULT_MODEL)
        )
    print(_told(found))
    with replacing(options.out, "--out") as temporary:
        temporary.write_text(calibration_text(found.calibration), encoding="utf-8")
    say(f"calibration: {options.out}; give it to headway compare with --calibration")


def _check_heeded(options: CalibrateOptions, is_live: bool) -> None:
    """An option that would change nothing is a mistake, told before any work."""
    without_profile = {
        "--model": options.model is not None,
        "--tp": options.tp is not None,
        "--precision": options.precision is not Precision.bf16,
        "--fit": options.fit != "step_scale",
    }
    for option, given in without_profile.items():
        if given and options.hardware is None:
            raise UserMistake(f"{option} is about a profile; name its card with --hardware, or leave {option} out")
    if options.served_model is not None and not is_live:
        raise UserMistake("--served-model is for a live server; give its address, or leave --served-model out")
    for option, given in {"--columns": options.columns is not None, "--skip-bad-lines": options.skip_bad_lines}.items():
        if given and is_live:
            raise UserMistake(f"{option} is for a recording; leave it out with a live server")


def _recorded(options: CalibrateOptions) -> Recording:
    recording = read_recording(options.source, columns=options.columns, skip_bad_lines=options.skip_bad_lines)
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


def _profile_replica(options: CalibrateOptions) -> Replica:
    assert options.hardware is not None
    with as_mistakes():
        server = replica(
            options.hardware,
            options.model or DEFAULT_MODEL,
            tp=options.tp,
            precision=options.precision.value,
            kv_tokens=options.kv_tokens,
            max_model_tokens=options.max_model_len,
            max_num_seqs=options.max_num_seqs,
            max_num_batched_tokens=options.max_num_batched_tokens,
            async_scheduling=options.async_scheduling,
            prefix_caching=options.prefix_caching,
        )
        tokens = options.kv_tokens or server.rules.kv_blocks * server.rules.block_tokens
        blocks = whole_blocks(tokens, options.block_tokens)
        return replace(server, rules=replace(server.rules, kv_blocks=blocks, block_tokens=options.block_tokens))


def _rules(options: CalibrateOptions, server: Replica | None) -> EngineRules:
    """The limits that the engine runs under; without a profile nothing says them but the command line."""
    if server is not None:
        return server.rules
    for needed in _NEEDED:
        if getattr(options, needed) is None:
            option = "--" + needed.replace("_", "-")
            raise UserMistake(f"{option} is missing: without --hardware nothing else says what the engine ran under")
    assert options.kv_tokens is not None
    assert options.max_num_seqs is not None
    assert options.max_num_batched_tokens is not None
    try:
        return EngineRules(
            kv_blocks=whole_blocks(options.kv_tokens, options.block_tokens),
            block_tokens=options.block_tokens,
            max_model_tokens=options.max_model_len or EngineRules(kv_blocks=1).max_model_tokens,
            max_num_seqs=options.max_num_seqs,
            max_num_batched_tokens=options.max_num_batched_tokens,
            async_scheduling=options.async_scheduling is not False,
            prefix_caching=options.prefix_caching,
        )
    except ValueError as error:
        raise UserMistake(str(error)) from error


def _measured(options: CalibrateOptions, rules: EngineRules) -> Recording:
    from headway.bench.calibration.probe_load import measure

    say(f"putting {options.requests} requests on {options.source}; nobody else should use it now")
    return measure(options.source, rules, requests=options.requests, seed=options.seed, model=options.served_model)


def _told(found: Calibrated) -> str:
    """What was fitted and how far off it is, for stdout."""
    calibration = found.calibration
    lines = [f"{calibration.name}: {calibration.source}", ""]
    times = calibration.step_times
    if isinstance(times, LinearStepTime):
        named = {"step": times.fixed_ps, "token": times.ps_per_token, "request": times.ps_per_request}
        named |= {"token of context": times.ps_per_context_token, "pair of prompt tokens": times.ps_per_pair}
        lines += [f"  µs per {what:<22} {ps / 1e6:,.4g}" for what, ps in named.items()]
    else:
        lines += [f"  {one.name:<20} {getattr(times.scalars, one.name):.4g}" for one in fields(Scalars)]
        lines.append(f"  over {times.model} on {times.tp} × {times.hardware}")
    lines += ["", f"{'simulated against measured':<28}" + "".join(f"{name:>12}" for name in found.held_out.figures)]
    if found.before is not None:
        lines.append(_row("held out, profile alone", found.before))
    lines += [_row("held out", found.held_out), _row("fitted", found.fitted)]
    return "\n".join(lines)


def _row(name: str, told: Agreement) -> str:
    return f"{name:<28}" + "".join(f"{percent(figure.error):>12}" for figure in told.figures.values())
