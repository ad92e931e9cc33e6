"""The prefill budget: prompt tokens beside decodes, by a bound on the step."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from headway.scheduling.prefill_budget import PrefillLoad, StepLimits, prefill_limits

MS = 10**9
LOAD = PrefillLoad(
    StepLimits(0, 8_192), decodes=10, decode_tokens=10, context_tokens=0, prefill_left=[], tokens_before=0
)


def step_ps(decodes: int, context: int, prompts: int, tokens: int, before: int) -> int:
    """10 ms, and 60 µs a prompt token."""
    return 10 * MS + 60_000_000 * tokens


def limits(load: PrefillLoad, milliseconds: float) -> StepLimits:
    return prefill_limits(load, milliseconds / 1_000, step_ps)


def test_prompts_get_what_the_bound_leaves() -> None:
    """The anchor: 10 ms and 60 µs a token, 50 ms to spare."""
    assert limits(LOAD, 60) == StepLimits(0, 10 + 833)
    assert limits(LOAD, 10_000) == LOAD.own
    assert limits(LOAD._replace(decode_tokens=30), 60) == StepLimits(0, 30 + 833), "drafts are on top"


def test_without_decodes_the_configured_limits_hold() -> None:
    assert limits(LOAD._replace(decodes=0, decode_tokens=0), 1) == LOAD.own


def test_prompts_go_on_where_decodes_alone_take_longer() -> None:
    assert limits(LOAD, 1) == StepLimits(0, 10 + 256)
    assert limits(LOAD._replace(own=StepLimits(0, 20)), 1) == StepLimits(0, 11)
    full = LOAD._replace(decodes=20, decode_tokens=20, own=StepLimits(0, 20))
    assert limits(full, 60) == full.own, "decodes take all"


def test_prompts_that_run_share_so_that_decodes_behind_them_get_theirs() -> None:
    assert limits(LOAD._replace(prefill_left=[500, 300]), 60).threshold == 0, "all fit"
    assert limits(LOAD._replace(prefill_left=[5_000]), 60).threshold == 833
    assert limits(LOAD._replace(prefill_left=[5_000, 5_000, 33]), 60).threshold == 400
    own = LOAD._replace(own=StepLimits(100, 8_192))
    assert limits(own._replace(prefill_left=[5_000, 5_000]), 60).threshold == 100, "the operator's own holds"


@given(
    budget=st.integers(1, 10_000),
    own=st.sampled_from([0, 7, 300]),
    decodes=st.integers(0, 300),
    left=st.lists(st.integers(1, 20_000), max_size=5),
    milliseconds=st.floats(0.001, 1_000),
)
def test_laws(budget: int, own: int, decodes: int, left: list[int], milliseconds: float) -> None:
    load = PrefillLoad(StepLimits(own, budget), decodes, decodes, 0, left, 0)
    found = limits(load, milliseconds)
    assert found.token_budget <= budget
    assert not own or 0 < found.threshold <= own
    prompts = found.token_budget - decodes
    if decodes < budget:
        assert prompts >= min(budget - decodes, max(1, budget // 32)), "prompts go on"
        capped = sum(min(one, found.threshold or one) for one in left)
        assert not decodes or capped <= max(prompts, len(left)), "no decode goes without its token"
    if 0 < decodes < budget and prompts > max(1, budget // 32):
        assert step_ps(decodes, 0, 1, prompts, 0) <= milliseconds * MS, "the bound holds"
        assert prompts == budget - decodes or step_ps(decodes, 0, 1, prompts + 1, 0) > milliseconds * MS - 1
