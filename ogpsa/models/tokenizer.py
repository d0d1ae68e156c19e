"""From a checked folder to a tokenizer that agrees with its model and its chat template."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PretrainedConfig, PreTrainedTokenizerBase

from ogpsa.models.template import (
    CLOCK,
    RENDERING_ERRORS,
    RESERVED,
    Chat,
    Messages,
    check_repeatable,
    not_taken,
    pin,
    template_variables,
)
from ogpsa.utils.errors import UserError
from ogpsa.utils.json_text import json_kind

ANSWER = "Certainly"
# Fixed conversations whose text shows what a template does.
PROBES: tuple[list[dict[str, str]], ...] = (
    [{"role": "user", "content": "Hello"}],
    [{"role": "system", "content": "Speak plainly."}, {"role": "user", "content": "Hello"}],
    [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": ANSWER},
        {"role": "user", "content": "Go on"},
    ],
)
# What transformers brings.
GIVEN = ("bos_token", "eos_token", "pad_token", "unk_token", "raise_exception", CLOCK)
TOKENS_SHOWN = 8
# As transformers names them.
MEDIA = ("image_token", "audio_token", "video_token")
# transformers checks little of the files' content, so that reading them can raise anything.
READING_ERRORS = (Exception,)


@contextmanager
def loading(folder: Path) -> Iterator[None]:
    """Turn the errors of transformers reading files of ``folder`` into one line.

    Raises:
        UserError: the files cannot be read as a model.
    """
    try:
        yield
    except (UserError, MemoryError):
        raise
    except READING_ERRORS as error:
        raise UserError(f"{folder}: not loadable as a model ({_reason(error)})") from None


def _reason(error: Exception) -> str:
    """The first informative line of an error, with the error's name where that line says little."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines[: 1 + bool(lines and lines[0].endswith(":"))])
    if isinstance(error, KeyError):
        return f"it lacks {text}, or transformers does not know it"
    return text if isinstance(error, OSError | ImportError | ValueError) and text else f"{type(error).__name__}: {text}"


def load_tokenizer(folder: Path, template_kwargs: Mapping[str, Any]) -> PreTrainedTokenizerBase:
    """A local folder's tokenizer, padding on the left, its chat template pinned (``ogpsa/models/template.py``).

    Raises:
        UserError: the files cannot be read, or tokenizer, template and model disagree: no end token, a token beyond
            the embedding, a template that takes no user's turn, is not repeatable, or ends an answer with a token at
            which generation does not stop.
    """
    with loading(folder):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, padding_side="left"
        )
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        generation = _generation_config(folder, config)
    if not isinstance(tokenizer.model_max_length, int | float):
        raise UserError(
            f"{folder}/tokenizer_config.json: model_max_length is {json_kind(tokenizer.model_max_length)}; allowed: a "
            "number"
        )
    pin(tokenizer, template_kwargs)
    check_repeatable(tokenizer)
    rows = config.get_text_config().vocab_size
    media = media_tokens(tokenizer)
    used = {number: token for token, number in tokenizer.get_vocab().items() if token not in media}
    if (last := max(used)) >= rows:
        raise UserError(
            f"{folder}: token '{used[last]}' has id {last}, but the model's embedding holds {rows} rows; take it out "
            "of the tokenizer's files, or resize the embedding"
        )
    padding = config.get_text_config().pad_token_id
    if padding is not None and not -rows <= padding < rows:
        raise UserError(f"{folder}/config.json: pad_token_id is {padding}, but the model's embedding holds {rows} rows")
    _check_end(folder, tokenizer, generation, rows)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def media_tokens(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """The tokens that stand for pictures, sound and films, which no text may hold.

    Gemma 3's smallest model takes no pictures: its tokenizer has their token, and its embedding no row for it.
    """
    return {token for name, token in tokenizer.special_tokens_map.items() if name in MEDIA and isinstance(token, str)}


def _generation_config(folder: Path, config: PretrainedConfig) -> GenerationConfig:
    """The settings that the loaded model would have."""
    if (folder / "generation_config.json").is_file():
        return GenerationConfig.from_pretrained(folder, local_files_only=True)
    return GenerationConfig.from_model_config(config)


def stop_tokens(folder: Path, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """``end_tokens`` of a model that is not loaded here."""
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    return end_tokens(_generation_config(folder, config), tokenizer)


def conversation_tokens(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Sequence[dict[str, str]]], ask: bool = False
) -> list[list[int]]:
    """The tokens of conversations by the template, with ``ask`` up to where the answer begins."""
    turns = [list(conversation) for conversation in conversations]
    texts = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=ask)
    ids: list[list[int]] = tokenizer(list(map(str, texts)), add_special_tokens=False)["input_ids"]
    return ids


def common_beginning(first: Sequence[int], second: Sequence[int]) -> int:
    """The number of tokens with which both begin: for a prompt and its conversation the prompt's, as TRL counts
    them."""
    return len(list(takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False))))


def end_tokens(generation: GenerationConfig, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that end an answer: those of the generation settings, and the tokenizer's."""
    given = generation.eos_token_id
    ids = given if isinstance(given, list) else [given]
    return sorted({token for token in (*ids, tokenizer.eos_token_id) if token is not None})


def _check_end(folder: Path, tokenizer: PreTrainedTokenizerBase, generation: GenerationConfig, rows: int) -> None:
    """Refuse a tokenizer without an end token, and a template that ends an answer with a token generation ignores."""
    given = generation.eos_token_id
    for token in given if isinstance(given, list) else [given]:
        if token is not None and not (type(token) is int and 0 <= token < rows):
            found = token if type(token) is int else json_kind(token)
            raise UserError(
                f"{folder}: eos_token_id of generation_config.json or config.json is {found}; allowed: the ids of the "
                f"embedding's {rows} rows, one or a list"
            )
    turns = [*PROBES[0], {"role": "assistant", "content": ANSWER}]
    try:
        whole = str(tokenizer.apply_chat_template(turns, tokenize=False))
    except RENDERING_ERRORS as error:
        raise UserError(f"{folder}: {not_taken(turns, error)}") from None
    _, written, tail = whole.rpartition(ANSWER)
    if not written:
        raise UserError(f"{folder}: the chat template does not write the assistant's turn")
    ends = sorted((token for token in tokenizer.get_added_vocab() if token in tail), key=tail.index)
    hint = f"; the chat template ends an answer with '{ends[0]}'" if ends else ""
    if tokenizer.eos_token is None:
        lacking = "no eos_token" if tokenizer.pad_token else "neither pad_token nor eos_token"
        raise UserError(f"{folder}: the tokenizer has {lacking}; name the eos_token in tokenizer_config.json{hint}")
    stops = end_tokens(generation, tokenizer)
    if not set(stops) & set(tokenizer(tail, add_special_tokens=False)["input_ids"]):
        names = ", ".join(f"'{tokenizer.decode([token])}'" for token in stops)
        raise UserError(
            f"{folder}: the chat template ends an answer with {tail!r}, but generation stops at {names} alone, so that "
            "no answer would end; set eos_token in tokenizer_config.json, or eos_token_id in generation_config.json"
        )


def context_length(folder: Path) -> int | None:
    """Tokens of the longest sequence that the model in ``folder`` was made for; None where its configuration is silent.

    Raises:
        UserError: the configuration cannot be read.
    """
    with loading(folder):
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    facts = config.get_text_config().to_dict()
    return next(
        (int(facts[key]) for key in ("n_positions", "max_position_embeddings", "n_ctx") if facts.get(key)), None
    )


def rendered_hash(folder: Path, template_kwargs: Mapping[str, Any]) -> str:
    """Sixteen hexadecimal digits over what the chat template makes of fixed conversations, and their tokens.

    It is the same on every day. Equal hashes mean the same prompts; another template, variable, clock or tokenizer
    gives another hash.

    Raises:
        UserError: as ``load_tokenizer``.
    """
    tokenizer = load_tokenizer(folder, template_kwargs)
    chat = Chat(tokenizer)
    texts = [chat.render(messages) for messages in PROBES]
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    return hashlib.sha256(json.dumps([texts, ids]).encode()).hexdigest()[:16]


def context_difference(tokenizer: PreTrainedTokenizerBase, asked: Messages, answer: str) -> str | None:
    """Difference between an answer's context in training and in evaluation; None if there is none.

    Training tokenizes the turns ``asked`` and the answer as one conversation (TRL), evaluation the turns alone with a
    generation prompt. Spaces before the answer are the answer's: tokenizers make them part of its first word.
    """
    found = _difference(tokenizer, asked, answer, {})
    if found is None:
        return None
    for name in sorted(template_variables(str(tokenizer.get_chat_template())) - {*RESERVED, *GIVEN}):
        for value in (False, True):
            if _difference(tokenizer, asked, answer, {name: value}) is None:
                return f"{found}; +model.template_kwargs.{name}={str(value).lower()} makes them equal"
    return f"{found}; use a template that renders both alike"


def _difference(
    tokenizer: PreTrainedTokenizerBase, asked: Messages, answer: str, values: Mapping[str, Any]
) -> str | None:
    """``context_difference`` with more variables of the template, and without a remedy."""
    given = [dict(message) for message in asked]
    told = [*given, {"role": "assistant", "content": answer}]
    try:
        before = str(tokenizer.apply_chat_template(given, tokenize=False, add_generation_prompt=True, **values))
        whole = str(tokenizer.apply_chat_template(told, tokenize=False, **values))
    except RENDERING_ERRORS as error:
        return not_taken(told, error)
    evaluated, trained = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (before, whole))
    same = next((n for n, pair in enumerate(zip(evaluated, trained, strict=False)) if pair[0] != pair[1]), None)
    if same is not None or len(trained) < len(evaluated):
        start = len(trained) if same is None else same
        ends = (tokenizer.decode(ids[start : start + TOKENS_SHOWN]) for ids in (trained, evaluated))
        return "in training the context goes on with {!r}, in evaluation with {!r}".format(*ends)
    between, written, _ = whole[len(before) :].partition(answer.strip())
    if not written:
        return f"the chat template does not write the answer as it stands in the row, but {between[:40]!r}"
    if between.strip(" ") and not answer.startswith(between):
        return f"in training the chat template puts {between!r} in front of the answer, in evaluation it does not"
    return None
