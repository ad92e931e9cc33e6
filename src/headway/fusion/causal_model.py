"""A Hugging Face model on the CPU: the KV of prompts, and what it says when that KV is replaced (extra `fusion`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from headway.fusion.kv_blocks import Floats
from headway.fusion.rotary_embedding import RotaryEmbedding

PROMPTS_AT_ONCE = 4  # of a batch through the model, so that the logits of a large vocabulary fit into memory


class CausalModel:
    """A decoder with a plain KV cache: every layer attends to every token.

    Args:
        path: a folder in the format of Hugging Face, or a name in its cache. Nothing is downloaded.

    Raises:
        ValueError: there is no such model, its weights are not all there, or its cache is of another kind.
    """

    def __init__(self, path: str) -> None:
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
            model, loading = AutoModelForCausalLM.from_pretrained(
                path, local_files_only=True, dtype=torch.float32, output_loading_info=True
            )
        except (OSError, ValueError, SafetensorError) as error:
            raise ValueError(
                f"MODEL {path}: no Hugging Face checkpoint could be read there ({_first_line(error)})"
            ) from error
        missing = sorted(loading["missing_keys"])
        if missing:  # they would be drawn at random
            raise ValueError(
                f"MODEL {path}: the checkpoint lacks {len(missing)} of the model's weights ({missing[0]}); "
                "name a complete one"
            )
        self._model = model.eval()
        self.path = path
        kv = self.kv([[0, 0]])
        self.layers, self.heads, self.head_dim = kv[0][0].shape[0], kv[0][0].shape[2], kv[0][0].shape[3]

    def tokens(self, text: str) -> list[int]:
        """The text's token ids, without special tokens."""
        return list(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def rotary(self) -> RotaryEmbedding:
        """The model's rotary position embedding.

        Raises:
            ValueError: it has none that is known.
        """
        module = getattr(self._model.base_model, "rotary_emb", None)
        frequencies = getattr(module, "inv_freq", None)
        if frequencies is None or 2 * len(frequencies) != self.head_dim:
            raise ValueError(
                f"MODEL {self.path}: its keys are not turned by a plain rotary embedding; leave out any-place"
            )
        return RotaryEmbedding(frequencies.double().numpy())

    def kv(self, prompts: Sequence[Sequence[int]]) -> list[tuple[Floats, Floats]]:
        """Keys and values of each prompt, (layers, tokens, KV heads, head size), keys turned by their positions.

        Raises:
            ValueError: the model keeps no KV cache, or one that is not the same for all layers and tokens.
        """
        found = []
        for prompt in prompts:
            with torch.no_grad():
                out = self._model.base_model(torch.tensor([list(prompt)]), use_cache=True)
            layers = getattr(getattr(out, "past_key_values", None), "layers", None)
            pairs: list[tuple[Any, Any]] = [
                (getattr(one, "keys", None), getattr(one, "values", None)) for one in layers or []
            ]
            shapes = {None if half is None else (half.ndim, *half.shape) for pair in pairs for half in pair}
            if len(shapes) != 1 or (shape := shapes.pop()) is None or shape[0] != 4 or shape[3] != len(prompt):
                raise ValueError(
                    f"MODEL {self.path}: it has no KV cache that holds every token in every layer; "
                    "choose a decoder that has"
                )
            halves = [np.stack([pair[half][0].numpy() for pair in pairs]).transpose(0, 2, 1, 3) for half in (0, 1)]
            found.append((halves[0], halves[1]))
        return found

    def log_probabilities(self, following: Sequence[Sequence[int]], keys: Floats, values: Floats) -> Floats:
        """What the model expects after each following token, given the KV of the prompts.

        Args:
            following: per prompt, as many tokens each.
            keys: (layers, prompts, tokens, KV heads, head size).
            values: the same shape.

        Returns:
            (prompts, following tokens, vocabulary), natural logarithms.
        """
        parts = []
        for start in range(0, len(following), PROMPTS_AT_ONCE):
            span = slice(start, start + PROMPTS_AT_ONCE)
            cache: Any = DynamicCache()
            for layer in range(len(keys)):
                halves = [torch.from_numpy(array[layer, span].transpose(0, 2, 1, 3).copy()) for array in (keys, values)]
                cache.update(*halves, layer)
            with torch.no_grad():
                logits = self._model(torch.tensor([list(one) for one in following[span]]), past_key_values=cache).logits
            parts.append(logits.log_softmax(-1).numpy())
        return np.concatenate(parts)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
