"""Options: each declared once, with one name from the command line to the configuration, and completed by the shell."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest
import typer

from headway import __version__, cli
from headway.bench.user_mistake import UserMistake
from headway.cli.grouped_options import grouped
from headway.cli.serve import AddressOptions
from headway.policies.catalog import names
from headway.simulator.hardware import hardware_names
from headway.simulator.models import model_names

from .conftest import Said

Headway = Callable[..., Said]

VERBS = [
    "compare",
    "serve",
    "epp",
    "check-config",
    "load",
    "bound",
    "calibrate",
    "policies",
    "explain",
    "tune",
    "recommend",
    "workloads",
    "trace",
    "fusion",
]


@dataclass(frozen=True, slots=True)
class Paint:
    """A group for the tests below."""

    colour: Annotated[str, typer.Option(help="Which colour.")]
    coats: Annotated[int, typer.Option(min=1)] = 2


def test_a_group_is_filled_from_its_options_and_checked_like_any_other() -> None:
    calls: list[tuple[str, Paint]] = []

    @grouped
    def paint(paint: Paint, wall: Annotated[str, typer.Argument()] = "north") -> None:
        calls.append((wall, paint))

    app = typer.Typer(add_completion=False)
    app.command()(paint)
    run = typer.main.get_command(app)
    run.main(["--colour", "red"], standalone_mode=False)
    run.main(["south", "--coats", "3", "--colour", "blue"], standalone_mode=False)
    assert calls == [("north", Paint("red")), ("south", Paint("blue", 3))]
    for wrong in ([], ["--colour", "red", "--coats", "0"]):
        with pytest.raises(Exception, match=r"colour|greater"):
            run.main(wrong, standalone_mode=False)


def test_no_verb_collects_its_options_by_locals() -> None:
    """mypy cannot see into `Options(**locals())`, and a new local variable breaks it."""
    sources = [*Path(cli.__file__).parent.glob("*.py")]
    assert sources
    assert [source.name for source in sources if "locals()" in source.read_text(encoding="utf-8")] == []


@pytest.mark.parametrize("verb", ["", *VERBS, "trace describe", "trace convert", "trace sources"])
def test_h_is_help(headway: Headway, verb: str) -> None:
    short, long = headway(*verb.split(), "-h"), headway(*verb.split(), "--help")
    assert short.status == 0
    assert short.out.startswith(f"Usage: headway {verb}".rstrip())
    assert short == long


def test_no_verb_is_cut_in_the_list(headway: Headway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    listed = headway("-h").out.partition("Commands:")[2]
    assert [line.split()[0] for line in listed.splitlines() if line.strip()] == VERBS
    assert "..." not in listed


def test_policy_is_a_synonym_of_ordering(headway: Headway, small_trace: Path) -> None:
    line = ("compare", small_trace, "--requests", 20)
    by_ordering = headway(*line, "--ordering", "fcfs", "--ordering", "random")
    assert by_ordering.status == 0, by_ordering.err
    assert headway(*line, "--policy", "fcfs", "--policy", "random").out == by_ordering.out
    assert headway(*line, "--policy", "fcfs", "--ordering", "random").out == by_ordering.out


@pytest.mark.parametrize("verb", ["compare", "tune", "serve"])
def test_every_verb_that_takes_an_ordering_takes_both_names(headway: Headway, verb: str) -> None:
    assert "--ordering, --policy" in headway(verb, "-h").out


def test_the_numbers_still_call_it_policy(headway: Headway, small_trace: Path) -> None:
    said = headway("compare", small_trace, "--requests", 5, "--ordering", "fcfs", "--json", "-")
    assert json.loads(said.out)["runs"][0]["policy"] == "fcfs"


@pytest.mark.parametrize("option", ["--ordering", "--policy"])
def test_tune_names_the_policy_of_either_spelling(headway: Headway, small_trace: Path, option: str) -> None:
    said = headway("tune", small_trace, option, "fcfs")
    assert (said.status, said.out) == (2, "")
    assert "fcfs declares no tunable options" in said.err


@pytest.mark.parametrize(
    ("given", "default", "address"),
    [
        ({}, "0.0.0.0:9", "0.0.0.0:9"),
        ({"listen": "0.0.0.0:80"}, "127.0.0.1:8000", "0.0.0.0:80"),
        ({"host": "0.0.0.0"}, "127.0.0.1:8000", "0.0.0.0:8000"),
        ({"port": 0}, "10.0.0.1:8000", "10.0.0.1:0"),
        ({"host": "gpu-1", "port": 80}, "127.0.0.1:8000", "gpu-1:80"),
        ({"host": "::1"}, "127.0.0.1:8000", "[::1]:8000"),
        ({"host": "[::1]", "port": 5}, "127.0.0.1:8000", "[::1]:5"),
        ({"port": 5}, "[::]:8000", "[::]:5"),
        ({"listen": "gpu-1:80", "host": "gpu-1", "port": 80}, "127.0.0.1:8000", "gpu-1:80"),
    ],
)
def test_host_and_port_are_the_parts_of_listen(given: dict[str, str | int], default: str, address: str) -> None:
    assert AddressOptions(**given).address(default) == address  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "part"),
    [
        ({"listen": "gpu-1:80", "port": 81}, "--port 81"),
        ({"listen": "gpu-1:80", "host": "gpu-2"}, "--host gpu-2"),
    ],
)
def test_listen_and_its_parts_may_not_contradict_each_other(given: dict[str, str | int], part: str) -> None:
    with pytest.raises(UserMistake, match=f"--listen gpu-1:80 and {part} contradict each other; give one of them"):
        AddressOptions(**given).address("127.0.0.1:8000")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (("--listen", "127.0.0.1:0", "--port", "9"), "--listen 127.0.0.1:0 and --port 9 contradict each other"),
        (("--port", "65536"), "--port"),
        (("--port", "http"), "--port"),
        (("--listen", "8000", "--host", "a"), "listen must be host:port"),
        (("--ordering", "fcsf"), "did you mean 'fcfs'?"),
        (("--replica-key-env", "NO_SUCH_KEY"), "--replica-key-env is for engines that --replica, --pool"),
        (
            ("--replica", "http://127.0.0.1:1", "--replica-key-env", "NO_SUCH_KEY"),
            "replica[0].api_key_env: the environment variable NO_SUCH_KEY is empty",
        ),
    ],
)
def test_mistakes_of_serve(headway: Headway, line: tuple[str, ...], sentence: str) -> None:
    said = headway("serve", *line)
    assert (said.status, said.out) == (2, "")
    assert sentence in said.err
    assert said.err.count("\n") == 1


def test_the_module_runs_as_the_console_script_does(small_trace: Path) -> None:
    module = [sys.executable, "-m", "headway"]
    version = subprocess.run([*module, "--version"], capture_output=True, text=True, check=True)
    assert version.stdout == f"headway {__version__}\n"
    missing = subprocess.run([*module, "compare", "none.jsonl"], capture_output=True, text=True, check=False)
    assert missing.returncode == 2
    assert missing.stderr.startswith("headway: none.jsonl: ")


def completed(*words: str, **environment: str) -> list[str]:
    """What bash offers after these words; the last one is half typed."""
    asked = {"_HEADWAY_COMPLETE": "complete_bash", "COMP_WORDS": " ".join(("headway", *words))}
    env = {**os.environ, **asked, "COMP_CWORD": str(len(words)), **environment}
    line = [sys.executable, "-c", "from headway.cli import main; main()"]
    done = subprocess.run(line, capture_output=True, text=True, check=True, env=env)
    assert done.stderr == ""
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("comp",), ["compare"]),
        (("compare", "chat"), ["chat-and-documents", "chat"]),
        (("compare", "--orderi"), ["--ordering"]),
        (("compare", "--ordering", "smallest"), ["smallest-volume-first", "smallest-volume-first-1bit"]),
        (("compare", "--policy", "al"), ["all"]),
        (("compare", "--ordering", "sj"), ["sjf"]),
        (("compare", "--ordering", "fair-share/sj"), ["fair-share/sjf"]),
        (("serve", "--policy", "fair-share/fcf"), ["fair-share/fcfs"]),
        (("serve", "--routing", "round"), ["round-robin"]),
        (("compare", "--prediction", "oracle-"), ["oracle-noisy"]),
        (("tune", "x", "--admission", "peak"), ["peak-check"]),
        (("bound", "--hardware", "h"), [name for name in hardware_names() if name.startswith("h")]),
        (("calibrate", "log", "--model", "llama"), [name for name in model_names() if name.startswith("llama")]),
        (("explain", "least-"), [*(n for n in (*names("preemption"), *names("routing")) if n.startswith("least-"))]),
        (("load", "http://x", "--workload", "reas"), ["reasoning"]),
        (("trace", "desc"), ["describe"]),
    ],
)
def test_names_are_completed(words: tuple[str, ...], offered: list[str]) -> None:
    assert offered
    assert completed(*words) == offered


def test_traces_of_the_folder_are_completed_without_their_suffix(small_trace: Path) -> None:
    assert completed("compare", "smal", HEADWAY_TRACES=str(small_trace.parent)) == ["small"]


def test_the_completion_script_asks_this_program(headway: Headway) -> None:
    env = {**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    line = [sys.executable, "-m", "headway", "--show-completion", "bash"]
    script = subprocess.run(line, capture_output=True, text=True, check=True, env=env).stdout
    assert "_HEADWAY_COMPLETE=complete_bash" in script
    assert "--install-completion" in headway("-h").out
