"""The tables of docs/results/compare.md: five public traces under every published order at three loads.

    python -m benchmarks.studies.compare.published_orders [TRACE ...]

Traces are found in the folder named by HEADWAY_TRACES. Each table is what the `headway compare` command above it
prints, cut to the columns that tell the story; the file's text around the tables is kept.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "results" / "compare.md"
TRACES = {
    "servegen_deepseek_r1": [],
    "mooncake_conversation": [],
    "azure_conv_2023": [],
    "azure_code_2023": [],
    "agentic_coding_weka": ["--over-context", "refuse"],
}
LOADS = (0.7, 0.9, 1.1)
HEAD = (
    "| policy | TTFT mean, s at 0.7 | 0.9 | 1.1 | at 1.1: TTFT p99, s | short half | longest 5 % | e2e mean, s "
    "| e2e p99, s | TPOT mean, ms | goodput, % | recomputed, % |"
)


def command_of(trace: str) -> list[str]:
    loads = ",".join(str(load) for load in LOADS)
    fixed = ["--requests", "5000", "--seed", "0", "--bundles", "benchmarks/studies/compare/published_orders.toml"]
    return ["headway", "compare", trace, "--loads", loads, *fixed, *TRACES[trace]]


def measure(trace: str) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        command = [str(Path(sys.executable).with_name("headway")), *command_of(trace)[1:], "--json", str(out)]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        return dict(json.loads(out.read_text()))


def number(value: float | None, scale: float = 1.0) -> str:
    return "–" if value is None else f"{value * scale:.3g}"


def table(comparison: dict) -> list[str]:
    runs = {(run["policy"], run["load"]): run for run in comparison["runs"]}
    policies = list(dict.fromkeys(run["policy"] for run in comparison["runs"]))
    lines = [HEAD, "|---" * (HEAD.count("|") - 1) + "|"]
    columns = []
    for policy in policies:
        top = runs[policy, LOADS[-1]]
        facts = comparison["trace"]
        tokens = facts["requests"] * (facts["prompt_tokens"]["mean"] + facts["output_tokens"]["mean"])
        columns.append(
            [
                *(runs[policy, load]["ttft_seconds"]["mean"] for load in LOADS),
                top["ttft_seconds"]["p99"],
                top["ttft_short_half_seconds"]["mean"],
                top["ttft_longest_5pct_seconds"]["mean"],
                top["e2e_seconds"]["mean"],
                top["e2e_seconds"]["p99"],
                top["tpot_seconds"]["mean"] and 1e3 * top["tpot_seconds"]["mean"],
                100 * top["goodput"],
                100 * top["recomputed_tokens"] / tokens,
            ]
        )
    for policy, row in zip(policies, columns, strict=True):
        cells = []
        for place, value in enumerate(row):
            known = [other[place] for other in columns if other[place] is not None]
            best = max(known) if place == 9 else min(known, default=None)
            text = number(value)
            cells.append(f"**{text}**" if best is not None and text == number(best) else text)
        lines.append(f"| {policy} | " + " | ".join(cells) + " |")
    return lines


def section(trace: str) -> str:
    comparison = measure(trace)
    saturation = comparison["saturation"]["requests_per_second"]
    refused = comparison["runs"][0]["refused"]
    facts = f"Load 1 is {saturation:.3g} requests/s; {comparison['runs'][0]['requests']:,} requests"
    facts += f", {refused:,} of them refused." if refused else "."
    shown = " ".join(command_of(trace))
    return "\n".join([f"`{shown}`", "", facts, "", *table(comparison)])


def main() -> None:
    page = PAGE.read_text()
    for trace in sys.argv[1:] or TRACES:
        start, end = f"<!-- {trace} -->", f"<!-- end of {trace} -->"
        before, rest = page.split(start)
        page = before + f"{start}\n{section(trace)}\n{end}" + rest.split(end)[1]
        PAGE.write_text(page)
        print(f"{trace}: done", file=sys.stderr)


if __name__ == "__main__":
    main()
