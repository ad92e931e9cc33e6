"""Runs `headway fusion measure`: texts in, memory against quality out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from headway.bench.output_files import check_files, replacing
from headway.bench.progress import progress, say
from headway.bench.report.fusion_picture import fusion_picture
from headway.bench.user_mistake import UserMistake, as_mistakes
from headway.cli.printing import print_rich
from headway.cli.result_files import STDOUT, command_line, json_file, write_json
from headway.config.nearest_name import nearest
from headway.fusion.distortion_curve import FORMS, CurvePoint, PromptKv, Quality
from headway.fusion.shared_prompts import PROMPT_SETS, PromptSizes, prompt_set

if TYPE_CHECKING:
    from rich.console import Console

    from headway.fusion.causal_model import CausalModel

SCHEMA = 1
DEFAULT_FORMS = ("joint-encoding", "batch-fast-fusion")
_PACKAGES = ("torch", "transformers")


@dataclass(frozen=True, slots=True)
class Measurement:
    """What the command line asks for; its options as they were typed."""

    model: str
    texts: Sequence[Path]
    share: Sequence[str] | None
    form: Sequence[str] | None
    bounds: str
    rounded_bits: str
    prompts: int
    prompt_tokens: int
    scored_tokens: int
    block_tokens: int
    seed: int


@dataclass(frozen=True, slots=True)
class MeasuredSet:
    """One set of prompts.

    Attributes:
        share: what its prompts share, a name in `PROMPT_SETS`.
        exact: the model with its own KV.
        likeness: per half and layer, the median of blocks' best cosine with another prompt's block at their place.
        points: each form at each bound.
    """

    share: str
    exact: Quality
    likeness: dict[str, list[float]]
    points: list[CurvePoint]


def run_measurement(asked: Measurement, *, json: str | None, picture: Path | None) -> None:
    """Measure each set of prompts; print a table and write what was asked for.

    Raises:
        UserMistake: an option, the model or a text is wrong, or a package is missing.
    """
    shares = _known("--share", asked.share, PROMPT_SETS) or list(PROMPT_SETS)
    forms = _known("--form", asked.form, FORMS) or list(DEFAULT_FORMS)
    bounds = _numbers("--bounds", asked.bounds, 0, 1)
    bits = [int(number) for number in _numbers("--rounded-bits", asked.rounded_bits, 0, 8, whole=True)]
    check_files({"--json": json_file(json), "--picture": picture}, [str(text) for text in asked.texts])
    with as_mistakes():
        sizes = PromptSizes(asked.prompts, asked.prompt_tokens, asked.scored_tokens, asked.block_tokens)
    texts = [_read(path) for path in asked.texts]
    _require_packages()
    with as_mistakes():
        from headway.fusion.causal_model import CausalModel

        model = CausalModel(asked.model)
        tokens = [model.tokens(text) for text in texts]
        prompts = {share: prompt_set(share, tokens, sizes, seed=asked.seed) for share in shares}
        with progress("measuring", len(shares) * (1 + len(forms) * len(bounds) + len(bits))) as done:
            measured = []
            for share in shares:
                kv = PromptKv(model, prompts[share], sizes)
                done()
                points = []
                for form in forms:
                    for bound in bounds:
                        points.append(kv.point(form, bound))
                        done()
                for number in bits:
                    points.append(kv.rounded(number))
                    done()
                likeness = {
                    half.value: [float(median(row)) for row in best.tolist()] for half, best in kv.likeness().items()
                }
                measured.append(MeasuredSet(share, kv.quality, likeness, points))
    if json != STDOUT:
        print_rich(lambda console: _show(console, measured))
    if json is not None:
        write_json(json, [_content(asked, model, sizes, measured)], schema=SCHEMA, several="measurements")
    if picture is not None:
        drawing = fusion_picture({one.share: one.points for one in measured})
        with replacing(picture, "--picture") as temporary:
            temporary.write_text(drawing, encoding="utf-8")
        say(f"picture: {picture}")


def _require_packages() -> None:
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise UserMistake(f"this needs {' and '.join(missing)}: pip install 'headway[fusion]'")


def _known(option: str, names: Sequence[str] | None, known: Iterable[str]) -> list[str]:
    """The names given, each once; none for none given."""
    choices = list(known)
    for name in names or ():
        if name not in choices:
            raise UserMistake(f"{option} {name!r} is unknown{nearest(name, choices)}")
    return list(dict.fromkeys(names or ()))


def _numbers(option: str, text: str, above: float, most: float, *, whole: bool = False) -> list[float]:
    """Numbers between commas, each above one limit and at most another; none for an empty text."""
    kind = "whole numbers" if whole else "numbers"
    try:
        numbers = [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise UserMistake(f"{option} {text!r}: {kind} with commas between them are needed") from None
    for number in numbers:
        if not above < number <= most or (whole and number != int(number)):
            raise UserMistake(f"{option} {number:g}: {kind} above {above:g} and at most {most:g} are needed")
    return numbers


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserMistake(f"TEXT {path}: {error.strerror or error}; name a text file") from error


def _show(console: Console, measured: Sequence[MeasuredSet]) -> None:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE)
    for title in ("prompts share", "form", "bound"):
        table.add_column(title, no_wrap=True)
    for title in ("freed", "bytes left", "one table", "perplexity", "KL", "same token"):
        table.add_column(title, justify="right", no_wrap=True)
    for one in measured:
        table.add_row(one.share, "exact", "", "0.0 %", "100.0 %", "0.0 %", f"{one.exact.perplexity:.2f}", "0", "100 %")
        for point in one.points:
            table.add_row(
                one.share,
                point.form,
                f"{point.bound:g}",
                f"{100 * point.fused_share:.1f} %",
                f"{100 * point.stored_share:.1f} %",
                f"{100 * point.one_table_share:.1f} %",
                f"{point.quality.perplexity:.2f}",
                f"{point.quality.kl:.4f}",
                f"{100 * point.quality.same_greedy:.1f} %",
            )
    console.print(table)
    console.print(
        "freed: KV memory of full blocks, with a table for each part. bytes left: with scales and tables. one table: "
        "blocks freed in an engine\nwith one block id for all layers. KL: of the next token, in nats. same token: most "
        "likely next token unchanged. rounded: bound is in bits.",
        highlight=False,
    )


def _content(
    asked: Measurement, model: CausalModel, sizes: PromptSizes, measured: Sequence[MeasuredSet]
) -> dict[str, object]:
    return {
        "schema": SCHEMA,
        "command": command_line(),
        "model": {"name": asked.model, "layers": model.layers, "kv_heads": model.heads, "head_dim": model.head_dim},
        "sizes": asdict(sizes),
        "sets": [asdict(one) for one in measured],
    }
