"""Random models, small enough for any test."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

# Two kinds whose layers are of two kinds, in addition to the sizes of ``other_kind`` with two layers.
LFM2: dict[str, Any] = {"layer_types": ["conv", "full_attention"]}
QWEN3_NEXT: dict[str, Any] = {
    "layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    "linear_key_head_dim": 8, "linear_value_head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2,
    "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16,
}  # fmt: skip


def tiny_model(tokenizer: PreTrainedTokenizerBase, seed: int = 0, **settings: Any) -> LlamaForCausalLM:
    """The same weights for the same arguments; like a loaded model not in training mode.

    Args:
        settings: of ``LlamaConfig``, beside or in place of those here.
    """
    torch.manual_seed(seed)
    shape = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 128,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    model: LlamaForCausalLM = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **shape | settings))
    model.eval()
    return model


def save_tiny(folder: Path, tokenizer: PreTrainedTokenizerBase, **settings: Any) -> Path:
    """A folder of a random model and this tokenizer."""
    tiny_model(tokenizer, **settings).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def other_kind(kind: str, tokenizer: PreTrainedTokenizerBase, **settings: Any) -> PreTrainedModel:
    """A random model of another kind than Llama, always the same for the same arguments."""
    torch.manual_seed(0)
    shape = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = AutoConfig.for_model(kind, vocab_size=len(tokenizer), **shape | settings)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    return model


def image_reader(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A random Gemma 3 with a vision tower."""
    heads = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 32, "intermediate_size": 64}
    text = heads | {
        "model_type": "gemma3_text", "vocab_size": len(tokenizer), "num_key_value_heads": 1, "head_dim": 16,
        "pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id,
    }  # fmt: skip
    vision = heads | {"model_type": "siglip_vision_model", "image_size": 28, "patch_size": 14}
    torch.manual_seed(0)
    config = AutoConfig.for_model("gemma3", text_config=text, vision_config=vision, mm_tokens_per_image=1)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return model


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, so that it knows every text; a turn ends with ``<end>``."""
    special = ["<pad>", "<user>", "<assistant>", "<system>", "<end>"]
    alphabet = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE({symbol: index for index, symbol in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    template = (
        "{% for message in messages %}{{ '<' + message.role + '>' + message.content + '<end>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<end>", chat_template=template,
        additional_special_tokens=["<user>", "<assistant>", "<system>"],
    )  # fmt: skip
