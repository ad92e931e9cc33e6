"""Public request traces: what each holds, its licence, and how to get it. Nothing is downloaded here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Source:
    """One public source of traces.

    Attributes:
        name: short name.
        holds: what is in it.
        licence: its terms, with the authors to cite.
        address: where it is.
        get: how to get a file that `load_trace` reads.
    """

    name: str
    holds: str
    licence: str
    address: str
    get: str


SOURCES = (
    Source(
        "azure-2023",
        "one hour each of a code-completion and a conversation service: arrivals, lengths",
        "CC BY 4.0; Patel et al., Splitwise, ISCA 2024",
        "https://github.com/Azure/AzurePublicDataset",
        "data/AzureLLMInferenceTrace_code.csv and ..._conv.csv of the repository; read as they are",
    ),
    Source(
        "azure-2024",
        "one week each of a code-completion and a conversation service: arrivals, lengths",
        "CC BY 4.0; Stojkovic et al., DynamoLLM, arXiv 2408.00741",
        "https://github.com/Azure/AzurePublicDataset/blob/master/AzureLLMInferenceDataset2024.md",
        "the CSV files linked from that page; read as they are",
    ),
    Source(
        "mooncake",
        "Kimi's conversations and tool calls of one hour (arrivals in steps of 3 s) and a synthetic mix, lengths, "
        "prefix blocks of 512 tokens",
        "Apache-2.0; Qin et al., Mooncake, FAST 2025",
        "https://github.com/kvcache-ai/Mooncake",
        "FAST25-release/traces/*.jsonl of the repository; read as they are",
    ),
    Source(
        "burstgpt",
        "four months of a university's use of ChatGPT and GPT-4 through Azure: 5.2 million requests, arrivals, lengths",
        "CC BY 4.0; Wang et al., BurstGPT, KDD 2025",
        "https://github.com/HPMLL/BurstGPT",
        "BurstGPT_without_fails_1.csv and _2.csv of the release v1.1; read as they are",
    ),
    Source(
        "qwen-bailian",
        "two hours of Qwen services on Alibaba Cloud: arrivals, lengths, conversations, prefix blocks of 16 tokens",
        "Apache-2.0; Wang et al., KVCache Cache in the Wild, ATC 2025",
        "https://github.com/alibaba-edu/qwen-bailian-usagetraces-anon",
        "the .jsonl files of the repository; read as they are (replayed at their own times: they hold no pauses)",
    ),
    Source(
        "servegen",
        "per-client rates, burstiness and lengths of production models on Alibaba Cloud, to generate requests from",
        "Apache-2.0; Xiang et al., ServeGen, arXiv 2505.09999",
        "https://github.com/alibaba/ServeGen",
        "its generator; or take the workloads reasoning, tenants and client-mix, built from its figures",
    ),
    Source(
        "kv-cache-tester",
        "recorded sessions of coding agents: calls, lengths, tool pauses, prefix blocks of 64 tokens",
        "Apache-2.0, Copyright 2024 Callan Fox",
        "https://github.com/callanjfox/kv-cache-tester",
        "traces/*.json of the repository, one session a file: to be written as JSON Lines with session_id, turn and "
        "think_time_ms; or take the workload coding-agents, built from its figures",
    ),
    Source(
        "vllm-timed-trace",
        "not a trace but the format of `vllm bench serve --dataset-name timed_trace`: timestamp, input_length, "
        "output_length, hash_ids",
        "that of its file",
        "https://docs.vllm.ai/en/latest/benchmarking/cli/",
        "read as it is when timestamps are whole milliseconds; for seconds give --columns arrival_s=timestamp, for "
        "other names of fields --columns prompt=...,output=...,prefix=...,prefix_block=16",
    ),
)


def sources_text() -> str:
    """The text of `headway trace sources`: one paragraph per source."""
    return "\n\n".join(
        f"{source.name}\n  {source.holds}\n  licence: {source.licence}\n  where: {source.address}\n  get: {source.get}"
        for source in SOURCES
    )
