"""From a checked folder to a model in memory: safetensors only, no remote code, nothing fetched."""

import math
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from ogpsa.models.text import freeze_what_text_misses
from ogpsa.models.tokenizer import load_tokenizer, loading
from ogpsa.utils.errors import UserError

# Weights that a message names.
NAMED = 3


def load_model(
    folder: Path,
    dtype: torch.dtype,
    attention: str | None = None,
    template_kwargs: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Weights and tokenizer (padding on the left, its template pinned) of a local folder.

    What no text passes through, as a vision tower, is frozen.

    Raises:
        UserError: the files cannot be read as a model, lack weights, hold others, NaN or zeros alone, or as
            ``load_tokenizer``.
    """
    tokenizer = load_tokenizer(folder, template_kwargs)
    with loading(folder):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            attn_implementation=attention,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    model, report = loaded
    # Weights that are absent or of another shape would be drawn at random.
    unfilled = sorted([*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])])
    if unfilled:
        raise UserError(f"{folder}: {len(unfilled)} weights are missing or misshapen, the first is {unfilled[0]}")
    # Less what the model's class says it ignores. Layers that are left out make another model.
    if unread := sorted(report["unexpected_keys"]):
        named = ", ".join(unread[:NAMED]) + (", …" if len(unread) > NAMED else "")
        raise UserError(
            f"{folder}: {len(unread)} weights have no place in the model that config.json describes ({named}); write "
            "config.json as it was when the weights were saved, or take them out"
        )
    check_finite(model, folder)
    freeze_what_text_misses(model)
    _check_embeddings(model, folder)
    return model, tokenizer


def check_finite(model: nn.Module, folder: Path) -> None:
    """Refuse weights that hold NaN or Inf: every answer and score would be meaningless.

    Raises:
        UserError: names the first weight that holds NaN or Inf.
    """
    for name, weight in model.named_parameters():
        # One pass without a copy, and NaN shows in both ends.
        if weight.numel() and not all(math.isfinite(end) for end in weight.detach().aminmax()):
            place = (~torch.isfinite(weight)).nonzero()[0].tolist()
            raise UserError(
                f"{folder}: weight {name} holds {weight[tuple(place)]:g} at {place}; write the checkpoint again"
            )


def _check_embeddings(model: PreTrainedModel, folder: Path) -> None:
    """Refuse zeros alone where every token passes, through which no gradient does."""
    for name, layer in (("input", model.get_input_embeddings()), ("output", model.get_output_embeddings())):
        # ZeRO-3 keeps the values elsewhere and leaves an empty weight.
        if isinstance(layer, nn.Embedding | nn.Linear) and layer.weight.numel() and not layer.weight.any():
            raise UserError(
                f"{folder}: the {name} embedding holds zeros alone, so that nothing can be learned; write the "
                "checkpoint again"
            )
