"""`headway fusion …`: what sharing alike KV blocks frees on a real model, and what it costs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from headway.cli import command_options as options

app = typer.Typer(help="Measure KV-block fusion (experimental).", no_args_is_help=False, rich_markup_mode=None)


@app.callback()
def fusion() -> None:
    """Measure KV-block fusion (experimental)."""


@app.command("measure")
def measure(
    model: Annotated[str, typer.Argument(help="A folder with a Hugging Face checkpoint; it runs on the CPU.")],
    texts: Annotated[list[Path], typer.Argument(metavar="TEXT…", help="Text files that the prompts are cut from.")],
    share: Annotated[
        list[str] | None,
        typer.Option(metavar="WHAT", help="What prompts share: apart (nothing), template, documents; default all."),
    ] = None,
    form: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FORM",
            help="joint-encoding, batch-fast-fusion (both by default), any-place, keys-alone, values-alone, "
            "halves-apart, single-heads, all-layers or unscaled.",
        ),
    ] = None,
    bounds: Annotated[
        str, typer.Option(metavar="COSINE,…", help="Bounds to try, each above 0 and at most 1.")
    ] = "0.95,0.9,0.85,0.8,0.75",
    rounded_bits: Annotated[
        str, typer.Option(metavar="BITS,…", help="The control: nothing shared, each number rounded to these many bits.")
    ] = "4,3,2",
    prompts: Annotated[int, typer.Option(min=2, metavar="N", help="Prompts of each kind.")] = 16,
    prompt_tokens: Annotated[int, typer.Option(min=1, metavar="N", help="Tokens of each that are encoded.")] = 192,
    scored_tokens: Annotated[int, typer.Option(min=2, metavar="N", help="Tokens after them that are scored.")] = 32,
    block_tokens: Annotated[int, typer.Option(min=1, metavar="N", help="Tokens in a KV block.")] = 16,
    seed: options.Seed = 0,
    json: options.JsonFile = None,
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write memory against quality, and layer by layer, as SVG.")
    ] = None,
) -> None:
    """Measure what KV-block fusion frees and what it does to a model's next tokens.

    Prompts are cut from the texts. Their KV is encoded and decoded, and the model goes on from there over the text's
    own next tokens, beside a run with exact KV.
    """
    from headway.cli.fusion_run import Measurement, run_measurement

    run_measurement(
        Measurement(
            model, texts, share, form, bounds, rounded_bits, prompts, prompt_tokens, scored_tokens, block_tokens, seed
        ),
        json=json,
        picture=picture,
    )
