"""The scheduler's half of fusion inside vLLM (experimental): which blocks to compare, and who shares those alike.

After a step's forward pass the worker compares full blocks of prompts at equal places, and writes means into spare
blocks. When the step has come back, table entries are moved to what was accepted, and blocks that no entry points to
are free. The next step carries the whole tables. Laws:

- Only full blocks of computed prompts are fused, so no decode writes to a shared one. Nothing that a request holds or a
  prefix cache promises is altered: a mean goes into a block that no request has.
- Each block is fused once. A representative is joined as it is, and never changes while an entry points to it.
- A fused request hashes its blocks under a salt of its own, so none of what it computes is found by others. After a
  preemption it is exact again, and has its old salt back.
- Requests share only with those of the same cache salt and adapter. A client keeps its request out by a hint.
- A fault ends fusion until the engine restarts; no request is lost, and none is fused any more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar
from uuid import uuid4

from headway.domain.engine_hints import EXACT_KV
from headway.vllm_plugin import block_tables
from headway.vllm_plugin import vllm_adapter as vllm
from headway.vllm_plugin.block_tables import BlockTables
from headway.vllm_plugin.config import FusionSettings
from headway.vllm_plugin.fusion_messages import FusedBlock, FusionOrder, FusionReport, PlaceOrder
from headway.vllm_plugin.plugin_log import logger
from headway.vllm_plugin.vllm_adapter import VllmRequest

PLACE_BLOCKS = 64  # blocks compared at one place in a step: their products grow with the square
MEANS_AT_A_PLACE = 2  # new representatives at one place and step


_Answer = TypeVar("_Answer")


@dataclass(slots=True)
class _Member:
    """A running request whose prompt is computed."""

    request: VllmRequest
    domain: tuple[object, ...]
    prompt_blocks: int
    compared: int = 0  # its blocks before this one were compared
    fused: dict[int, Any] = field(default_factory=dict)  # place → the representative that its table points to
    own_salt: str | None = None


@dataclass(frozen=True, slots=True)
class _Asked:
    """An order that the worker has, with what is needed to carry it through."""

    places: tuple[int, ...]  # where in their prompts its blocks are; which prompts, the blocks themselves say
    spares: dict[int, Any]  # block id → block, held by us


class BlockSharing:
    """Fusion in one engine."""

    def __init__(self, settings: FusionSettings, tables: BlockTables, block_tokens: int) -> None:
        self._settings, self._tables, self._block_tokens = settings, tables, block_tokens
        self._members: dict[str, _Member] = {}
        self._asked: _Asked | None = None
        self._report: FusionReport | None = None
        self._tables_to_send: set[str] = set()
        self.on = True
        self.compared_blocks = self.fused_blocks = self.freed_blocks = 0

    @property
    def shared_entries(self) -> int:
        """Blocks that fused requests do without now: their entries, less the representatives."""
        places = [block.block_id for member in self._members.values() for block in member.fused.values()]
        return len(places) - len(set(places))

    # called in this order in each step ------------------------------------------------------------------------------

    def order(self, output: Any) -> FusionOrder | None:
        """What the worker shall compare after this step's forward pass; `output` is what vLLM schedules in it."""
        if not self.on or self._asked is not None:
            return None
        return self._contained(lambda: self._next_order(output))

    def after_schedule(self, output: Any) -> None:
        """Send the worker the whole tables of requests whose entries were moved."""
        if self._tables_to_send:
            self._tables.send_whole_tables(output, self._tables_to_send)

    def heard(self, report: FusionReport) -> None:
        """The worker has answered; called by the connector."""
        self._report = report

    def after_update(self) -> None:
        """The step has come back: share what the worker accepted."""
        if self._asked is not None:
            asked, report, self._asked, self._report = self._asked, self._report, None, None
            self._contained(lambda: self._carry_all_through(asked, report))
            self._tables.give_back(asked.spares.values())

    def ended(self, request: VllmRequest) -> _Member | None:
        """A request has no blocks any more. Returns what was known of it."""
        self._tables_to_send.discard(request.request_id)
        return self._members.pop(request.request_id, None)

    def preempted(self, request: VllmRequest) -> None:
        """A request is about to lose its blocks: what it computes anew will be exact, so its old hashes hold again."""
        member = self.ended(request)
        if member is not None and member.fused:
            vllm.set_cache_salt(request, member.own_salt)

    def end(self, reason: str) -> None:
        """Fuse no more until the engine restarts."""
        if self.on:
            self.on = False
            logger.error("headway: fusion failed and is off until the engine restarts: %s", reason)

    # ----------------------------------------------------------------------------------------------------------------

    def _contained(self, act: Callable[[], _Answer]) -> _Answer | None:
        """Act; an exception ends fusion instead of the engine."""
        try:
            return act()
        except Exception as error:
            self.end(f"{type(error).__name__}: {error}")
            return None

    def _carry_all_through(self, asked: _Asked, report: FusionReport | None) -> None:
        if report is None or report.fault:
            self.end(f"the worker {'gave no answer' if report is None else 'failed, ' + report.fault}")
        elif self.on:
            for fused in report.fused:
                self._carry_through(fused, asked)

    def _note(self, request: VllmRequest) -> None:
        full = block_tables.full_prompt_blocks(request, self._block_tokens)
        if full and block_tables.may_be_fused(request) and not keeps_exact(vllm.extra_arguments(request)):
            self._members[request.request_id] = _Member(request, block_tables.domain_of(request), full)

    def _next_order(self, output: Any) -> FusionOrder | None:
        block_tables.check_output(output)
        for request in self._tables.running:
            if request.request_id not in self._members:
                self._note(request)
        spares_left = self._tables.free_blocks // 2  # the rest is for those who need it now
        blocks_left, spares_wanted = self._settings.blocks_per_step, 0
        keys: list[int] = []
        places: list[PlaceOrder] = []
        looked_at: set[tuple[object, int]] = set()
        for member in self._members.values():
            while member.compared < member.prompt_blocks and blocks_left > 0:
                domain, at = member.domain, member.compared
                if (domain, at) in looked_at:
                    break  # what did not fit there comes in the next step
                here = [one for one in self._members.values() if one.domain == domain and one.prompt_blocks > at]
                found, seen = self._place_order(here, at)
                means = min(MEANS_AT_A_PLACE, (len(found.blocks) - found.kept) // 2)
                if spares_wanted + means > spares_left:
                    break  # until more blocks are free
                looked_at.add((domain, at))
                for one in seen:
                    one.compared += one.compared == at
                blocks_left -= max(1, len(found.blocks))  # to find that a block has no like takes time too
                if len(found.blocks) > max(found.kept, 1):
                    keys.append(at)
                    places.append(found)
                    spares_wanted += means
        if not places:
            return None
        spares = self._tables.take(spares_wanted)
        self._asked = _Asked(tuple(keys), {block.block_id: block for block in spares})
        self.compared_blocks += sum(len(one.blocks) - one.kept for one in places)
        return FusionOrder(tuple(places), tuple(self._asked.spares), self._settings.bound)

    def _place_order(self, here: Sequence[_Member], at: int) -> tuple[PlaceOrder, list[_Member]]:
        """Blocks at one place of these requests' prompts, representatives first, and whose they are.

        Where there are too many, blocks that were not compared yet go before those that found no like.
        """
        holders: dict[int, int] = {}
        refs: dict[int, int] = {}
        kept: set[int] = set()
        seen: list[_Member] = []
        for member in sorted(here, key=lambda one: (at not in one.fused, one.compared > at)):
            block = self._block(member, at)
            number, is_kept = block.block_id, at in member.fused
            if number in holders or len(holders) < (PLACE_BLOCKS // 2 if is_kept else PLACE_BLOCKS):
                holders[number], refs[number] = holders.get(number, 0) + 1, block.ref_cnt
                seen.append(member)
                if is_kept:
                    kept.add(number)
        ours = [one for one in holders if one not in kept and refs[one] == holders[one]]  # others' would not be free
        chosen = [*(one for one in holders if one in kept), *ours]
        return PlaceOrder(tuple(chosen), tuple(holders[one] for one in chosen), len(kept)), seen

    def _carry_through(self, fused: FusedBlock, asked: _Asked) -> None:
        """Move the entries that still point to the members."""
        at = asked.places[fused.place]
        here = [one for one in self._members.values() if one.prompt_blocks > at]
        moves = [one for one in here if self._block(one, at).block_id in fused.members]
        members = {self._block(one, at).block_id for one in moves}
        target = asked.spares.get(fused.target)
        if target is None:
            target = next((one.fused[at] for one in here if at in one.fused and _is(one.fused[at], fused)), None)
        elif len(members) < 2:
            return  # those that were alike have left
        if target is None or not members:
            return
        free_before = self._tables.free_blocks
        for one in moves:
            if not one.fused:
                one.own_salt = vllm.cache_salt(one.request)
                vllm.set_cache_salt(one.request, f"headway-fused-{uuid4().hex}")
            one.fused[at] = target
            self._tables_to_send.add(one.request.request_id)
            self._tables.point(one.request, at, target)
        self.fused_blocks += len(members)
        self.freed_blocks += self._tables.free_blocks - free_before - (fused.target in asked.spares)

    def _block(self, member: _Member, at: int) -> Any:
        return self._tables.of(member.request)[at]


def keeps_exact(arguments: object) -> bool:
    """Whether a client's `vllm_xargs` keep its request's KV exact: any value of the hint but false and 0 does."""
    return isinstance(arguments, Mapping) and arguments.get(EXACT_KV) not in (None, False, 0)


def _is(block: Any, fused: FusedBlock) -> bool:
    return bool(block.block_id == fused.target)
