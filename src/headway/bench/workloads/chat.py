"""The workloads `chat` and `chat-and-documents`: chat, alone and beside long documents."""

from __future__ import annotations

import numpy as np

from headway.bench.workloads.workload import (
    Curve,
    Workload,
    draw_arrivals,
    draw_from_quantiles,
    from_zero,
    stream,
    whole_tokens,
)
from headway.simulator.trace import Tokens, Trace

# Percent -> tokens, measured on the public data named in the docstrings below.
CHAT_PROMPTS: Curve = {
    0: 2, 1: 42, 5: 191, 10: 369, 25: 397, 50: 1_024, 75: 1_234, 90: 4_076, 95: 4_086, 99: 4_123, 99.9: 5_052,
    100: 14_050,
}  # fmt: skip
CHAT_OUTPUTS: Curve = {
    0: 7, 1: 16, 5: 38, 10: 49, 25: 79, 50: 115, 75: 394, 90: 423, 95: 451, 99: 602, 99.9: 937, 100: 1_000
}  # fmt: skip
DOCUMENT_PROMPTS: Curve = {
    0: 891, 1: 894, 5: 901, 10: 970, 25: 2_391, 50: 7_347, 75: 15_808, 90: 28_195, 95: 41_086, 99: 89_868,
    99.9: 121_327, 100: 124_847,
}  # fmt: skip
DOCUMENT_OUTPUTS: Curve = {
    0: 1, 1: 3, 5: 9, 10: 24, 25: 155, 50: 355, 75: 476, 90: 606, 95: 711, 99: 1_162, 99.9: 2_000, 100: 2_000
}  # fmt: skip
DOCUMENT_SHARE = 0.1
CHAT_RATE, CHAT_CV = 5.87, 1.08


def chat(requests: int, seed: int) -> Trace:
    """Short turns of people talking: Azure's conversation service.

    Lengths follow the quantiles of AzureLLMInferenceTrace_conv (2023; first 60 % of the hour), prompts and outputs
    independent as they are there (rank correlation 0.01); arrivals are Gamma with its rate, 5.87 a second, and its
    coefficient of variation, 1.08. Source: Patel et al., Splitwise, ISCA 2024; Azure/AzurePublicDataset, CC BY 4.0.
    """
    prompts = draw_from_quantiles(stream(seed, "chat", "prompts"), CHAT_PROMPTS, requests)
    outputs = draw_from_quantiles(stream(seed, "chat", "outputs"), CHAT_OUTPUTS, requests)
    return Trace(
        name="chat",
        arrived_seconds=from_zero(draw_arrivals(stream(seed, "chat", "arrivals"), CHAT_RATE, CHAT_CV, requests)),
        prompt_tokens=whole_tokens(prompts),
        output_tokens=whole_tokens(outputs),
    )


def chat_and_documents(requests: int, seed: int) -> Trace:
    """Nine chat turns to one question about a long document: the everyday case of head-of-line blocking.

    Chat is as in `chat`. Documents follow the length quantiles of Mooncake's conversation trace, Kimi's long-context
    service (p50 7,347, p90 28,195, p99 89,868 tokens; first 60 % of the hour). The share of 10 % is ours: it gives the
    documents about half of all prompt tokens, and the longest 1 % of all requests about a fifth. Poisson arrivals.
    Sources: as `chat`; Qin et al., Mooncake, FAST 2025; kvcache-ai/Mooncake, Apache-2.0.
    """
    name = "chat-and-documents"
    document = stream(seed, name, "kind").random(requests) < DOCUMENT_SHARE
    present, tenant = np.unique(document, return_inverse=True)

    def lengths(what: str, chat_curve: Curve, document_curve: Curve) -> Tokens:
        short = draw_from_quantiles(stream(seed, name, "chat", what), chat_curve, requests)
        long = draw_from_quantiles(stream(seed, name, "documents", what), document_curve, requests)
        return whole_tokens(np.where(document, long, short))

    return Trace(
        name=name,
        arrived_seconds=from_zero(draw_arrivals(stream(seed, name, "arrivals"), CHAT_RATE, 1.0, requests)),
        prompt_tokens=lengths("prompts", CHAT_PROMPTS, DOCUMENT_PROMPTS),
        output_tokens=lengths("outputs", CHAT_OUTPUTS, DOCUMENT_OUTPUTS),
        tenant=tenant.astype(np.int64),
        tenants=tuple("documents" if long else "chat" for long in present.tolist()),
    )


CHAT = Workload(
    "chat",
    "short turns of people talking to an assistant",
    "lengths and burstiness of Azure's conversation trace of 2023 (Splitwise, ISCA 2024)",
    chat,
)
CHAT_AND_DOCUMENTS = Workload(
    "chat-and-documents",
    "nine chat turns to one question about a long document: the everyday case of head-of-line blocking",
    "lengths of Azure's conversation trace of 2023 (Splitwise, ISCA 2024) and of Mooncake's (FAST 2025); shares ours",
    chat_and_documents,
)
