"""From a checked folder to a model in memory: safetensors only, no remote code, nothing fetched."""

from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ogpsa.utils.errors import UserError


def load_model(
    folder: Path, dtype: torch.dtype, attention: str | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Weights and tokenizer (padding on the left) of a local folder.

    Raises:
        UserError: the files cannot be read as a model, lack weights, or come without a chat template.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, padding_side="left")
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
    except (OSError, ImportError, ValueError, KeyError, SafetensorError, StrictDataclassError) as error:
        raise UserError(f"{folder}: not loadable as a model ({str(error).strip().splitlines()[0]})") from None
    model, report = loaded
    # Weights that are absent or of another shape would be drawn at random.
    unfilled = sorted([*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])])
    if unfilled:
        raise UserError(f"{folder}: {len(unfilled)} weights are missing or misshapen, the first is {unfilled[0]}")
    if tokenizer.chat_template is None:
        raise UserError(f"{folder}: the tokenizer has no chat template; use an instruct model")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model, tokenizer
