"""Collects rows into the columns of a trace. A row is kept only if all of it is right."""

from __future__ import annotations

import difflib
from array import array
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from headway.bench.traces.adapters import kept_apart
from headway.bench.traces.column_map import REQUIRED, ColumnMap
from headway.bench.traces.program_places import place_in_program, places_in_groups, stages_of
from headway.bench.traces.values import Fault, inside, reader_of, shown
from headway.bench.user_mistake import UserMistake
from headway.simulator.block_ids import BlockIds
from headway.simulator.trace import Trace

_DEFAULTS: dict[str, tuple[str, float]] = {
    "max_output": ("q", 0),
    "tenant": ("q", 0),
    "session": ("q", -1),
    "turn": ("q", 0),
    "think": ("d", np.nan),
    "deadline": ("d", np.nan),
    "tpot_deadline": ("d", np.nan),
    "end_deadline": ("d", np.nan),
    "program": ("q", -1),
    "stage": ("q", 0),
    "stages": ("q", 0),
    "program_deadline": ("d", np.nan),
    "ttft": ("d", np.nan),
    "e2e": ("d", np.nan),
    "priority": ("q", 0),
    "class": ("q", 0),
    "adapter": ("q", -1),
}
_BAD_AT_FIRST_MAX = 1_000  # so many bad lines without a good one: it is the file, not its lines
_OUTCOME_FIELD = "outcome"  # of our gateway's recording
_WITHOUT_LENGTH = ("refused", "failed", "cancelled")
_IMAGE_FIELD = "image_tokens"  # of the prompt, those that stand for images
_BLOCK_TOKENS = (512, *(1 << power for power in range(12, 2, -1) if power != 9))  # Mooncake's 512 wins a tie


class Rows:
    """Collects the rows of one file.

    Args:
        file_label: the file, as sentences name it.
        columns: which field is which column.
        skip_bad_lines: count bad lines instead of refusing the file.

    Attributes:
        columns: as given.
        place: what the numbers of rows count: lines, or requests where a line holds many.
    """

    def __init__(self, file_label: str, columns: ColumnMap, skip_bad_lines: bool) -> None:
        self._file = file_label
        self.columns = columns
        self.place = "line"
        self._skip = skip_bad_lines
        self._readers = {field: (column, reader_of(column, field, columns)) for column, field in columns.fields.items()}
        self._nested = [field for field in self._readers if "." in field]
        self._arrived, self._prompt, self._output, self._lines = array("d"), array("q"), array("q"), array("q")
        self._optional: dict[str, array[float]] = {}
        self._tenants: dict[str, int] = {}
        self._adapters: dict[str, int] = {}
        self._sessions: dict[str, int] = {}
        self._programs: dict[str, int] = {}
        self._last_turn: dict[int, int] = {}
        self._are_turns_given = False
        self._block_flat, self._block_ends = array("q"), array("q")
        self._read = 0
        self._with_images = 0
        self._skipped: Counter[str] = Counter()
        self._first_skipped: dict[str, int] = {}
        self._notes: list[str] = []
        self._left_out: Counter[str] = Counter()
        self._first_fault: tuple[int, Fault] | None = None
        self._bad_at_first = 0

    def add(self, line: int, record: Mapping[str, object]) -> None:
        """Keep one row.

        Raises:
            UserMistake: the row is bad, and bad lines are not skipped.
        """
        outcome = record.get(_OUTCOME_FIELD)
        if outcome in _WITHOUT_LENGTH and self.columns.fields["output"] not in record:
            self.leave_out(f"`{_OUTCOME_FIELD}` is {shown(outcome)}")
            return
        try:
            self._keep(line, self._checked(record))
        except Fault as fault:
            self.bad(line, fault)

    def bad(self, line: int, fault: Fault) -> None:
        """Count a bad line, or refuse the file for it.

        Before the first good line nothing is refused yet: to skip bad lines is no advice where no line is good.
        """
        if not self._skip:
            if self._lines:
                raise UserMistake(f"{self._file}: {self.place} {line}: {fault}")
            self._first_fault = self._first_fault or (line, fault)
            self._bad_at_first += 1
            if self._bad_at_first >= _BAD_AT_FIRST_MAX:
                raise self._none_good()
            return
        self._read += 1
        self._skipped[fault.rule] += 1
        self._first_skipped.setdefault(fault.rule, line)

    def note(self, sentence: str) -> None:
        """Tell the user something about the file."""
        self._notes.append(f"{self._file}: {sentence}")

    def leave_out(self, reason: str) -> None:
        """Count an entry of the file that is no request to replay."""
        self._left_out[reason] += 1

    def _none_good(self) -> UserMistake:
        assert self._first_fault is not None
        line, fault = self._first_fault
        return UserMistake(
            f"{self._file}: {self.place} {line}: {fault.sentence('no line up to here is right, so correct the file')}"
        )

    def _checked(self, record: Mapping[str, object]) -> dict[str, object]:
        values: dict[str, object] = {}
        for name, value in record.items():
            column_and_reader = self._readers.get(name)
            if column_and_reader is not None and value is not None:
                column, read = column_and_reader
                values[column] = read(value)
            elif name == _IMAGE_FIELD and value not in (None, "", "0", 0):
                self._with_images += 1
        for name in self._nested:
            if name not in record and (value := inside(record, name)) is not None:
                column, read = self._readers[name]
                values[column] = read(value)
        for column in REQUIRED:
            if column not in values:
                raise self._missing(column, record)
        if values.get("max_output", values["output"]) < values["output"]:  # type: ignore[operator]
            limit, output = self.columns.fields["max_output"], self.columns.fields["output"]
            raise Fault(f"`{limit}` is below `{output}`", shown(values["max_output"]))
        if values.get("e2e", values.get("ttft", 0)) < values.get("ttft", 0):  # type: ignore[operator]
            first, last = self.columns.fields["ttft"], self.columns.fields["e2e"]
            raise Fault(f"`{last}` is below `{first}`", shown(inside(record, last)))
        return values

    def _missing(self, column: str, record: Mapping[str, object]) -> Fault:
        field = self.columns.fields[column]
        free = [str(key) for key in record if key not in self._readers]  # what is another column is not meant
        near = difflib.get_close_matches(field, free, n=1, cutoff=0.7)
        if near and near[0] != field:
            return Fault(f"`{field}` is missing", fix=f"if `{near[0]}` is meant, give --columns {column}={near[0]}")
        return Fault(f"`{field}` is missing")

    def _keep(self, line: int, values: dict[str, object]) -> None:
        if "session" in values or "turn" in values:
            self._place_in_session(values)
        place_in_program(values, self.columns.fields, self._programs)
        if "tenant" in values:
            values["tenant"] = self._tenants.setdefault(values["tenant"], len(self._tenants))  # type: ignore[arg-type]
        name = values.pop("adapter", "")
        if name:  # an empty one is the base model
            values["adapter"] = self._adapters.setdefault(name, len(self._adapters))  # type: ignore[arg-type]
        if self._first_fault is not None:
            bad, fault = self._first_fault
            raise UserMistake(f"{self._file}: {self.place} {bad}: {fault}")
        self._read += 1
        self._lines.append(line)
        self._arrived.append(values.pop("arrival"))  # type: ignore[arg-type]
        self._prompt.append(values.pop("prompt"))  # type: ignore[arg-type]
        self._output.append(values.pop("output"))  # type: ignore[arg-type]
        self._keep_blocks(values.pop("prefix", None))
        for column in values.keys() - self._optional.keys():
            code, default = _DEFAULTS[column]
            self._optional[column] = array(code, [default]) * (len(self._lines) - 1)
        for column, kept in self._optional.items():
            kept.append(values.get(column, _DEFAULTS[column][1]))  # type: ignore[arg-type]

    def _keep_blocks(self, ids: object) -> None:
        if ids is not None:
            if not self._block_ends:
                self._block_ends.extend([0] * len(self._lines))
            self._block_flat.extend(ids)  # type: ignore[arg-type]
        if self._block_ends:
            self._block_ends.append(len(self._block_flat))

    def _place_in_session(self, values: dict[str, object]) -> None:
        fields = self.columns.fields
        if "session" not in values:
            raise Fault(f"`{fields['turn']}` is given without `{fields.get('session', 'session')}`")
        name = str(values["session"])
        session = self._sessions.get(name, len(self._sessions))
        last = self._last_turn.get(session, -1)
        self._are_turns_given = self._are_turns_given or "turn" in values
        turn = values.setdefault("turn", last + 1)
        if turn <= last:  # type: ignore[operator]
            again = "twice" if turn == last else "after a later turn"
            raise Fault(
                f"`{fields['turn']}` comes {again} in its session",
                f"turn {turn} of {shown(name)}",
                "number the turns of a session upwards in the order of the lines",
            )
        self._sessions[name] = values["session"] = session
        self._last_turn[session] = turn  # type: ignore[assignment]

    def trace(self, name: str) -> tuple[Trace, npt.NDArray[np.int64], list[str]]:
        """The trace, the line of each request, and notes for the user.

        Raises:
            UserMistake: there is no good row; the rows do not fit together.
        """
        if self._first_fault is not None:
            raise self._none_good()
        if not self._lines:
            raise UserMistake(f"{self._file}: holds no request; {self._why_none()}")
        arrived = np.array(self._arrived)
        order = np.argsort(arrived, kind="stable")
        lines, arrived = np.array(self._lines, dtype=np.int64)[order], arrived[order]
        notes = [
            *self._notes,
            *self._left_out_notes(),
            *self._skipped_notes(),
            *self._sorted_notes(order),
            *self._image_notes(),
        ]
        optional: dict[str, Any] = {column: np.array(kept)[order] for column, kept in self._optional.items()}
        optional |= self._closed_loop(optional, lines, notes)
        prompt = np.array(self._prompt, dtype=np.int64)[order]
        blocks = self._blocks(order)
        think = optional.get("think")
        trace = Trace(
            name=name,
            arrived_seconds=arrived - arrived[0],
            prompt_tokens=prompt,
            output_tokens=np.array(self._output, dtype=np.int64)[order],
            max_output_tokens=optional.get("max_output"),
            tenant=optional.get("tenant"),
            tenants=tuple(self._tenants) or ("",),
            session=optional.get("session"),
            turn=optional.get("turn"),
            think_seconds=think,
            prefix_ids=blocks,
            prefix_block_tokens=512 if blocks is None else self._block_tokens(prompt, blocks.lengths(), lines),
            deadline_seconds=optional.get("deadline"),
            tpot_deadline_seconds=optional.get("tpot_deadline"),
            end_deadline_seconds=optional.get("end_deadline"),
            program=optional.get("program"),
            stage=stages_of(optional),
            stages=optional.get("stages"),
            program_deadline_seconds=optional.get("program_deadline"),
            priority=optional.get("priority"),
            offline=None if "class" not in optional else optional["class"] == 1,
            adapter=optional.get("adapter"),
            adapters=tuple(self._adapters),
            **_measured(optional),
        )
        return kept_apart(trace), lines, notes

    def _blocks(self, order: npt.NDArray[np.int64]) -> BlockIds | None:
        if not self._block_ends:
            return None
        blocks = BlockIds(np.array(self._block_flat), np.array(self._block_ends))
        return blocks if _is_in_order(order) else blocks.take(order)

    def _why_none(self) -> str:
        if self._left_out and not self._skipped:
            reason, count = self._left_out.most_common(1)[0]
            return f"{count:,} entries are left out because {reason}"
        if not self._skipped:
            return "a trace needs at least one"
        rule, count = self._skipped.most_common(1)[0]
        return f"all {self._read} lines were bad, {count} of them because {rule}"

    def _skipped_notes(self) -> list[str]:
        if not self._skipped:
            return []
        reasons = "; ".join(
            f"{count} because {rule} (first at line {self._first_skipped[rule]})"
            for rule, count in self._skipped.most_common()
        )
        return [f"{self._file}: {self._skipped.total()} of {self._read} lines skipped: {reasons}"]

    def _left_out_notes(self) -> list[str]:
        return [
            f"{self._file}: {count:,} {'entry is' if count == 1 else 'entries are'} left out because {reason}"
            for reason, count in self._left_out.most_common()
        ]

    def _sorted_notes(self, order: npt.NDArray[np.int64]) -> list[str]:
        if _is_in_order(order):
            return []
        late = int((np.diff(np.array(self._arrived)) < 0).sum())
        return [
            f"{self._file}: requests are sorted by `{self.columns.fields['arrival']}`; {late:,} of {len(order):,} "
            "lines were before the line above, as in a log that is written when a request ends"
        ]

    def _image_notes(self) -> list[str]:
        if not self._with_images:
            return []
        return [
            f"{self._file}: {self._with_images} requests have images, which count as prompt tokens only; the encoder's "
            "time, and vLLM's encoder budget and cache, are not simulated"
        ]

    def _closed_loop(self, optional: dict[str, Any], lines: npt.NDArray[np.int64], notes: list[str]) -> dict[str, Any]:
        """Sessions ready for a closed loop: turns renumbered 0, 1, 2, ... and a pause before each follow-up.

        Where the file gives no pause at all the sessions are left out, so that a replay takes the file's own times.
        """
        if "session" not in optional:
            return {"turn": None, "think": None}
        session, turn = optional["session"], places_in_groups(optional["session"])
        if self._are_turns_given:
            self._check_turns(session, optional["turn"], lines)
        else:
            optional["turn"] = turn
        think = optional.get("think")
        if think is None:
            notes.append(
                f"{self._file}: sessions have no pause before a follow-up, so every request is replayed at its own time"
            )
            return {"session": None, "turn": None, "think": None}
        unknown = (turn > 0) & np.isnan(think)
        if unknown.any():
            raise UserMistake(
                f"{self._file}: {self.place} {lines[unknown.argmax()]}: a follow-up turn has no "
                f"`{self.columns.fields['think']}`; give it in every follow-up, or in none for an open loop"
            )
        gaps = int(np.unique(session[(session >= 0) & (turn != optional["turn"])]).size)
        if gaps:
            notes.append(f"{self._file}: {gaps} sessions lack some turns; their turns are renumbered in order")
        return {"turn": turn, "think": np.where(turn > 0, think, 0.0)}

    def _check_turns(
        self, session: npt.NDArray[np.float64], turn: npt.NDArray[np.float64], lines: npt.NDArray[np.int64]
    ) -> None:
        grouped = np.argsort(session, kind="stable")
        follows = (np.diff(session[grouped]) == 0) & (session[grouped][1:] >= 0)
        back = follows & (np.diff(turn[grouped]) <= 0)
        if back.any():
            raise UserMistake(
                f"{self._file}: {self.place} {lines[grouped[1:][back][0]]}: `{self.columns.fields['turn']}` does not "
                f"go upwards with `{self.columns.fields['arrival']}` in its session; number the turns by arrival"
            )

    def _block_tokens(
        self, prompt: npt.NDArray[np.int64], counts: npt.NDArray[np.int64], lines: npt.NDArray[np.int64]
    ) -> int:
        """Tokens in a block: as given, or the size at which most prompts have exactly as many ids as they need."""
        given = self.columns.prefix_block_tokens
        some = counts > 0
        exact = {size: int((counts == -(-prompt // size))[some].sum()) for size in _BLOCK_TOKENS}
        size = given or max(exact, key=exact.__getitem__)
        field = self.columns.fields["prefix"]
        if given is None and 2 * exact[size] < some.sum():
            raise UserMistake(
                f"{self._file}: the lengths of `{field}` fit no block size; name it, as in --columns prefix_block=512"
            )
        over = counts > -(-prompt // size)
        if over.any():
            row = int(over.argmax())
            raise UserMistake(
                f"{self._file}: {self.place} {lines[row]}: `{field}` has {counts[row]} ids, but {prompt[row]:,} tokens "
                f"are {-(-int(prompt[row]) // size)} blocks of {size}; correct it, or give --columns prefix_block="
            )
        return size


def _is_in_order(order: npt.NDArray[np.int64]) -> bool:
    return bool((np.diff(order) > 0).all())


def _measured(optional: Mapping[str, Any]) -> dict[str, Any]:
    """The measured times of requests that have both."""
    if "ttft" not in optional or "e2e" not in optional:
        return {}
    both = ~(np.isnan(optional["ttft"]) | np.isnan(optional["e2e"]))
    return {f"measured_{name}_seconds": np.where(both, optional[name], np.nan) for name in ("ttft", "e2e")}
