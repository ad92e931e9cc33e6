"""Places of requests in their programs and sessions, as the rows of a file give them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from headway.bench.traces.values import Fault, shown


def place_in_program(values: dict[str, object], fields: Mapping[str, str], programs: dict[str, int]) -> None:
    """Put the number of its program in the place of its name.

    Args:
        values: of one row, by our column.
        fields: our column -> the file's field.
        programs: name -> number, of the programs so far; a new one is added.

    Raises:
        Fault: the row has a place in a program and names none, or its stage is beyond the last.
    """
    if "program" not in values:
        alone = next((column for column in ("stage", "stages", "program_deadline") if column in values), None)
        if alone is not None:
            raise Fault(f"`{fields[alone]}` is given without `{fields.get('program', 'program')}`")
        return
    stages = values.get("stages")
    if stages is not None and values.get("stage", 1) > stages:  # type: ignore[operator]
        raise Fault(f"`{fields['stage']}` is above `{fields['stages']}`", shown(values["stage"]))
    values["program"] = programs.setdefault(str(values["program"]), len(programs))


def stages_of(optional: Mapping[str, Any]) -> npt.NDArray[np.int64] | None:
    """The stages of requests in programs: as given, else their places in the order of arrival, from 1."""
    if "program" not in optional:
        return None
    program = optional["program"]
    counted: npt.NDArray[np.int64] = np.where(program >= 0, places_in_groups(program) + 1, 0)
    given = optional.get("stage")
    return counted if given is None else np.where((program >= 0) & (given == 0), counted, given)


def places_in_groups(group: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """For each row how many rows of the same session or program stand above it; 0 outside them."""
    order = np.argsort(group, kind="stable")
    grouped = group[order]
    starts = np.flatnonzero(np.r_[True, grouped[1:] != grouped[:-1]])
    places = np.empty(len(group), dtype=np.int64)
    places[order] = np.arange(len(group)) - np.repeat(starts, np.diff(np.r_[starts, len(group)]))
    return np.where(group >= 0, places, 0)
