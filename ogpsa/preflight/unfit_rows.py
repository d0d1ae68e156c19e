"""Rows that would teach something other than their text, found before anything is trained or evaluated.

TRL trains on the first ``max_length`` tokens of prompt and answer: an answer that is cut loses its end of turn, and a
prompt that fills them leaves no answer, so that the row vanishes. A pair whose answers are equal has no gradient, yet
takes its share of every mean, and AdamW moves the weights by its moments alone.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from ogpsa.config import Config, DPOSettings, FileData, GRPOSettings, OneStage, StageName
from ogpsa.data.builders.settings import CARD
from ogpsa.data.conversations import turns
from ogpsa.data.fit import Texts, Unfit, unfit_texts
from ogpsa.data.rows import COLUMNS, SAFETY_COLUMNS, Data, Row, row_place, set_uses
from ogpsa.utils.errors import UserError, first_few

log = logging.getLogger("ogpsa.rows")
# Rows that a message names.
NAMED = 5


def check_answers(config: Config, data: Data, tokenizer: PreTrainedTokenizerBase) -> None:
    """Compare every row that a stage reads, in training, reference and held-out sets, with what it would see of it.

    Cut answers and equal pairs that ``stage.cut_answers`` and ``stage.equal_answers`` allow are counted in the log.

    Raises:
        UserError: one line for each kind of unfit row in each set of each stage, with the first rows.
    """
    problems, folder = [], tokenizer.name_or_path
    for part, stages in _parts(config, data).items():
        found = unfit_rows(tokenizer, stages, part.rows, SAFETY_COLUMNS if part.trained_on else COLUMNS)
        for stage, unfit in zip(stages, found, strict=True):
            for allowed, line in _lines(config.stage_key(stage.name), stage, part, unfit, folder):
                if allowed:
                    log.warning("%s", line)
                else:
                    problems.append(line)
    if problems:
        raise UserError(*dict.fromkeys(problems))


@dataclass(frozen=True)
class _Part:
    """Rows that stages read.

    Attributes:
        called: what messages call them.
        path: their file, where they have one.
        trained_on: whether a step is taken on them.
    """

    called: str
    path: str | None
    trained_on: bool
    rows: list[Row] = field(compare=False)

    def place(self, number: int) -> str:
        """As ``row_place``."""
        return row_place(self.path, number)

    @property
    def removal(self) -> str:
        """How a user takes rows out."""
        built = self.path is not None and (Path(self.path).parent / CARD).is_file()
        return "take the rows out" + " (python -m ogpsa.data build does, given fits.tokenizers)" * built


def _parts(config: Config, data: Data) -> dict[_Part, list[OneStage]]:
    """The parts of the data, each with the stages that read it."""
    files = config.data if isinstance(config.data, FileData) else None
    readers = {_Part("safety set", files.safety if files else None, True, data.safety): list(config.stages)}
    for stage in config.stages:
        for use in set_uses(config, stage, len(data.safety)):
            path = files.reference_sets[use.name] if files else None
            part = _Part(f"reference set '{use.name}'", path, use.trained_on, data.reference_sets[use.name])
            readers.setdefault(part, []).append(stage)
        for name, rows in data.held_out.items() if stage.eval_every is not None else ():
            part = _Part(f"held-out set '{name}'", files.held_out[name] if files else None, False, rows)
            readers.setdefault(part, []).append(stage)
    return readers


def unfit_rows(
    tokenizer: PreTrainedTokenizerBase,
    stages: Sequence[OneStage],
    rows: Sequence[Row],
    columns: Mapping[StageName, Sequence[str]] = COLUMNS,
) -> list[Unfit]:
    """As ``unfit_texts``."""
    widest = max((columns[stage.name] for stage in stages), key=len)
    texts: tuple[Texts, ...] = tuple(
        (
            tuple((message["role"], message["content"]) for message in turns(row["prompt"])),
            tuple(row[column] for column in widest[1:]),
        )
        for row in rows
    )
    limits = tuple((len(columns[stage.name]) - 1, _limit(stage, len(columns[stage.name]) - 1)) for stage in stages)
    return unfit_texts(tokenizer, limits, texts)


def _limit(stage: OneStage, answers: int) -> int:
    """Tokens of a row; without an answer those of a prompt that leaves room for the model's own."""
    return stage.max_length - (stage.max_new_tokens if isinstance(stage, GRPOSettings) and not answers else 0)


def _lines(key: str, stage: OneStage, part: _Part, unfit: Unfit, folder: str) -> Iterator[tuple[bool, str]]:
    """The messages about a part's unfit rows, each with whether the configuration allows them; ``key``: the stage's."""
    limit = f"{stage.max_length} tokens"
    which, rows = part.called, len(part.rows)

    def those(found: dict[int, int], what: str) -> str:
        named = [f"{part.place(number)} ({what}{size} tokens)" for number, size in found.items()]
        return f"in {len(found)} of the {rows} rows of the {which}, {first_few(named, NAMED)}"

    if unfit.otherwise:
        number, difference = next(iter(unfit.otherwise.items()))
        others = f" (and {len(unfit.otherwise) - 1} more rows)" if len(unfit.otherwise) > 1 else ""
        yield False, f"{folder}: {which}, {part.place(number)}: {difference}{others}"
    if unfit.marks:
        first = ", ".join(f"{part.place(number)} ({mark!r})" for number, mark in list(unfit.marks.items())[:NAMED])
        lost = f"{which}: a text holds a mark of the model's own turns, as if a turn ended there, in "
        yield False, f"{lost}{len(unfit.marks)} of the {rows} rows, {first}; {part.removal}, or the marks"
    if unfit.without_answer:
        found = those(unfit.without_answer, "a prompt of ")
        lost = "leave no answer to train on"
        if isinstance(stage, GRPOSettings):
            lost = f"leave no {stage.max_new_tokens} for the model's own answer (max_new_tokens)"
        yield False, f"{key}.max_length: {limit} {lost} {found}; raise it or {part.removal}"
    if unfit.cut:
        if isinstance(stage, GRPOSettings):
            lost = "are too few for a whole answer"
            remedy = f"; raise it or {part.removal}"
        else:
            lost = "cut the answers, so that their end of turn is lost"
            remedy = f"; raise it, {part.removal}, or allow it by {key}.cut_answers=true"
        lost = f"{key}.max_length: {limit} {lost}, {those(unfit.cut, '')}"
        yield stage.cut_answers, lost if stage.cut_answers else lost + remedy
    if unfit.equal and isinstance(stage, DPOSettings):
        lost = f"{key}.equal_answers: chosen and rejected are the same tokens within {limit}, so that there is no "
        lost += f"gradient, {those(unfit.equal, '')}"
        remedy = f"; {part.removal}, or allow it by {key}.equal_answers=true"
        yield stage.equal_answers, lost if stage.equal_answers else lost + remedy
