"""Fusion inside vLLM, without vLLM: what is shared, what never changes, and that a fault leaves all exact."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from headway.fusion.kv_blocks import Floats
from headway.fusion.unscaled_groups import squared_error_allowed
from headway.vllm_plugin import block_tables
from headway.vllm_plugin.block_sharing import PLACE_BLOCKS, BlockSharing, keeps_exact
from headway.vllm_plugin.block_tables import refuse_fusion
from headway.vllm_plugin.config import read_config
from headway.vllm_plugin.scheduler_mixin import PolicyScheduling
from tests.support.fused_engine import BLOCK_TOKENS, LAYERS, WIDTH, FusedEngine, Request
from tests.support.vllm_stub import StubEngine


def drawn(seed: int, tokens: int) -> Floats:
    """The first tokens of a text: the same for any number of them."""
    return np.random.default_rng(seed).standard_normal((LAYERS, 2, 64, WIDTH)).astype(np.float32)[:, :, :tokens]


def alike(seed: int, tokens: int = 26, noise: float = 0.05) -> Floats:
    """KV that differs from others' by a little in each number."""
    return np.asarray(drawn(0, tokens) + noise * drawn(1000 + seed, tokens), np.float32)


def requests(count: int, kv: Callable[[int], Floats] = alike, **more: Any) -> list[Request]:
    return [Request(f"r{number}", kv(number), 8, more.pop("salt", None), **more) for number in range(count)]


def within_bound(engine: FusedEngine, one: Request, bound: float) -> bool:
    """Whether each block that it reads is off by at most what the bound allows, in each layer and half."""
    read = engine.read(one)
    for start in range(0, read.shape[2], BLOCK_TOKENS):
        span = slice(start, min(start + BLOCK_TOKENS, read.shape[2]))
        exact = one.kv[:, :, span]
        errors = ((read[:, :, span] - exact) ** 2).sum(axis=(2, 3))
        if (errors > squared_error_allowed(bound) * (exact**2).sum(axis=(2, 3)) + 1e-6).any():
            return False
    return True


def books_balance(engine: FusedEngine) -> bool:
    """Reference counts are table entries, and every other block is free."""
    entries = Counter(block.block_id for table in engine.tables.values() for block in table)
    held = {block.block_id: block.ref_cnt for block in engine.pool.blocks if block.ref_cnt}
    return held == dict(entries) and engine.pool.get_num_free_blocks() == len(engine.pool.blocks) - len(held)


def test_alike_prompts_are_kept_once_and_their_blocks_are_free() -> None:
    engine = FusedEngine()
    for one in requests(3):
        engine.admit(one)
    engine.step()
    before = engine.pool.get_num_free_blocks()
    engine.step()  # their prompts of 18 tokens, 4 full blocks each, are compared
    assert (engine.sharing.compared_blocks, engine.sharing.fused_blocks, engine.sharing.freed_blocks) == (12, 12, 8)
    assert engine.pool.get_num_free_blocks() == before + 8
    assert engine.sharing.shared_entries == 8
    engine.step()
    tables = [engine.sent[one.request_id] for one in engine.running]
    assert tables[0][:4] == tables[1][:4] == tables[2][:4]
    assert len({table[4] for table in tables}) == 3, "the block that decode writes to is each one's own"
    assert all(within_bound(engine, one, 0.95) for one in engine.running)
    assert books_balance(engine)


def test_one_that_comes_later_joins_and_the_representative_stays() -> None:
    engine = FusedEngine()
    first, second, third = requests(3)
    engine.admit(first)
    engine.admit(second)
    engine.step()
    engine.step()
    kept = [block.block_id for block in engine.tables["r0"][:4]]
    bytes_before = [layer.halves[kept].copy() for layer in engine.layers]
    engine.admit(third)
    for _ in range(3):
        engine.step()
    assert [block.block_id for block in engine.tables["r2"][:4]] == kept
    for layer, before in zip(engine.layers, bytes_before, strict=True):
        np.testing.assert_array_equal(layer.halves[kept], before)
    assert all(within_bound(engine, one, 0.95) for one in engine.running)


def test_one_whose_like_ends_meanwhile_stays_exact() -> None:
    engine = FusedEngine()
    engine.admit(Request("ends", alike(0, 20), 2, None))
    stays = Request("stays", alike(1), 8, None)
    engine.admit(stays)
    engine.step()
    engine.step()  # compares both, and is the last of one
    assert engine.sharing.compared_blocks == 8
    assert (engine.sharing.fused_blocks, stays.cache_salt) == (0, None)
    engine.step()
    np.testing.assert_array_equal(engine.read(stays), stays.kv[:, :, : stays.num_computed_tokens])
    assert books_balance(engine)


def test_clients_that_leave_right_after_are_forgotten() -> None:
    engine = FusedEngine()
    first, second = requests(2)
    engine.admit(first)
    engine.admit(second)
    engine.step()
    engine.step()
    assert engine.sharing._tables_to_send == {"r0", "r1"}
    engine.end(first)
    assert engine.sharing._tables_to_send == {"r1"}
    engine.step()
    assert not engine.sharing._tables_to_send
    assert engine.sharing.shared_entries == 0
    assert books_balance(engine)


def test_prompts_that_are_not_alike_stay_exact() -> None:
    engine = FusedEngine()
    for one in requests(4, lambda seed: drawn(seed, 26)):
        engine.admit(one)
    for _ in range(4):
        engine.step()
    assert engine.sharing.compared_blocks == 16
    assert engine.sharing.fused_blocks == 0
    for one in engine.running:
        np.testing.assert_array_equal(engine.read(one), one.kv[:, :, : one.num_computed_tokens])
        assert one.cache_salt is None


@pytest.mark.parametrize("seed", range(12))
def test_a_day_of_arrivals_ends_and_preemptions(seed: int) -> None:
    """Laws of every step: reference counts are table entries, what is read is within the bound, shared bytes stay."""
    chance = random.Random(seed)
    bound = chance.choice([0.8, 0.95, 0.99])
    engine = FusedEngine(bound, blocks=chance.choice([60, 200]), blocks_per_step=chance.choice([4, 64]))
    waiting = [
        Request(
            f"r{number}",
            alike(chance.randrange(3), chance.randrange(12, 40), chance.choice([0.0, 0.1, 0.4]))
            if chance.random() < 0.8
            else drawn(number, 30),
            chance.randrange(1, 9),
            None,
        )
        for number in range(30)
    ]
    shared: dict[int, bytes] = {}
    fused = 0
    while waiting or engine.running:
        while waiting and len(engine.running) < 5 and chance.random() < 0.6:
            engine.admit(waiting.pop())
        engine.step()
        if engine.running and chance.random() < 0.1:
            engine.preempt(chance.choice(engine.running))
        assert books_balance(engine)
        for one in engine.running:
            if one.num_computed_tokens and not engine.sharing._tables_to_send & {one.request_id}:
                assert within_bound(engine, one, bound)
        now = {
            number: b"".join(layer.halves[number].tobytes() for layer in engine.layers)
            for number, block in enumerate(engine.pool.blocks)
            if block.ref_cnt > 1
        }
        assert all(now[number] == shared[number] for number in now.keys() & shared.keys())
        shared, fused = now, engine.sharing.fused_blocks
    assert engine.sharing.on
    assert fused > 0
    assert engine.pool.get_num_free_blocks() == len(engine.pool.blocks)
    assert not engine.sharing._tables_to_send
    assert not engine.sharing._members


def test_a_fused_request_has_a_salt_of_its_own_until_it_is_preempted() -> None:
    engine = FusedEngine()
    first, second = requests(2)
    engine.admit(first)
    engine.admit(second)
    engine.step()
    engine.step()
    salts = {first.cache_salt, second.cache_salt}
    assert len(salts) == 2
    assert all(str(salt).startswith("headway-fused-") for salt in salts)
    assert first.block_hashes == [f"under {first.cache_salt}"]
    engine.preempt(first)
    assert (first.cache_salt, first.block_hashes) == (None, ["under None"])
    engine.step()
    np.testing.assert_array_equal(engine.read(first), first.kv[:, :, : first.num_computed_tokens])


def test_clients_with_other_salts_or_adapters_share_nothing() -> None:
    engine = FusedEngine()
    for number, salt in enumerate(("a", "b", None)):
        engine.admit(Request(f"r{number}", alike(number), 8, salt))
    with_adapter = Request("r3", alike(3), 8, None)
    with_adapter.lora_request = SimpleNamespace(lora_int_id=1)  # type: ignore[attr-defined]
    engine.admit(with_adapter)
    for _ in range(3):
        engine.step()
    assert engine.sharing.compared_blocks == 0
    engine.admit(Request("r4", alike(4), 8, "a"))
    engine.step()
    engine.step()
    assert engine.sharing.fused_blocks == 8


def test_a_request_may_stay_exact_by_a_hint() -> None:
    engine = FusedEngine()
    engine.admit(Request("exact", alike(0), 8, None, headway_exact_kv=True))
    engine.admit(Request("fused", alike(1), 8, None))
    engine.admit(Request("fused too", alike(2), 8, None, headway_exact_kv=False))
    for _ in range(3):
        engine.step()
    assert {block.ref_cnt for block in engine.tables["exact"]} == {1}
    assert engine.sharing.fused_blocks == 8


def test_what_a_hint_may_be() -> None:
    assert [keeps_exact({"headway_exact_kv": value}) for value in (True, 1, "yes", [1])] == [True] * 4
    assert not any(keeps_exact(given) for given in ({"headway_exact_kv": False}, {"headway_exact_kv": 0}, {}, None, 7))


def test_a_block_that_others_hold_too_is_left_alone() -> None:
    """A prefix hit of a request that stays exact: giving the block up would free nothing."""
    engine = FusedEngine()
    first, second = requests(2)
    engine.admit(first)
    engine.admit(second)
    engine.step()
    engine.pool.touch(engine.tables["r0"][:1])
    engine.step()
    assert engine.sharing.fused_blocks == 6
    engine.pool.free_blocks([engine.tables["r0"][0]])


def test_no_means_are_written_where_memory_is_full() -> None:
    engine = FusedEngine(blocks=11)
    for one in requests(2):
        engine.admit(one)
    for _ in range(3):
        engine.step()  # ten of eleven blocks are in use
    assert engine.sharing.compared_blocks == 0
    assert engine.sharing.on


def test_alike_prompts_are_found_behind_more_of_no_like_than_one_step_compares() -> None:
    engine = FusedEngine(blocks=2000)
    for one in requests(PLACE_BLOCKS + 6, lambda number: drawn(500 + number, 50)):
        one.output, one.prompt = 32, 18
        engine.admit(one)
    for _ in range(6):
        engine.step()
    for number in range(2):
        engine.admit(Request(f"alike {number}", alike(number), 8, None))
    for _ in range(3):
        engine.step()
    assert engine.sharing.fused_blocks == 8
    assert books_balance(engine)


def test_more_alike_prompts_than_one_step_compares_are_all_kept_once() -> None:
    engine = FusedEngine(blocks=2000)
    count = PLACE_BLOCKS + 6
    for one in requests(count, lambda number: alike(number, 42)):
        one.output, one.prompt = 24, 18
        engine.admit(one)
    for _ in range(10):
        engine.step()
    tables = [[block.block_id for block in engine.tables[f"r{number}"][:4]] for number in range(count)]
    assert all(table == tables[0] for table in tables)
    assert books_balance(engine)


def test_prompts_that_have_no_like_take_no_longer_in_one_step(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at = []
    place_order = BlockSharing._place_order

    def counted(self: BlockSharing, here: Any, at: int) -> Any:
        looked_at.append(at)
        return place_order(self, here, at)

    monkeypatch.setattr(BlockSharing, "_place_order", counted)
    engine = FusedEngine(blocks_per_step=8)
    engine.admit(Request("alone", alike(0, 60), 20, "a salt"))  # ten full blocks
    engine.admit(Request("also alone", alike(1, 60), 20, "another"))
    engine.step()
    for places in (8, 8, 4, 0):
        looked_at.clear()
        engine.step()
        assert len(looked_at) == places
    engine.admit(Request("its like", alike(2, 60), 20, "a salt"))
    for _ in range(6):
        engine.step()
    assert engine.sharing.fused_blocks == 20
    assert books_balance(engine)


def fails(*given: Any) -> Any:
    raise KeyError("nothing there")


@pytest.mark.parametrize(
    ("where", "name"),
    [
        (BlockSharing, "_place_order"),
        (BlockSharing, "_carry_through"),
        (block_tables, "check_output"),
    ],
)
def test_a_fault_ends_fusion_and_loses_nothing(
    where: Any, name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine = FusedEngine()
    for one in requests(3):
        engine.admit(one)
    monkeypatch.setattr(where, name, fails)
    for _ in range(3):
        engine.step()
    assert not engine.sharing.on
    assert len([line for line in caplog.messages if "fusion failed and is off" in line]) == 1
    for one in engine.running:
        np.testing.assert_array_equal(engine.read(one), one.kv[:, :, : one.num_computed_tokens])
    assert books_balance(engine)


def test_a_worker_that_does_not_answer_ends_fusion(caplog: pytest.LogCaptureFixture) -> None:
    engine = FusedEngine()
    engine.report_lost = True
    for one in requests(2):
        engine.admit(one)
    for _ in range(3):
        engine.step()
    assert not engine.sharing.on
    assert "the worker gave no answer" in caplog.text
    assert books_balance(engine)


def test_a_worker_that_fails_ends_fusion(caplog: pytest.LogCaptureFixture) -> None:
    engine = FusedEngine()
    for one in requests(2):
        engine.admit(one)
    engine.step()
    engine.layers[0].read = fails  # type: ignore[method-assign]
    engine.step()
    assert not engine.sharing.on
    assert "the worker failed, KeyError" in caplog.text
    assert books_balance(engine)


def refuse(full_attention: bool = True, pool: object = None, **changed: Any) -> None:
    """Ask about an engine that fusion works with, but for what is given."""
    config = {
        "parallel_config": SimpleNamespace(world_size=1),
        "kv_transfer_config": SimpleNamespace(kv_connector="FusionConnector"),
        "device_config": SimpleNamespace(device_type="cpu"),
        "speculative_config": None,
    }
    scheduler = SimpleNamespace(
        vllm_config=SimpleNamespace(**{name: changed.get(name, value) for name, value in config.items()}),
        scheduler_config=SimpleNamespace(async_scheduling=changed.get("async_scheduling", False)),
        use_v2_model_runner=changed.get("use_v2_model_runner", False),
    )
    engine: Any = SimpleNamespace(
        full_attention=full_attention, pool=SimpleNamespace(touch=None) if pool is None else pool
    )
    refuse_fusion(scheduler, engine)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no connector": ({"kv_transfer_config": None}, 'needs its connector: add --kv-transfer-config \'{"kv_connector"'),
    "tensor parallel": ({"parallel_config": SimpleNamespace(world_size=4)}, "works on one rank and this engine has 4"),
    "a GPU": ({"device_config": SimpleNamespace(device_type="cuda")}, "knows the KV layout of vLLM's CPU backend only"),
    "async": ({"async_scheduling": True}, "add --no-async-scheduling"),
    "drafts": ({"speculative_config": object()}, "speculative decoding"),
    "second runner": ({"use_v2_model_runner": True}, "set VLLM_USE_V2_MODEL_RUNNER=0"),
    "mixed blocks": ({"full_attention": False}, "needs a model with one kind of KV blocks"),
    "another pool": ({"pool": object()}, "does not know this vLLM's block pool"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_engines_that_are_refused(case: str) -> None:
    changed, said = REFUSED[case]
    with pytest.raises(ValueError, match="headway: fusion ") as caught:
        refuse(**changed)
    assert said in str(caught.value)
    assert str(caught.value).endswith(", or leave fusion off")
    assert str(caught.value).count(". ") == 0


def test_an_engine_that_is_taken() -> None:
    refuse()


class Engine(PolicyScheduling, StubEngine):
    """Our scheduler over the stub."""


def test_it_is_off_by_default_and_refused_without_its_connector() -> None:
    assert not read_config(None, {}).fusion.on
    assert Engine().headway.sharing is None
    with pytest.raises(ValueError, match="headway: fusion needs its connector"):
        Engine(headway={"fusion": {}})


def test_an_engine_shares_and_tells_of_it() -> None:
    """The scheduler calls fusion in each step and at each end; its metrics say what came of it."""
    engine = FusedEngine()
    stub = Engine()
    stub.headway.sharing = engine.sharing
    for one in requests(3):
        engine.admit(one)
    for _ in range(3):
        engine.step()
    stub.headway.publish()
    metrics = stub.headway.metrics
    assert (metrics.gauges["fusion_on", ""], metrics.gauges["fusion_shared_entries", ""]) == (1, 8)
    assert metrics.counters["fusion_freed_blocks", ""] == 8
