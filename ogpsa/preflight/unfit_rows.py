"""Rows that would teach something other than their text, found before anything is trained or evaluated.

TRL trains on the first ``max_length`` tokens of prompt and answer: an answer that is cut loses its end of turn, and a
prompt that fills them leaves no answer, so that the row vanishes. A pair whose answers are equal has no gradient, yet
takes its share of every mean, and AdamW moves the weights by its moments alone.
"""

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from transformers import PreTrainedTokenizerBase

from ogpsa.config import Config, DPOSettings, FileData, GRPOSettings, OneStage, StageName
from ogpsa.data.conversations import Message, conversation, turn, turns
from ogpsa.data.rows import COLUMNS, SAFETY_COLUMNS, Data, Row, row_place, set_uses
from ogpsa.models.template import RENDERING_ERRORS, lost_turn
from ogpsa.models.tokenizer import PROBES, common_beginning, context_difference, media_tokens
from ogpsa.utils.answers import split_reply
from ogpsa.utils.errors import UserError

log = logging.getLogger("ogpsa.rows")
# Rows that are tokenized at a time.
CHUNK = 256
# Rows that a message names.
NAMED = 5
# The turns of a row's prompt, each a role and its words, and the row's answers.
Texts = tuple[tuple[tuple[str, str], ...], tuple[str, ...]]
# A mark of a turn that need not be one token, as [INST].
BRACKETED = re.compile(r"<\|[^<>|\s]+\|>|</?[A-Za-z_]+>|\[/?[A-Z_]+\]")


@dataclass
class Unfit:
    """The rows of one set that a stage cannot train on as they are: their places from 0, and the tokens they take.

    Attributes:
        otherwise: how training and evaluation, or row and template, differ (``context_difference``, ``lost_turn``).
        marks: the mark of a turn that a text holds, as if it ended there.
    """

    without_answer: dict[int, int] = field(default_factory=dict)
    cut: dict[int, int] = field(default_factory=dict)
    equal: dict[int, int] = field(default_factory=dict)
    otherwise: dict[int, str] = field(default_factory=dict)
    marks: dict[int, str] = field(default_factory=dict)


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
    """For each stage the rows that it would not train on as they stand, tokenized as TRL does it."""
    widest = max((columns[stage.name] for stage in stages), key=len)
    texts: tuple[Texts, ...] = tuple(
        (
            tuple((message["role"], message["content"]) for message in turns(row["prompt"])),
            tuple(row[column] for column in widest[1:]),
        )
        for row in rows
    )
    limits = tuple((len(columns[stage.name]) - 1, _limit(stage, len(columns[stage.name]) - 1)) for stage in stages)
    return _unfit_rows(tokenizer, limits, texts)


def _limit(stage: OneStage, answers: int) -> int:
    """Tokens of a row; without an answer those of a prompt that leaves room for the model's own."""
    return stage.max_length - (stage.max_new_tokens if isinstance(stage, GRPOSettings) and not answers else 0)


@lru_cache(maxsize=8)
def _unfit_rows(
    tokenizer: PreTrainedTokenizerBase, stages: tuple[tuple[int, int], ...], rows: tuple[Texts, ...]
) -> list[Unfit]:
    """``unfit_rows`` for prompts with their answers; each stage is given by its number of answers and its token limit.

    Kept for the next run of a sweep: the same rows are tokenized once.
    """
    unfit = [Unfit() for _ in stages]
    marks = _turn_marks(tokenizer)
    for start in range(0, len(rows), CHUNK):
        part = rows[start : start + CHUNK]
        asked = [[turn(*one) for one in before] for before, _ in part]
        begun = _texts(tokenizer, asked, ask=True)
        lost = [lost_turn(tokenizer, messages) for messages in asked]
        wholes, differences = [], []
        prompts = [] if all(answers for answers, _ in stages) else _ids(tokenizer, begun)
        for column in zip(*(answers for _, answers in part), strict=True):
            texts = _texts(tokenizer, [conversation(*pair) for pair in zip(asked, column, strict=True)])
            differences.append(
                [
                    None if _goes_on(beginning, answer, text) else context_difference(tokenizer, messages, answer)
                    for beginning, messages, answer, text in zip(begun, asked, column, texts, strict=True)
                ]
            )
            wholes.append(_ids(tokenizer, texts))
        for (answers, limit), found in zip(stages, unfit, strict=True):
            for number, ((before, told), *whole) in enumerate(zip(part, *wholes[:answers], strict=True), start=start):
                if mark := marks.search("\n".join([*(said for _, said in before), *told[:answers]])):
                    found.marks[number] = mark[0]
                    continue
                unlike = (column[number - start] for column in [lost, *differences[:answers]])
                if difference := next(filter(None, unlike), None):
                    found.otherwise[number] = difference
                    continue
                if not answers:
                    if len(prompts[number - start]) > limit:
                        found.without_answer[number] = len(prompts[number - start])
                    continue
                longest = max(map(len, whole))
                prompt = _prompt_length(tokenizer, asked[number - start], whole) if longest > limit else 0
                if prompt >= limit:
                    found.without_answer[number] = prompt
                    continue
                if longest > limit:
                    found.cut[number] = longest
                if any(tokens[:limit] == whole[0][:limit] for tokens in whole[1:]):
                    found.equal[number] = longest
    return unfit


def _lines(key: str, stage: OneStage, part: _Part, unfit: Unfit, folder: str) -> Iterator[tuple[bool, str]]:
    """The messages about a part's unfit rows, each with whether the configuration allows them; ``key``: the stage's."""
    limit = f"{stage.max_length} tokens"
    which, rows = part.called, len(part.rows)

    def those(found: dict[int, int], what: str) -> str:
        first = [f"{part.place(number)} ({what}{size} tokens)" for number, size in found.items()][:NAMED]
        more = f" and {len(found) - len(first)} more" if len(found) > len(first) else ""
        return f"in {len(found)} of the {rows} rows of the {which}, {', '.join(first)}{more}"

    if unfit.otherwise:
        number, difference = next(iter(unfit.otherwise.items()))
        others = f" (and {len(unfit.otherwise) - 1} more rows)" if len(unfit.otherwise) > 1 else ""
        yield False, f"{folder}: {which}, {part.place(number)}: {difference}{others}"
    if unfit.marks:
        first = ", ".join(f"{part.place(number)} ({mark!r})" for number, mark in list(unfit.marks.items())[:NAMED])
        lost = f"{which}: a text holds a mark of the model's own turns, as if a turn ended there, in "
        yield False, f"{lost}{len(unfit.marks)} of the {rows} rows, {first}; take the marks out"
    if unfit.without_answer:
        found = those(unfit.without_answer, "a prompt of ")
        lost = "leave no answer to train on"
        if isinstance(stage, GRPOSettings):
            lost = f"leave no {stage.max_new_tokens} for the model's own answer (max_new_tokens)"
        yield False, f"{key}.max_length: {limit} {lost} {found}; raise it or take the rows out"
    if unfit.cut:
        if isinstance(stage, GRPOSettings):
            lost = "are too few for a whole answer"
            remedy = "; raise it or take the rows out"
        else:
            lost = "cut the answers, so that their end of turn is lost"
            remedy = f"; raise it, take the rows out, or allow it by {key}.cut_answers=true"
        lost = f"{key}.max_length: {limit} {lost}, {those(unfit.cut, '')}"
        yield stage.cut_answers, lost if stage.cut_answers else lost + remedy
    if unfit.equal and isinstance(stage, DPOSettings):
        lost = f"{key}.equal_answers: chosen and rejected are the same tokens within {limit}, so that there is no "
        lost += f"gradient, {those(unfit.equal, '')}"
        remedy = f"; take the rows out, or allow it by {key}.equal_answers=true"
        yield stage.equal_answers, lost if stage.equal_answers else lost + remedy


def _turn_marks(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    """A pattern of marks of turns: end, padding and picture tokens, the chat template's tokens and bracketed marks."""
    frame = "".join(text or "" for text in _texts(tokenizer, [*map(list, PROBES), list(PROBES[0])], ask=True))
    ends = [token for token in (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) if token]
    added = [token for token in tokenizer.get_added_vocab() if token in frame]
    media = media_tokens(tokenizer)
    marks = {mark for mark in (*ends, *added, *media, *BRACKETED.findall(frame)) if mark[0] in "<["}
    # An answer may hold a thought, which the template writes as it stands or is told by ``context_difference``.
    used = sorted(mark for mark in marks if split_reply(mark).answer == mark)
    return re.compile("|".join(map(re.escape, used)) or "(?!)")


def _goes_on(asked: str | None, answer: str, text: str | None) -> bool:
    """Whether a conversation's text is the prompt's with the answer behind it; None is a text that is not rendered."""
    if asked is None or text is None or not text.startswith(asked):
        return False
    return text[len(asked) :].lstrip(" ").startswith(answer.strip())


def _texts(tokenizer: PreTrainedTokenizerBase, turns: list[list[Message]], ask: bool = False) -> list[str | None]:
    """The conversations' texts; None where the template does not take one."""
    try:
        return list(map(str, tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=ask)))
    except RENDERING_ERRORS:
        if len(turns) == 1:
            return [None]
        return [text for conversation in turns for text in _texts(tokenizer, [conversation], ask)]


def _ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str | None]) -> list[list[int]]:
    ids: list[list[int]] = tokenizer([text or "" for text in texts], add_special_tokens=False)["input_ids"]
    return ids


def _prompt_length(tokenizer: PreTrainedTokenizerBase, asked: list[Message], whole: Sequence[Sequence[int]]) -> int:
    """Tokens before the answer, as TRL counts them: those with which prompt and conversation both begin."""
    [prompt] = _ids(tokenizer, _texts(tokenizer, [asked], ask=True))
    return min(common_beginning(prompt, tokens) for tokens in whole)
