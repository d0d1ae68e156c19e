"""From a checked folder to a model in memory: safetensors only, no remote code, nothing fetched."""

import math
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

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
    nf4_compute: torch.dtype | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Weights and tokenizer (padding on the left, its template pinned) of a local folder.

    Modules that text does not pass through, such as a vision tower, are frozen.

    Args:
        nf4_compute: stores the linear layers but the output head in 4 bits (nf4, doubly quantized), and computes in
            this dtype.

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
            quantization_config=None if nf4_compute is None else _nf4(nf4_compute),
        )
    model, report = loaded
    # Weights that are absent or of another shape would be drawn at random.
    unfilled = sorted([*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])])
    if unfilled:
        raise UserError(f"{folder}: {len(unfilled)} weights are missing or misshapen, the first is {unfilled[0]}")
    # Except what the model's class ignores. A model without some layers is another model.
    if unread := sorted(report["unexpected_keys"]):
        named = ", ".join(unread[:NAMED]) + (", …" if len(unread) > NAMED else "")
        raise UserError(
            f"{folder}: {len(unread)} weights have no place in the model that config.json describes ({named}); write "
            "config.json as it was when the weights were saved, or take them out"
        )
    check_finite(model, folder)
    if nf4_compute is not None:
        _keep_packing(model)
    freeze_what_text_misses(model)
    _check_embeddings(model, folder)
    _make_saveable(model.generation_config, folder)
    return model, tokenizer


def _make_saveable(generation: GenerationConfig, folder: Path) -> None:
    """Set ``do_sample`` where sampling settings lack it: transformers loads such a file, but refuses to save it.

    Raises:
        UserError: the settings contradict each other otherwise, so that no checkpoint could be saved.
    """
    with suppress(ValueError):
        generation.validate(strict=True)
        return
    generation.do_sample = True
    try:
        generation.validate(strict=True)
    except ValueError as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{folder}/generation_config.json: no checkpoint could be saved with it: {reason}") from None


def _nf4(compute: torch.dtype) -> BitsAndBytesConfig:
    """QLoRA's storage, arXiv 2305.14314."""
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=compute
    )


def _keep_packing(model: nn.Module) -> None:
    """On some CPUs bitsandbytes repacks a weight at its first inference, after which no gradient passes it."""
    from bitsandbytes.nn.modules import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


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
    """Refuse an embedding of zeros alone, through which no gradient passes."""
    for name, layer in (("input", model.get_input_embeddings()), ("output", model.get_output_embeddings())):
        # ZeRO-3 keeps the values elsewhere and leaves an empty weight.
        if isinstance(layer, nn.Embedding | nn.Linear) and layer.weight.numel() and not layer.weight.any():
            raise UserError(
                f"{folder}: the {name} embedding holds zeros alone, so that nothing can be learned; write the "
                "checkpoint again"
            )
