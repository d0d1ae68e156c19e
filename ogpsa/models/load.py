"""From a checked folder to a model in memory: safetensors only, no remote code, nothing fetched."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from ogpsa.models.tokenizer import load_tokenizer, loading
from ogpsa.utils.errors import UserError


def load_model(
    folder: Path,
    dtype: torch.dtype,
    attention: str | None = None,
    template_kwargs: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Weights and tokenizer (padding on the left, its template pinned) of a local folder.

    Raises:
        UserError: the files cannot be read as a model, lack weights, or as ``load_tokenizer``.
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
    return model, tokenizer
