"""Models that are measured: only their shapes matter, the weights are random."""

from dataclasses import dataclass, replace
from typing import Any

import torch

from ogpsa.utils.errors import UserError, closest_match


@dataclass(frozen=True)
class Architecture:
    """A Llama without, or a Qwen2 with, biases in the query, key and value projections; embeddings are not tied."""

    family: str
    hidden: int
    layers: int
    intermediate: int
    heads: int
    key_value_heads: int
    vocabulary: int

    def sizes(self) -> list[int]:
        """Elements of each parameter tensor."""
        key_value = self.hidden // self.heads * self.key_value_heads
        attention = [self.hidden * self.hidden, self.hidden * key_value, self.hidden * key_value]
        if self.family == "qwen2":
            attention += [self.hidden, key_value, key_value]
        layer = [*attention, self.hidden * self.hidden, *3 * [self.hidden * self.intermediate], *2 * [self.hidden]]
        embedding = self.vocabulary * self.hidden
        return [embedding, *self.layers * layer, self.hidden, embedding]

    def build(self, device: torch.device, dtype: torch.dtype = torch.float32) -> Any:
        """The model in training mode, its weights drawn on ``device`` from the global generator."""
        from transformers import AutoConfig, AutoModelForCausalLM

        config = AutoConfig.for_model(
            self.family,
            hidden_size=self.hidden,
            num_hidden_layers=self.layers,
            intermediate_size=self.intermediate,
            num_attention_heads=self.heads,
            num_key_value_heads=self.key_value_heads,
            vocab_size=self.vocabulary,
            tie_word_embeddings=False,
            use_cache=False,
        )
        with device:
            return AutoModelForCausalLM.from_config(config, dtype=dtype).train()


ARCHITECTURES = {
    "smoke": Architecture("llama", 16, 2, 32, 2, 1, 64),
    "llama_50m": Architecture("llama", 512, 12, 1536, 8, 8, 8192),
    "qwen2_5_7b": Architecture("qwen2", 3584, 28, 18944, 28, 4, 152064),
}


def architecture(text: str) -> Architecture:
    """The architecture called ``name``, or ``name:L`` for its first L layers.

    Raises:
        UserError: no architecture has that name, or L is not between 1 and its layers.
    """
    name, _, layers = text.partition(":")
    if name not in ARCHITECTURES:
        allowed = ", ".join(ARCHITECTURES)
        raise UserError(f"unknown architecture '{name}'; allowed: {allowed}{closest_match(name, ARCHITECTURES)}")
    found = ARCHITECTURES[name]
    if not layers:
        return found
    if not layers.isdecimal() or not 1 <= int(layers) <= found.layers:
        raise UserError(f"'{text}': '{layers}' layers wanted, but {name} can be cut to 1 to {found.layers}")
    return replace(found, layers=int(layers))
