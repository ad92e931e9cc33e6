"""`headway fusion measure`: mistakes in one sentence. tests/engines/test_fused_model.py runs it on a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from xml.etree import ElementTree

import pytest

from headway.bench.report.fusion_picture import fusion_picture
from headway.cli.fusion_run import MeasuredSet
from headway.fusion.distortion_curve import FORMS, CurvePoint, Quality
from headway.fusion.encoders import ENCODERS
from headway.fusion.shared_prompts import PROMPT_SETS, PromptSizes
from tests.support.command_line import Said

Headway = Callable[..., Said]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("one two three " * 50)
    return path


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--share", "templates"), "--share 'templates' is unknown: did you mean 'template'? choose from apart"),
        (("--form", "joint"), "--form 'joint' is unknown: "),
        (("--bounds", "0.9,1.5"), "--bounds 1.5: numbers above 0 and at most 1 are needed"),
        (("--bounds", "high"), "--bounds 'high': numbers with commas between them are needed"),
        (("--rounded-bits", "2.5"), "--rounded-bits 2.5: whole numbers above 0 and at most 8 are needed"),
        (("--prompt-tokens", "100"), "prompt_tokens is 100: a multiple of the block's 16 tokens"),
        (("--picture", "nowhere/x.svg"), "--picture nowhere/x.svg: the folder nowhere does not exist"),
    ],
)
def test_a_wrong_option(headway: Headway, text: Path, options: tuple[str, ...], sentence: str) -> None:
    said = headway("fusion", "measure", "model", text, *options)
    assert said.status == 2
    assert said.err.startswith(f"headway: {sentence}")
    assert said.err.count("\n") == 1


def test_a_text_that_is_not_there(headway: Headway, tmp_path: Path) -> None:
    said = headway("fusion", "measure", "model", tmp_path / "none.txt")
    assert said.status == 2
    assert "none.txt: No such file or directory; name a text file" in said.err


@pytest.mark.skipif(find_spec("torch") is not None, reason="torch is installed here")
def test_without_the_extra(headway: Headway, text: Path) -> None:
    said = headway("fusion", "measure", "model", text)
    assert (said.status, said.out) == (2, "")
    assert "pip install 'headway[fusion]'" in said.err


def test_the_picture_has_a_row_for_each_set_and_a_line_for_each_form() -> None:
    points = [
        CurvePoint(form, bound, 1 - bound, bound, bound, 0.0, (0.1, 0.2), Quality(8.0, 2 - bound, 0.9))
        for form in ("joint-encoding", "batch-fast-fusion")
        for bound in (0.5, 0.9)
    ]
    points.append(CurvePoint("rounded", 4, 0.0, 0.3, 0.3, 0.0, (0.0, 0.0), Quality(8.0, 0.01, 0.9)))
    drawing = fusion_picture({"apart": points, "a <b>": points})
    root = ElementTree.fromstring(drawing)
    names = [title.text for title in root.iter("{http://www.w3.org/2000/svg}title")]
    assert names.count("rounded") == 2  # in the two panels of quality only
    assert names.count("joint-encoding at 0.9") == 2
    assert "Prompts that share: a <b>. Layer by layer" in names


def test_the_docs_name_every_key() -> None:
    docs = (Path(__file__).parents[3] / "docs" / "fusion.md").read_text(encoding="utf-8")
    keys = {field.name for kind in (CurvePoint, Quality, MeasuredSet, PromptSizes) for field in fields(kind)}
    assert {key for key in keys if f"`{key}`" not in docs} == set()
    assert {name for name in (*FORMS, *PROMPT_SETS, *ENCODERS) if f"`{name}`" not in docs} == set()
