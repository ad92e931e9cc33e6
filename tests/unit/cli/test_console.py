"""The console script as a process: statuses, streams, interrupts, a reader that leaves, a quick start."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from headway import __version__
from headway.policies.catalog import ALL_KINDS, names
from tests.support.command_line import Said

Headway = Callable[..., Said]
COMMAND = [sys.executable, "-c", "from headway.cli import main; main()"]


def test_the_console_script_is_installed_and_is_main() -> None:
    script = Path(sys.executable).with_name("headway")
    told = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert told.stdout == f"headway {__version__}\n"


def test_help_is_quick_to_load() -> None:
    """No heavy package before a verb runs: typer alone reads the line."""
    heavy = (
        "import sys; bad = {'numpy', 'rich', 'zstandard'} & set(sys.modules); sys.exit(f'loaded: {bad}' if bad else 0)"
    )
    code = f"from headway.cli.app import run\nassert run(['compare', '--help']) == 0\n{heavy}"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    assert "--policy" in told.stdout


def test_no_verb_shows_the_verbs(headway: Headway) -> None:
    said = headway()
    assert said.status == 0
    for verb in ("compare", "policies", "explain", "workloads", "trace"):
        assert verb in said.out


def test_a_mistake_is_status_2_and_one_sentence(tmp_path: Path) -> None:
    told = subprocess.run([*COMMAND, "compare", str(tmp_path)], capture_output=True, text=True, check=False)
    assert told.returncode == 2
    assert told.stdout == ""
    assert told.stderr.startswith("headway: ")
    assert told.stderr.count("\n") == 1


@pytest.mark.slow
def test_a_reader_that_leaves_is_no_traceback(small_trace: Path) -> None:
    with subprocess.Popen(
        [*COMMAND, "compare", small_trace], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.wait(60) == 141
        assert b"Traceback" not in process.stderr.read()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="looks into /proc")
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_an_interrupt_is_clean(tmp_path: Path, jobs: str) -> None:
    """The parent alone is interrupted, as by `kill -INT`, and its workers end with it."""
    path = tmp_path / "many.jsonl"
    path.write_text(
        "".join(f'{{"timestamp": {i}, "input_length": 900, "output_length": 300}}\n' for i in range(60_000))
    )
    # A shell starts what runs in its background with SIGINT ignored, and the tests' processes inherit that.
    hears = f"import signal; signal.signal(signal.SIGINT, signal.default_int_handler); {COMMAND[-1]}"
    line = [*COMMAND[:-1], hears, "compare", str(path), "--policy", "all", "--jobs", jobs]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        _wait_until(lambda: "numpy" in Path(f"/proc/{process.pid}/maps").read_text())
        if jobs == "2":
            _wait_until(lambda: len(_children(process.pid)) == 2)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert err == "headway: interrupted\n"
    assert out == ""
    assert not _children(process.pid)


def _wait_until(done: Callable[[], bool]) -> None:
    while not done():
        time.sleep(0.02)


def _children(pid: int) -> list[Path]:
    return [stat for stat in Path("/proc").glob("[0-9]*/stat") if _parent(stat) == pid]


def _parent(stat: Path) -> int:
    try:
        return int(stat.read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


@pytest.mark.slow
def test_policies_lists_the_whole_catalogue_and_explain_knows_each(headway: Headway) -> None:
    listed = headway("policies")
    assert listed.status == 0
    for kind in ALL_KINDS:
        for name in names(kind):
            assert f"  {name}" in listed.out
            page = headway("explain", name)
            assert page.status == 0
            assert f"{name} ({kind})" in page.out
            for part in ("idea", "source", "reads", "wins when", "loses when", "file"):
                assert f"\n{part}" in page.out


def test_explain_names_a_file_that_is_there(headway: Headway) -> None:
    root = Path(__file__).parents[3]
    line = next(line for line in headway("explain", "fcfs").out.splitlines() if line.startswith("file"))
    assert (root / line.split()[1]).is_file()


def test_explain_takes_a_path_of_policies_apart(headway: Headway) -> None:
    said = headway("explain", "fair-share/smallest-volume-first")
    assert "fair-share (ordering)" in said.out
    assert "smallest-volume-first (ordering)" in said.out


def test_workloads_are_listed_with_their_sources(headway: Headway) -> None:
    said = headway("workloads")
    assert said.status == 0
    assert "chat-and-documents" in said.out
    assert "source: " in said.out


def test_a_trace_is_described(headway: Headway, small_trace: Path) -> None:
    said = headway("trace", "describe", small_trace)
    assert said.status == 0, said.err
    assert re.search(r"^requests +200$", said.out, re.MULTILINE)
    assert "6,000" in said.out


def test_sources_name_licences(headway: Headway) -> None:
    said = headway("trace", "sources")
    assert said.status == 0, said.err
    assert "CC BY 4.0" in said.out
    assert "Apache-2.0" in said.out


def test_a_terminal_without_our_signs_still_gets_its_table(small_trace: Path) -> None:
    line = [*COMMAND, "compare", str(small_trace), "--policy", "fcfs", "--policy", "random"]
    told = subprocess.run(line, capture_output=True, check=True, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert b"fcfs" in told.stdout


def test_the_command_that_repeats_it_is_kept(small_trace: Path) -> None:
    line = ["compare", str(small_trace), "--policy", "fcfs", "--json", "-"]
    told = subprocess.run([*COMMAND, *line], capture_output=True, text=True, check=True, env={**os.environ})
    assert json.loads(told.stdout)["command"] == " ".join(["headway", *line])


def test_a_stream_that_the_caller_closed_is_no_fault_and_nothing_else_gets_its_number(tmp_path: Path) -> None:
    """Else the next file or connection would be number 2, and read what is logged."""
    code = "import os; from headway.cli import main; from headway.cli import app; "
    code += f"app.run = lambda line: os.open({str(tmp_path / 'first')!r}, os.O_CREAT | os.O_WRONLY); main()"
    for closed in ("2>&-", ">&- 2>&-", "<&- >&- 2>&-"):
        told = subprocess.run(["/bin/sh", "-c", f'exec "$0" -c "$1" {closed}', sys.executable, code], check=False)
        assert told.returncode >= 3, closed  # the number of the first file opened after the start
    told = subprocess.run(["/bin/sh", "-c", 'exec "$0" -c "$1" nonsense 2>&-', *COMMAND[::2]], check=False)
    assert told.returncode == 2
