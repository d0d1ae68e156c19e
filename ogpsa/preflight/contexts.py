"""Whether tokenizer, template, model and rows agree, before anything is trained or evaluated."""

import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from ogpsa.config import Config
from ogpsa.data.conversations import turns
from ogpsa.data.rows import Data, Row, stage_sets
from ogpsa.models.template import lost_turn
from ogpsa.models.tokenizer import context_difference, context_length, load_tokenizer
from ogpsa.preflight.unfit_rows import check_answers
from ogpsa.utils.errors import UserError

# Rows of each set whose tokens are compared; ``check_answers`` compares the text of every row.
ROWS = 8


def check_contexts(config: Config, data: Data, folder: Path) -> None:
    """Compare, on the first rows of each set, the context that training gives an answer with evaluation's.

    Args:
        folder: of the untuned model; its stages keep tokenizer and template.

    Raises:
        UserError: one line for each set whose contexts differ, for each ``max_length`` beyond the model's context, and
            as ``load_tokenizer`` and ``check_answers``.
    """
    files = tuple(sorted((file.name, file.stat().st_mtime_ns) for file in folder.iterdir()))
    tokenizer = _tokenizer(folder, json.dumps(config.model.template_kwargs), files)
    context = context_length(folder)
    problems = [
        f"{config.stage_key(stage.name)}.max_length: {stage.max_length} tokens, but the context of {folder} is "
        f"{context}; lower it"
        for stage in config.stages
        if context is not None and stage.max_length > context
    ]
    for stage in config.stages:
        for name, rows, answers in stage_sets(config, stage, data):
            problems += [f"{folder}: {name}, {line}" for line in _first_difference(tokenizer, answers, rows)]
    if problems:
        raise UserError(*dict.fromkeys(problems))
    check_answers(config, data, tokenizer)


@lru_cache(maxsize=4)
def _tokenizer(folder: Path, template_kwargs: str, files: tuple[tuple[str, int], ...]) -> PreTrainedTokenizerBase:
    """Cached for the next run of a sweep, as long as the files are unchanged."""
    return load_tokenizer(folder, json.loads(template_kwargs))


def _first_difference(tokenizer: PreTrainedTokenizerBase, answers: tuple[str, ...], rows: list[Row]) -> Iterator[str]:
    for number, row in enumerate(rows[:ROWS], start=1):
        asked = turns(row["prompt"])
        difference = lost_turn(tokenizer, asked)
        for column in answers:
            difference = difference or context_difference(tokenizer, asked, row[column])
        if difference is not None:
            yield f"row {number}: {difference}"
            return
