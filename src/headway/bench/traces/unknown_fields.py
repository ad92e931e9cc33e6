"""What to tell the user of a file whose fields are not known: the fields, and a `--columns` line to copy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from headway.bench.traces.column_map import REQUIRED

_FIELDS_SHOWN_MAX = 300  # characters
# Words of names that programs give to these three, the surest first.
_GUESSES: dict[str, tuple[str, ...]] = {
    "arrival": ("arriv", "start", "created", "timestamp", "request_time", "received", "time", "date", "ts"),
    "prompt": ("prompt_tok", "input_tok", "prompt_len", "input_len", "prompt", "input", "tokens_in", "in_tok"),
    "output": (
        "completion_tok", "output_tok", "output_len", "generated", "completion", "output", "tokens_out", "out_tok",
        "response_tok",
    ),
}  # fmt: skip


def unknown_fields(label: str, record: Mapping[str, object]) -> str:
    """The sentence about a file whose first record this is."""
    fields = dict(_flat(record))
    shown = ", ".join(fields)
    if len(shown) > _FIELDS_SHOWN_MAX:
        shown = shown[:_FIELDS_SHOWN_MAX].rpartition(",")[0] + ", ..."
    return (
        f"{label}: its fields are {shown}, which is no known format; name three of them with "
        f"{columns_line(fields)}, in seconds, dates or arrival_ms=; docs/your-logs.md lists the logs that are known"
    )


def columns_line(fields: Mapping[str, object]) -> str:
    """`--columns arrival=...,prompt=...,output=...` with the fields that are probably meant, `...` for the others."""
    pairs = []
    free = list(fields)
    for column in REQUIRED:
        guess = next((name for word in _GUESSES[column] for name in free if _means(name, word, fields[name])), None)
        if guess is not None:
            free.remove(guess)
        pairs.append(f"{column}={guess or '...'}")
    return f"--columns {','.join(pairs)}"


def _means(name: str, word: str, value: object) -> bool:
    plain = name.rpartition(".")[2].lower()
    has_word = plain == word if len(word) < 3 else word in plain.replace("-", "_")
    is_length = word not in _GUESSES["arrival"]
    # A length is a number, perhaps in quotes; where only names are known every field may be one.
    return has_word and not (is_length and isinstance(value, str) and not value.strip().isdecimal() and value != "")


def _flat(record: Mapping[str, object], above: str = "") -> Iterator[tuple[str, object]]:
    for name, value in record.items():
        if isinstance(value, Mapping) and above.count(".") < 4:
            yield from _flat(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value
