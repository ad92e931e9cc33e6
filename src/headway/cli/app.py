"""What every verb shares: how a command line is read, how it fails and with which status it ends.

0 done · 1 a failure of ours · 2 a mistake of the user's · 130 interrupted · 141 the reader of our output left.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

from headway import __version__
from headway.bench.user_mistake import UserMistake
from headway.cli import bound, calibrate, check_config, compare, explain, load, policies, serve, tune, workloads
from headway.cli import trace_verbs as trace

OURS, THEIRS, INTERRUPTED, NO_READER = 1, 2, 130, 141

app = typer.Typer(
    help="Which LLM request runs next, whether it may come in, and who gives way when memory is short.",
    add_completion=False,
    invoke_without_command=True,
    rich_markup_mode=None,  # plain help needs no import of rich, which would double the start-up
    pretty_exceptions_enable=False,
)
app.command("compare")(compare.compare)
app.command("serve")(serve.serve)
app.command("check-config")(check_config.check_config)
app.command("load")(load.load)
app.command("bound")(bound.bound)
app.command("calibrate")(calibrate.calibrate)
app.command("policies")(policies.policies)
app.command("explain")(explain.explain)
app.command("tune")(tune.tune)
app.command("workloads")(workloads.workloads)
app.add_typer(trace.app, name="trace")


@app.callback()
def headway(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Read the options that stand before the verb."""
    if version:
        print(f"headway {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())


def run(arguments: Sequence[str]) -> int:
    """Run one command line; returns the exit status and never raises what a user could see as a traceback.

    `--debug`, anywhere on the line, shows the traceback behind a failure.
    """
    debug = "--debug" in arguments
    try:
        command = typer.main.get_command(app)
        with command.make_context("headway", [a for a in arguments if a != "--debug"]) as context:
            command.invoke(context)
        sys.stdout.flush()
    except typer.Exit as wanted:
        return _flushed(wanted.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        return _said("interrupted", INTERRUPTED, debug=False)
    except BrokenPipeError:
        return _without_reader()
    except UserMistake as mistake:
        return _said(str(mistake), THEIRS, debug)
    except Exception as failure:
        if _is_usage(failure):
            return _said(failure.format_message(), THEIRS, debug)  # type: ignore[attr-defined]
        return _said(f"{_sentence(failure)} (this is a fault of Headway's; --debug shows where)", OURS, debug)
    return 0


def _is_usage(failure: Exception) -> bool:
    """Whether the command line could not be read. By shape: click lies at different places in typer's versions."""
    return hasattr(failure, "format_message") and hasattr(failure, "exit_code")


def _sentence(failure: Exception) -> str:
    return str(failure) or type(failure).__name__


def _said(sentence: str, status: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print(f"headway: {sentence}", file=sys.stderr)
    return status


def _flushed(status: int) -> int:
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        return _without_reader()
    return status


def _without_reader() -> int:
    """Whoever read our output has left (`headway … | head`): end quietly, as other tools do on SIGPIPE."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return NO_READER
