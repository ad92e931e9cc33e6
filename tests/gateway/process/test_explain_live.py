"""`headway explain --live` against a gateway that is a process of its own."""

from __future__ import annotations

import json
import subprocess

from tests.support.serve_process import HEADWAY, fetched, serving


def explained(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*HEADWAY, "explain", *arguments], capture_output=True, text=True, check=False)


def test_a_gateway_tells_why_a_request_waited_and_whom_it_does_not_know() -> None:
    with serving("--embedded-replicas", "1") as (_, url):
        model = json.loads(fetched(url + "/v1/models"))["data"][0]["id"]
        fetched(url + "/v1/completions", {"model": model, "prompt": "a b c", "max_tokens": 3})
        id_ = json.loads(fetched(url + "/headway/state"))["stories"][0]["id"]
        known, unknown = explained("--live", url, id_), explained("--live", url, "nobody")
    assert known.returncode == 0, known.stderr
    assert known.stdout.splitlines()[0] == f"{id_}: did not wait"
    assert "prompt_tokens" in known.stdout
    assert unknown.returncode == 2
    assert unknown.stderr.startswith(f"headway: {url} does not know 'nobody': ")
    gone = explained("--live", url, id_)
    assert gone.returncode == 2
    assert "nothing answers there" in gone.stderr
    assert "Traceback" not in gone.stderr
