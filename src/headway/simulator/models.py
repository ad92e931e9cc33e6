"""Model profiles: the shape of a transformer, and from it weights, operations and bytes of KV.

Shapes are those of the published `config.json`; `model_shape` reads one by name or path.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from headway.simulator.profile_file import profile_names, read_profile


@dataclass(frozen=True, slots=True)
class Experts:
    """A mixture of experts instead of one MLP in every layer.

    Attributes:
        count: experts in a layer.
        active: experts that each token visits.
        intermediate: inner width of one expert.
    """

    count: int
    active: int
    intermediate: int


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A decoder-only transformer with grouped-query attention and gated MLPs.

    Attributes:
        name: what users type.
        title: its published name.
        version: counts changes of the profile's numbers.
        source: where the shape comes from.
        layers: decoder layers.
        hidden: width of the residual stream.
        heads: query heads.
        kv_heads: key and value heads.
        head_dim: width of one head.
        intermediate: inner width of the MLP; 0 for a mixture of experts.
        vocab: rows of the embedding.
        tied_embeddings: whether input and output embedding are one matrix.
        max_model_tokens: longest request, prompt and output together.
        experts: the mixture of experts, None for a dense model.
    """

    name: str
    title: str
    version: int
    source: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    tied_embeddings: bool
    max_model_tokens: int
    experts: Experts | None = None

    @property
    def attention_parameters(self) -> int:
        """Weights of one layer's QKV and output projections."""
        return self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)

    @property
    def mlp_parameters(self) -> int:
        """Weights of one layer's MLP, or of one expert: gate, up and down."""
        return 3 * self.hidden * (self.experts.intermediate if self.experts else self.intermediate)

    @property
    def layer_parameters(self) -> int:
        """Weights of one layer, all experts and their router included."""
        if self.experts is None:
            return self.attention_parameters + self.mlp_parameters
        return self.attention_parameters + self.experts.count * (self.mlp_parameters + self.hidden)

    @property
    def embedding_parameters(self) -> int:
        """Weights of the input embedding; the output embedding has as many unless it is tied."""
        return self.vocab * self.hidden

    def weight_bytes(self, bytes_per_weight: int) -> int:
        """All weights of the model; embeddings stay in BF16 when layers are quantised, as vLLM keeps them."""
        embeddings = self.embedding_parameters * (1 if self.tied_embeddings else 2)
        return self.layers * self.layer_parameters * bytes_per_weight + 2 * embeddings

    def adapter_bytes(self, rank: int) -> int:
        """A LoRA adapter of this rank on the four projections of attention, in BF16; S-LoRA's kind."""
        inner, shared = self.heads * self.head_dim, self.kv_heads * self.head_dim
        widths = 2 * (self.hidden + inner) + 2 * (self.hidden + shared)  # query and output, key and value: in and out
        return 2 * self.layers * rank * widths

    def kv_bytes_per_token(self, tp: int, bytes_per_element: int = 2) -> int:
        """KV cache of one token on one of `tp` GPUs; key-value heads are copied where `tp` exceeds them."""
        return self.layers * 2 * max(1, self.kv_heads // tp) * self.head_dim * bytes_per_element


def model_names() -> tuple[str, ...]:
    """Names of the packaged models."""
    return profile_names("models")


def model_shape(name: str | Path) -> ModelShape:
    """The model called `name`, or the one described by the TOML file `name`.

    Raises:
        ValueError: one sentence that names the file, the key and the fix.
    """
    table = read_profile("models", name)
    experts = None
    if (inner := table.optional_table("experts")) is not None:
        experts = Experts(inner.whole("count"), inner.whole("active"), inner.whole("intermediate"))
        if experts.active > experts.count:
            raise inner.fault("active", f"({experts.active}) must not exceed experts.count ({experts.count})")
        inner.close()
    shape = ModelShape(
        name=table.text("name"),
        title=table.text("title"),
        version=table.whole("version"),
        source=table.text("source"),
        layers=table.whole("layers"),
        hidden=table.whole("hidden"),
        heads=table.whole("heads"),
        kv_heads=table.whole("kv_heads"),
        head_dim=table.whole("head_dim"),
        intermediate=0 if experts else table.whole("intermediate"),
        vocab=table.whole("vocab"),
        tied_embeddings=table.flag("tied_embeddings", default=False),
        max_model_tokens=table.whole("max_model_tokens"),
        experts=experts,
    )
    if shape.heads % shape.kv_heads:
        raise table.fault("kv_heads", f"({shape.kv_heads}) must divide heads ({shape.heads})")
    table.close()
    return shape
