"""The configuration that docs/serve.md shows starts as the page says."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

from tests.support.serve_process import HEADWAY, next_line

PAGE = Path(__file__).parents[3] / "docs" / "serve.md"


def test_the_example_of_the_page_starts(tmp_path: Path) -> None:
    page = PAGE.read_text(encoding="utf-8")
    text = page.partition("```toml\n")[2].partition("```")[0]
    # Ports and an address of this machine; all else as it stands.
    written, count = re.subn(r'"(?:0\.0\.0\.0|127\.0\.0\.1):800[01]"', '"127.0.0.1:0"', text)
    assert count == 2
    (tmp_path / "gateway.toml").write_text(written.replace("http://10.0.0.1:8000", "http://127.0.0.1:1"))
    environment = os.environ | dict(re.findall(r"^export (\w+)=(\S+)$", page, re.MULTILINE))
    assert "headway serve --config gateway.toml" in page
    line = [*HEADWAY, "serve", "--config", "gateway.toml"]
    with subprocess.Popen(line, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            told = json.loads(next_line(process, '"listening"'))
        finally:
            process.terminate()
            process.communicate()
    assert told["policies"]["ordering"] == "fair-share/smallest-volume-first"
    assert process.returncode == 0
