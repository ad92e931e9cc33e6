"""TwinLook process: runs looks in a niced process of its own, and survives whatever happens to it.

Laws: asking never waits. A process that dies, hangs, takes more memory than it may or answers nonsense costs one look:
it is ended, that is said, and the next one starts after a pause that doubles with each fault in a row.
"""

from __future__ import annotations

import os
import selectors
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from headway.twin.look_messages import LookAnswer, LookFault, TwinLook
from headway.twin.traffic_window import SeenRequest

LOOK_MODULE = "headway.bench.twin"
"""What the process runs. It is named and not imported: the bench stands above all that uses the twin."""
_COMMAND = (sys.executable, "-m", LOOK_MODULE)
_POLL_SECONDS = 0.1
_ANSWER_BYTES_MAX = 1 << 20
_CLOSED = "looks have come to an end"
_PAUSE_SECONDS, _PAUSE_SECONDS_MAX = 15.0, 1_800.0
_ONE_THREAD = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")}
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class LookProcess:
    """One look at a time: `ask`, then `take` until there is an answer or a fault. Used by one thread."""

    def __init__(
        self, memory_mb: int, answer_seconds: float, command: Sequence[str] = _COMMAND, pause: float = _PAUSE_SECONDS
    ) -> None:
        self._memory_bytes = memory_mb << 20
        self._answer_seconds = answer_seconds
        self._command = [*command]
        self._process: subprocess.Popen[bytes] | None = None
        self._thread: threading.Thread | None = None
        self._found: LookAnswer | LookFault | None = None
        self._is_closed = False
        self._first_pause = self._pause = pause
        self._ended_cpu_seconds = 0.0
        self._cpu_seconds = 0.0
        self.memory_bytes = 0
        self.faults = 0
        self.starts = 0

    @property
    def is_busy(self) -> bool:
        """Whether a look is under way, or its answer waits to be taken."""
        return self._thread is not None

    @property
    def cpu_seconds(self) -> float:
        """Processor time that all its processes have used."""
        return self._ended_cpu_seconds + self._cpu_seconds

    def ask(self, look: TwinLook, rows: Sequence[SeenRequest]) -> None:
        """Begin a look at these requests. Raises RuntimeError if one is under way."""
        if self._thread is not None:
            raise RuntimeError("a look is under way")
        self._thread = threading.Thread(target=self._run, args=(look, rows), name="headway-twin", daemon=True)
        self._thread.start()

    def take(self) -> LookAnswer | LookFault | None:
        """What the look found, once; None while it goes on."""
        if self._thread is None or self._thread.is_alive():
            return None
        self._thread = None
        found, self._found = self._found, None
        return found

    @property
    def pause_seconds(self) -> float:
        """How long to wait after a fault; it doubles with each in a row."""
        return self._pause / 2 if self._pause > self._first_pause else 0.0

    def close(self) -> None:
        """End the process, without waiting: the thread of a look under way does the rest."""
        self._is_closed = True
        process = self._process
        if process is not None:
            with suppress(OSError):
                process.kill()
        if self._thread is None or not self._thread.is_alive():
            self._end()

    def _run(self, look: TwinLook, rows: Sequence[SeenRequest]) -> None:
        try:
            self._found = LookAnswer.from_line(self._exchange(look.of(rows).to_line()))
            self._pause = self._first_pause
        except (OSError, ValueError) as error:
            self._end()
            self.faults += 1
            self._pause = min(2 * self._pause, 2 * _PAUSE_SECONDS_MAX)
            self._found = LookFault(str(error) or type(error).__name__, self.cpu_seconds)
        except Exception as error:  # a fault of ours: the thread must not end without an answer
            self._end()
            self.faults += 1
            self._pause = min(2 * self._pause, 2 * _PAUSE_SECONDS_MAX)
            self._found = LookFault(f"the look failed ({error!r})", self.cpu_seconds)
        if self._is_closed:
            self._end()

    def _exchange(self, line: bytes) -> bytes:
        """Send a line, and wait for one. Raises OSError or ValueError, one sentence, where none comes in time."""
        process = self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        until = time.monotonic() + self._answer_seconds
        answer, sent, view = bytearray(), 0, memoryview(line)
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdin, selectors.EVENT_WRITE)
            selector.register(process.stdout, selectors.EVENT_READ)
            while not answer.endswith(b"\n"):
                for key, _ in selector.select(_POLL_SECONDS):
                    if key.fileobj is process.stdin:
                        sent += os.write(process.stdin.fileno(), view[sent : sent + 65_536])
                        if sent == len(line):
                            selector.unregister(process.stdin)
                    else:
                        piece = os.read(process.stdout.fileno(), 65_536)
                        if not piece:
                            raise ValueError(f"its process ended by itself (status {process.wait()})")
                        answer += piece
                self._check(process, until, len(answer))
        return bytes(answer)

    def _check(self, process: subprocess.Popen[bytes], until: float, answered: int) -> None:
        self._measure(process.pid)
        if self._is_closed:
            raise ValueError(_CLOSED)
        if self.memory_bytes > self._memory_bytes:
            used, most = self.memory_bytes >> 20, self._memory_bytes >> 20
            raise ValueError(f"its process took {used} MiB of memory, more than the {most} MiB that it may")
        if time.monotonic() > until:
            raise ValueError(f"its process did not answer within {self._answer_seconds:g} s")
        if answered > _ANSWER_BYTES_MAX:
            raise ValueError("its process answered without end")

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is not None:
            self._end()
        if self._is_closed:
            raise ValueError(_CLOSED)
        if self._process is None:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, **_ONE_THREAD},
            )
            self.starts += 1
            for pipe in (self._process.stdin, self._process.stdout):
                assert pipe is not None
                os.set_blocking(pipe.fileno(), False)
        return self._process

    def _measure(self, pid: int) -> None:
        """Processor time and memory of the process, where the system tells them (Linux)."""
        with suppress(OSError, ValueError, IndexError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            self._cpu_seconds = (int(fields[11]) + int(fields[12])) / _TICKS
            self.memory_bytes = int(fields[21]) * _PAGE_BYTES

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        with suppress(OSError):
            process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()
        self._ended_cpu_seconds += self._cpu_seconds
        self._cpu_seconds = 0.0
        self.memory_bytes = 0
