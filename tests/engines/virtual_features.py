"""vLLM's features under our queue on the real scheduler in virtual time, beside all that `virtual_checks` checks.

    python -m tests.engines.virtual_features [CHECK ...] > findings.json

Run by an interpreter that has vLLM. What needs a worker is in `real_features`.
"""

from __future__ import annotations

from typing import Any

from headway.vllm_plugin.wait_clocks import REASONS
from tests.engines import virtual_checks
from tests.engines.virtual_days import Rows, both, conserved, depth, mixed, ours
from tests.engines.virtual_limits import LIMITS
from tests.support import virtual_engine as engine

SESSIONS = 6


def sessions_with_input_that_streams() -> dict[str, Any]:
    """Each turn of a session waits, runs and ends as a request of its own; the books know whose input is awaited."""
    failures, numbers = [], {}
    for name, asynchronous in both():
        firsts: list[dict[str, float]] = []
        turns = 0.0
        for scheduler in (
            engine.build(None, asynchronous=asynchronous, seats=8),
            ours(asynchronous, {"ordering": "fcfs"}, seats=8),
            ours(asynchronous, {"ordering": "shortest-prompt-first"}, seats=8),
        ):
            day = engine.Day(scheduler, depth=depth(asynchronous))
            rows = mixed(60, 40, seed=3)
            idle_most, found = serve_sessions(day, rows)
            failures += [f"{name}: {one}" for one in found + conserved(day, rows, 4096)]
            firsts.append({row["id"]: day.first_token[row["id"]] for row in rows})
            if hasattr(scheduler, "headway"):
                turns = sum(h.count for h in scheduler.headway.metrics.waits.values())
                if turns < len(rows) + 3 * SESSIONS:
                    failures.append(f"{name}: {turns} waits were counted")
                if scheduler.headway.policies.disabled:
                    failures.append(f"{name}: policies were disabled")
            if not idle_most:
                failures.append(f"{name}: no session ever waited for input")
        holders_first = hasattr(scheduler, "kv_holding_waiting")  # as ours; older vLLM lets them queue again
        if holders_first and firsts[0] != firsts[1]:
            failures.append(f"{name}: under fcfs first tokens came at other times than stock's")
        numbers[name] = {"waits": turns}
    return {"failures": failures, "numbers": numbers}


def serve_sessions(day: engine.Day, rows: Rows) -> tuple[int, list[str]]:
    """Sessions of three turns beside other requests; the most that ever awaited input, and what was wrong."""
    chunks = {f"s{index}": [40, 300, 25] for index in range(SESSIONS)}
    said: dict[str, int] = dict.fromkeys(chunks, 0)
    awaiting_most, failures = 0, []

    def chunk(id_: str, resumable: bool = True) -> Any:
        tokens = chunks[id_].pop(0) if resumable else 1
        row = {"id": id_, "at": day.now, "prompt": tokens, "output": 10**6, "max_tokens": 5, "resumable": resumable}
        before = day.produced.get(id_, 0)
        made = day.request(row)
        day.produced[id_] = before
        said[id_] += resumable
        return made

    def before_step(day: engine.Day) -> None:
        nonlocal awaiting_most
        scheduler = day.scheduler
        if day.steps == 2:
            for id_ in chunks:
                scheduler.add_request(chunk(id_))
                if id_ == "s0":
                    scheduler.add_request(chunk(id_))  # the next input is there before the first is answered
        awaiting = [r for r in scheduler.requests.values() if r.status.name == "WAITING_FOR_STREAMING_REQ"]
        awaiting_most = max(awaiting_most, len(awaiting))
        headway = getattr(scheduler, "headway", None)
        if headway is not None and headway.book.batch.size != len(scheduler.running):
            failures.append(
                f"step {day.steps}: {headway.book.batch.size} run in the books, {len(scheduler.running)} in vLLM"
            )
        for request in awaiting:
            if day.steps % 7 == 0 or len(awaiting) == SESSIONS:
                scheduler.add_request(chunk(request.request_id, bool(chunks[request.request_id])))

    day.before_step = before_step
    day.run(rows)
    failures += [f"session {id_} said {count} of 3" for id_, count in said.items() if count != 3]
    return awaiting_most, failures[:5]


def small_ones_pass_a_head_that_does_not_fit() -> dict[str, Any]:
    """`admission = backfill`: one that ends in time passes a large head, which is admitted no later; no other does."""
    failures, numbers = [], {}
    for name, asynchronous in both():
        rows: Rows = [{"id": "runs", "at": 0.0, "prompt": 1500, "output": 200, "hints": expects(200)}]
        rows += [{"id": "large", "at": 0.01, "prompt": 1500, "output": 20, "hints": expects(20)}]
        for index in range(6):
            long = index == 2
            output = 400 if long else 10
            hints = expects(output)
            rows.append({"id": f"s{index}", "at": 0.02 + index / 1e3, "prompt": 100, "output": output, "hints": hints})
        came: dict[str, dict[str, float]] = {}
        for admission in ("greedy", "backfill"):
            scheduler = ours(asynchronous, {"ordering": "fcfs", "admission": admission}, blocks=150)
            day = engine.Day(scheduler, depth=depth(asynchronous)).run(rows)
            failures += [f"{name} {admission}: {one}" for one in conserved(day, rows, 150)]
            came[admission] = {id_: at for at, id_ in reversed(day.admissions)}
            passed = scheduler.headway.queue.passed
            numbers[f"{name} {admission}"] = {"passed": passed, "large came in": round(came[admission]["large"], 2)}
            if (passed > 0) != (admission == "backfill"):
                failures.append(f"{name} {admission}: {passed} passed")
            if scheduler.headway.policies.disabled:
                failures.append(f"{name} {admission}: policies were disabled")
        if not came["backfill"]["s0"] < came["backfill"]["large"]:
            failures.append(f"{name}: a small one did not pass")
        if came["backfill"]["s2"] < came["backfill"]["large"]:
            failures.append(f"{name}: one that stays long passed")
        if came["backfill"]["large"] > came["greedy"]["large"] + 0.2:
            failures.append(f"{name}: the large one came in later: {came}")
    return {"failures": failures, "numbers": numbers}


def expects(tokens: int) -> dict[str, Any]:
    return {"headway_expected_tokens": tokens}


def paused_engines_keep_everybody() -> dict[str, Any]:
    """Paused, new ones or all: who waits is counted and stays in order; clients that leave meanwhile are gone."""
    failures = []
    try:
        from vllm.v1.core.sched.interface import PauseState
    except ImportError:
        return {"failures": [], "numbers": {"left out": "this vLLM cannot be paused"}}
    for name, asynchronous in both():
        for state in (PauseState.PAUSED_NEW, PauseState.PAUSED_ALL):
            day = engine.Day(ours(asynchronous, {"ordering": "shortest-prompt-first"}), depth=depth(asynchronous))
            rows = [{**row, "at": 0.0} for row in mixed(80, 1.0, seed=5)]
            rows[-1]["at"] = 60.0  # one is still to come: a paused engine counts no request as unfinished
            asleep = {"steps": 0}

            def meddle(day: engine.Day, state: Any = state, asleep: dict[str, int] = asleep) -> None:
                scheduler = day.scheduler
                if day.steps == 4 and not asleep["steps"]:
                    scheduler.set_pause_state(state)
                asleep["steps"] += scheduler._pause_state is state
                if asleep["steps"] == 3:
                    for id_ in sorted(scheduler.requests)[::4]:
                        day.abort(id_)
                if asleep["steps"] == 6:
                    scheduler.set_pause_state(PauseState.UNPAUSED)

            day.before_step = meddle
            found = virtual_checks.attempt(lambda day=day, rows=rows: conserved(day.run(rows), rows, 4096))
            failures += [f"{name} {state.name}: {one}" for one in found]
            failures += [] if day.aborted else [f"{name} {state.name}: no client left"]
            failures += [f"{name} {state.name}: policies disabled"] if day.scheduler.headway.policies.disabled else []
            if not day.scheduler.headway.report.explanations.clocks.reading(day.now).seconds[REASONS.index("paused")]:
                failures.append(f"{name} {state.name}: no wait was put down to the pause")
    return {"failures": failures}


def prefills_put_off_by_data_parallel_ranks() -> dict[str, Any]:
    """`schedule(throttle_prefills)`: steps in which this engine may not prefill hold our queue up as stock's."""
    import inspect

    failures = []
    for name, asynchronous in both():
        logs = []
        for scheduler in (engine.build(None, asynchronous=asynchronous), ours(asynchronous, {"ordering": "fcfs"})):
            if "throttle_prefills" not in inspect.signature(scheduler.schedule.__func__).parameters and logs == []:
                stock = engine.build(None, asynchronous=asynchronous)
                if "throttle_prefills" not in inspect.signature(stock.schedule).parameters:
                    return {"failures": [], "numbers": {"left out": "this vLLM does not put prefills off"}}
            plain, calls = scheduler.schedule, [0]

            def schedule(plain: Any = plain, calls: list[int] = calls) -> Any:
                calls[0] += 1
                return plain(calls[0] % 4 != 0)

            scheduler.schedule = schedule
            day = engine.Day(scheduler, depth=depth(asynchronous))
            rows = mixed(120, 40, seed=8)
            failures += [f"{name}: {one}" for one in conserved(day.run(rows), rows, 4096)]
            logs.append(day.step_log)
        if logs[0] != logs[1]:
            failures.append(f"{name}: the steps differ from stock's")
    return {"failures": failures}


OWN = (
    sessions_with_input_that_streams,
    small_ones_pass_a_head_that_does_not_fit,
    paused_engines_keep_everybody,
    prefills_put_off_by_data_parallel_ranks,
)


if __name__ == "__main__":
    virtual_checks.run({**virtual_checks.CHECKS, **{check.__name__: check for check in (*OWN, *LIMITS)}})
