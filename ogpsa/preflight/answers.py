"""Rows that would teach something else than they say, found before anything is trained or evaluated.

TRL trains on the first ``max_length`` tokens of prompt and answer: an answer that is cut loses its end of turn, and a
prompt that fills them leaves no answer, so that the row vanishes. A pair whose answers are equal has no gradient, yet
takes its share of every mean, and AdamW moves the weights by its moments alone.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from transformers import PreTrainedTokenizerBase

from ogpsa.config import Config, DPOSettings, SFTSettings
from ogpsa.data.rows import COLUMNS, Data, Row, row_place
from ogpsa.models.files import SNAPSHOT_FILES
from ogpsa.models.tokenizer import load_tokenizer
from ogpsa.preflight.contexts import tokenizer_folder
from ogpsa.testbed.tokenizer import build_tokenizer
from ogpsa.testbed.world import World
from ogpsa.utils.errors import UserError

log = logging.getLogger("ogpsa.rows")
TOKENIZER_PATTERNS = [pattern for pattern in SNAPSHOT_FILES if pattern != "*.safetensors"]
# Rows that are tokenized at a time.
CHUNK = 256
# Rows that a message names.
NAMED = 5
Turn = dict[str, str]


@dataclass
class Unfit:
    """The rows of one set that a stage cannot train on as they are: their places from 0, and the tokens they take."""

    without_answer: dict[int, int] = field(default_factory=dict)
    cut: dict[int, int] = field(default_factory=dict)
    equal: dict[int, int] = field(default_factory=dict)


def check_answers(config: Config, data: Data, tokenizer: PreTrainedTokenizerBase) -> None:
    """Compare every row that a stage reads, in training and in reference sets, with what the stage would see of it.

    Cut answers and equal pairs that ``stage.cut_answers`` and ``stage.equal_answers`` allow are counted in the log.

    Raises:
        UserError: one line for each kind of unfit row in each set of each stage, with the first rows.
    """
    readers: dict[str, list[SFTSettings | DPOSettings]] = {"": list(config.stages)}
    for stage in config.stages:
        for use in config.method.set_uses(stage.name, len(data.safety)):
            readers.setdefault(use.name, []).append(stage)
    problems = []
    for name, stages in readers.items():
        rows = data.reference_sets[name] if name else data.safety
        for stage, unfit in zip(stages, unfit_rows(tokenizer, stages, rows), strict=True):
            for allowed, line in _lines(config, stage, name, len(rows), unfit):
                if allowed:
                    log.warning("%s", line)
                else:
                    problems.append(line)
    if problems:
        raise UserError(*problems)


def find_tokenizer(config: Config) -> PreTrainedTokenizerBase | None:
    """The tokenizer of the model to align; the hub's files are fetched, but not for a pre-flight; None: not to be had.

    Raises:
        UserError: as ``load_tokenizer``.
    """
    model = config.model
    if model.path is None:
        return build_tokenizer(World(config.testbed_base()[0].seed).vocabulary())
    folder = tokenizer_folder(config)
    if folder is None and not config.preflight:
        try:
            folder = Path(snapshot_download(model.path, revision=model.revision, allow_patterns=TOKENIZER_PATTERNS))
        except (HfHubHTTPError, LocalEntryNotFoundError):
            # Whoever fetches the weights says why.
            return None
    return None if folder is None else load_tokenizer(folder, model.template_kwargs)


def unfit_rows(
    tokenizer: PreTrainedTokenizerBase, stages: Sequence[SFTSettings | DPOSettings], rows: Sequence[Row]
) -> list[Unfit]:
    """For each stage the rows that it would not train on as they stand, tokenized as TRL does it."""
    unfit = [Unfit() for _ in stages]
    answers = max((COLUMNS[stage.name][1:] for stage in stages), key=len)
    for start in range(0, len(rows), CHUNK):
        part = rows[start : start + CHUNK]
        wholes = {
            name: _tokens(tokenizer, [[_turn("user", row["prompt"]), _turn("assistant", row[name])] for row in part])
            for name in answers
        }
        for stage, found in zip(stages, unfit, strict=True):
            columns = [wholes[name] for name in COLUMNS[stage.name][1:]]
            for number, (row, *whole) in enumerate(zip(part, *columns, strict=True), start=start):
                longest = max(map(len, whole))
                prompt = _prompt_length(tokenizer, row, whole) if longest > stage.max_length else 0
                if prompt >= stage.max_length:
                    found.without_answer[number] = prompt
                elif longest > stage.max_length:
                    found.cut[number] = longest
                if prompt < stage.max_length and any(
                    tokens[: stage.max_length] == whole[0][: stage.max_length] for tokens in whole[1:]
                ):
                    found.equal[number] = longest
    return unfit


def _lines(
    config: Config, stage: SFTSettings | DPOSettings, name: str, rows: int, unfit: Unfit
) -> Iterator[tuple[bool, str]]:
    """What is to be said of a set's unfit rows, and whether the configuration allows them."""
    key = config.stage_key(stage.name)
    limit = f"{stage.max_length} tokens"

    def those(found: dict[int, int], what: str) -> str:
        first = [f"{row_place(config, name, number)} ({what}{size} tokens)" for number, size in found.items()][:NAMED]
        more = f" and {len(found) - len(first)} more" if len(found) > len(first) else ""
        which = f"reference set '{name}'" if name else "safety set"
        return f"in {len(found)} of the {rows} rows of the {which}, {', '.join(first)}{more}"

    if unfit.without_answer:
        found = those(unfit.without_answer, "a prompt of ")
        yield False, f"{key}.max_length: {limit} leave no answer to train on {found}; raise it or take the rows out"
    if unfit.cut:
        lost = f"{key}.max_length: {limit} cut the answers, so that their end of turn is lost, {those(unfit.cut, '')}"
        remedy = f"; raise it, take the rows out, or allow it by {key}.cut_answers=true"
        yield stage.cut_answers, lost if stage.cut_answers else lost + remedy
    if unfit.equal and isinstance(stage, DPOSettings):
        lost = f"{key}.equal_answers: chosen and rejected are the same tokens within {limit}, so that there is no "
        lost += f"gradient, {those(unfit.equal, '')}"
        remedy = f"; take the rows out, or allow it by {key}.equal_answers=true"
        yield stage.equal_answers, lost if stage.equal_answers else lost + remedy


def _turn(role: str, text: str) -> Turn:
    return {"role": role, "content": text}


def _tokens(tokenizer: PreTrainedTokenizerBase, conversations: list[list[Turn]], ask: bool = False) -> list[list[int]]:
    texts = tokenizer.apply_chat_template(conversations, tokenize=False, add_generation_prompt=ask)
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return ids


def _prompt_length(tokenizer: PreTrainedTokenizerBase, row: Row, whole: Sequence[Sequence[int]]) -> int:
    """Tokens before the answer, as TRL counts them: those with which prompt and conversation both begin."""
    [prompt] = _tokens(tokenizer, [[_turn("user", row["prompt"])]], ask=True)
    return min(
        len(list(takewhile(lambda pair: pair[0] == pair[1], zip(prompt, tokens, strict=False)))) for tokens in whole
    )
