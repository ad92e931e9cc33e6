"""`headway serve` as a process of its own, and plain requests to it."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

HEADWAY = (sys.executable, "-c", "from headway.cli import main; main()")


@contextmanager
def serving(*arguments: str | Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`headway serve` on a port of its own; yields it and its URL once it is ready."""
    line = [*HEADWAY, "serve", "--listen", "127.0.0.1:0", *map(str, arguments)]
    process = subprocess.Popen(line, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        url = ""
        for told in process.stderr:
            found = re.search(r'"url": "(http[^"]+)"|\burl=(http\S+)', told)
            if found:
                url = found[1] or found[2]
                break
        assert url, "it ended without listening"
        until = time.monotonic() + 30
        while json.loads(fetched(url + "/ready"))["replicas_up"] < 1:
            assert time.monotonic() < until
            time.sleep(0.05)
        yield process, url
    finally:
        process.kill()
        process.communicate()


def next_line(process: subprocess.Popen[str], text: str) -> str:
    """The next line of its log with this text; others are skipped."""
    assert process.stderr is not None
    found = next((line for line in process.stderr if text in line), None)
    assert found is not None, f"the gateway ended without a line of {text!r}"
    return found


def fetched(url: str, body: object = None) -> str:
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data), timeout=120) as answer:
            return str(answer.read().decode())
    except urllib.error.HTTPError as error:
        with error:
            return error.read().decode()


@asynccontextmanager
async def serving_beside(*arguments: str | Path) -> AsyncIterator[tuple[subprocess.Popen[str], str]]:
    """The same for tests whose replicas live in their own loop, which must go on meanwhile."""
    context = serving(*arguments)
    found = await asyncio.to_thread(context.__enter__)
    try:
        yield found
    finally:
        await asyncio.to_thread(context.__exit__, None, None, None)
