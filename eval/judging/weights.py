"""Weights of local judges: safetensors only, a LoRA adapter over its base included."""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.judging.judge import (
    Item,
    LocalJudge,
    PanelJudge,
    ReadyJudge,
    Verdict,
    judge_prompt,
    judge_weights,
    load_judge,
    panel_members,
)
from eval.judging.prompts import fill
from ogpsa.config import JudgeSettings
from ogpsa.models.files import HUB_ID, SNAPSHOT_FILES, TOKENIZER_FILES, is_whole
from ogpsa.utils.errors import UserError, first_line
from ogpsa.utils.network import ask_hub

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ADAPTER = "adapter_config.json"
BF16_BYTES = 2


def weights_folder(name: str, settings: JudgeSettings) -> Path:
    """The folder of a judge's weights; a hub id's snapshot, fetched if it is not in the hub's cache.

    Raises:
        UserError: it is not there, or holds no whole safetensors, or the adapter's base is not there.
    """
    key = f"eval.judge.weights.{name}"
    folder = _folder(judge_weights(name, settings), key)
    if (folder / ADAPTER).is_file():
        _folder(_base(folder, key), f"{key}: {folder / ADAPTER}: base_model_name_or_path")
    return folder


def weights_memory(name: str, settings: JudgeSettings) -> float:
    """Bytes of a GPU that the weights of a judge take, in bf16; 0 for a judge without weights, or of unknown size.

    Of a panel it is the sum of its members', all of which stay in memory. A folder's weights are counted; of a hub id
    it is what the judge's file says.

    Raises:
        UserError: there is no such judge, a panel's members are none, or an adapter names no base.
    """
    judge, key = load_judge(name, settings.dir), f"eval.judge.weights.{name}"
    if isinstance(judge, PanelJudge):
        return sum(weights_memory(member, settings) for member in panel_members(name, judge, settings))
    if not isinstance(judge, LocalJudge):
        return 0.0
    folder = Path(judge_weights(name, settings))
    folders = [folder, Path(_base(folder, key))] if (folder / ADAPTER).is_file() else [folder]
    if not all(one.is_dir() for one in folders):
        return BF16_BYTES * judge.parameters
    return BF16_BYTES * sum(map(_parameters, folders))


def _parameters(folder: Path) -> int:
    from safetensors import safe_open

    count = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            count += sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
    return count


def load_weights(
    name: str, settings: JudgeSettings, attention: str | None = None
) -> tuple["PreTrainedModel", "PreTrainedTokenizerBase"]:
    """Model and tokenizer, which pads and cuts on the left, on the GPU in bf16 or on the CPU in fp32.

    Args:
        attention: transformers' name of the implementation of attention; None: its own choice.

    Raises:
        UserError: as ``weights_folder``, or the files cannot be read as a model.
    """
    key, folder = f"eval.judge.weights.{name}", weights_folder(name, settings)
    base = _folder(_base(folder, key), key) if (folder / ADAPTER).is_file() else folder
    import torch
    from peft import PeftModel
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from ogpsa.models.load import check_finite

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    with_tokenizer = folder if any((folder / file).is_file() for file in TOKENIZER_FILES) else base
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            with_tokenizer, local_files_only=True, padding_side="left", truncation_side="left"
        )
        model: Any = AutoModelForCausalLM.from_pretrained(
            base, dtype=dtype, attn_implementation=attention, use_safetensors=True, trust_remote_code=False,
            local_files_only=True,
        )  # fmt: skip
        if base is not folder:
            model = PeftModel.from_pretrained(model, folder, use_safetensors=True, local_files_only=True)
    except (OSError, ImportError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{key}: {folder} is not loadable as a model ({first_line(error)})") from None
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    check_finite(model, folder)
    return model.to(device).eval(), tokenizer


def answering_judge(
    name: str, settings: JudgeSettings, parse: Callable[[str], Verdict], answer_tokens: int,
    response_tokens: int | None = None,
) -> ReadyJudge:  # fmt: skip
    """A judge whose weights answer its own prompt in words, which ``parse`` reads.

    Args:
        answer_tokens: the longest answer.
        response_tokens: how much of a response it reads; None: all.

    Raises:
        UserError: as ``load_weights``.
    """
    model, tokenizer = load_weights(name, settings)
    from ogpsa.models.generate import Generator

    generator = Generator(model, tokenizer, tokenizer.eos_token_id, answer_tokens)
    template = judge_prompt(name, settings)

    def text(item: Item) -> str:
        prompt, response = (without_special_tokens(part, tokenizer) for part in (item.prompt, item.response))
        if response_tokens is not None:
            tokens = tokenizer(response, add_special_tokens=False)["input_ids"]
            if len(tokens) > response_tokens:
                response = str(tokenizer.decode(tokens[:response_tokens]))
        return fill(template, prompt, response, "")[0]["content"]

    def judge(items: Sequence[Item]) -> list[Verdict]:
        replies = generator.replies([text(item) for item in items], special_tokens=True)
        return [parse(reply["text"]) for reply in replies]

    return judge


def without_special_tokens(text: str, tokenizer: "PreTrainedTokenizerBase") -> str:
    """The text with each of the tokenizer's control tokens broken by a space: a response is data, not structure."""
    tokens: Iterable[str] = (token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
    for token in sorted(tokens, key=len, reverse=True):
        text = text.replace(token, f"{token[0]} {token[1:]}")
    return text


def _base(folder: Path, key: str) -> str:
    try:
        base = json.loads((folder / ADAPTER).read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (ValueError, TypeError, KeyError):
        raise UserError(f"{key}: {folder / ADAPTER} names no base_model_name_or_path") from None
    return str(base)


def _folder(weights: str, key: str) -> Path:
    folder = Path(weights)
    if not folder.is_dir():
        if not HUB_ID.fullmatch(weights):
            raise UserError(f"{key}: {weights} is no folder and no hub id such as allenai/wildguard")
        ask_hub()
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError

        where = f"https://huggingface.co/{weights}"
        try:
            folder = Path(snapshot_download(weights, allow_patterns=SNAPSHOT_FILES))
        except GatedRepoError:
            raise UserError(f"{key}: {weights} is gated; ask for access at {where} and set HF_TOKEN") from None
        except (HfHubHTTPError, LocalEntryNotFoundError):
            raise UserError(
                f"{key}: {weights} is not in the hub's cache and cannot be fetched; fetch it where there is a network "
                f"(it may be gated: {where}) or name a folder"
            ) from None
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(f"{key}: {folder} holds no *.safetensors; pickled weights are not loaded")
    for file in files:
        if not is_whole(file):
            raise UserError(f"{key}: {file} is damaged or cut short")
    return folder
