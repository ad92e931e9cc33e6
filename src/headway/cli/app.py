"""The verbs of the command line, and what they share: help, completion, errors and exit statuses.

0 done · 1 a fault of Headway's, or a load test that completed no request · 2 a mistake on the command line or in a
file · 130 interrupted, 143 by SIGTERM · 141 the reader of the output left.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from headway.bench.user_mistake import UserMistake
from headway.cli import (
    bound,
    calibrate,
    check_config,
    compare,
    epp,
    explain,
    load,
    policies,
    recommend,
    serve,
    tune,
    workloads,
)
from headway.cli import fusion_verbs as fusion
from headway.cli import trace_verbs as trace
from headway.version import __version__

FAULT, MISTAKE, INTERRUPTED, NO_READER = 1, 2, 130, 141
_COMPLETION_VARIABLE = "_HEADWAY_COMPLETE"  # set by the shell's completion script, as click and typer write it

app = typer.Typer(
    help="Decides which LLM request runs next, which is admitted, and which is preempted when memory is short.",
    context_settings={"help_option_names": ["-h", "--help"]},
    invoke_without_command=True,
    rich_markup_mode=None,  # plain help needs no import of rich, which would double the start-up
    pretty_exceptions_enable=False,
)
app.command("compare")(compare.compare)
app.command("serve")(serve.serve)
app.command("epp")(epp.epp)
app.command("check-config")(check_config.check_config)
app.command("load")(load.load)
app.command("bound")(bound.bound)
app.command("calibrate")(calibrate.calibrate)
app.command("policies")(policies.policies)
app.command("explain")(explain.explain)
app.command("tune")(tune.tune)
app.command("recommend")(recommend.recommend)
app.command("workloads")(workloads.workloads)
app.add_typer(trace.app, name="trace")
app.add_typer(fusion.app, name="fusion")


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
    """Run one command line; returns the exit status. No exception leaves it, so no user sees a traceback.

    `--debug`, anywhere on the line, shows the traceback behind a failure.
    """
    debug = "--debug" in arguments
    try:
        command = typer.main.get_command(app)
        if _COMPLETION_VARIABLE in os.environ:  # a shell asks what may come next
            command.main([], prog_name="headway")  # answers and exits
        with command.make_context("headway", [a for a in arguments if a != "--debug"]) as context:
            command.invoke(context)
        sys.stdout.flush()
    except typer.Exit as wanted:
        return _flushed(wanted.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        return _failed("interrupted", INTERRUPTED, debug=False)
    except BrokenPipeError:
        return _without_reader()
    except UserMistake as mistake:
        return _failed(str(mistake), MISTAKE, debug)
    except Exception as failure:
        if _is_usage(failure):
            return _failed(_usage_sentence(failure), MISTAKE, debug)
        return _failed(f"{_sentence(failure)} (this is a fault of Headway's; --debug shows where)", FAULT, debug)
    return 0


def _is_usage(failure: Exception) -> bool:
    """Whether the command line is wrong. By shape, because typer's versions keep click in different places."""
    return hasattr(failure, "format_message") and hasattr(failure, "exit_code")


def _usage_sentence(failure: Any) -> str:
    """What is wrong with the line, and the command that shows how to write it."""
    context = getattr(failure, "ctx", None)
    command = "headway COMMAND" if context is None else context.command_path
    return f"{failure.format_message().removesuffix('.')}; see `{command} -h`"


def _sentence(failure: Exception) -> str:
    return str(failure) or type(failure).__name__


def _failed(sentence: str, status: int, debug: bool) -> int:
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
    """End quietly when the reader of the output has left (`headway … | head`), as other tools do on SIGPIPE."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return NO_READER
