"""Drawn instances of the discrete model."""

from __future__ import annotations

from hypothesis import strategies as st

from headway.bounds.discrete import DiscreteRequest, Instance


@st.composite
def instances(
    draw: st.DrawFn, *, most: int = 6, memory: int = 20, arrivals: bool = True, regime: str = "any"
) -> Instance:
    """Few requests in little memory; `regime` as in `bounds.doubling`."""
    total = draw(st.integers(8, memory))
    quarter = total // 4

    def one() -> DiscreteRequest:
        if regime == "large":
            prompt = draw(st.integers(quarter + 1, total - 1))
            output = draw(st.integers(1, total - prompt))
        elif regime == "prompt-heavy":
            prompt = draw(st.integers(1, quarter))
            output = draw(st.integers(1, prompt))
        elif regime == "response-heavy":
            prompt = draw(st.integers(1, quarter))
            output = draw(st.integers(prompt + 1, total - prompt))
        else:
            prompt = draw(st.integers(0, total - 1))
            output = draw(st.integers(1, total - prompt))
        return DiscreteRequest(prompt, output, draw(st.integers(0, 12)) if arrivals else 0)

    return Instance(tuple(one() for _ in range(draw(st.integers(1, most)))), total)
