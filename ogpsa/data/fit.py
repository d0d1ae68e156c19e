"""What a model would see of a row: its tokens by the template, and whether they are all of the row's own text."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from transformers import PreTrainedTokenizerBase

from ogpsa.data.conversations import Message, conversation, turn
from ogpsa.models.template import RENDERING_ERRORS, lost_turn
from ogpsa.models.tokenizer import PROBES, common_beginning, context_difference, media_tokens
from ogpsa.utils.answers import split_reply

# Rows that are tokenized at a time.
CHUNK = 256
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


@lru_cache(maxsize=8)
def unfit_texts(
    tokenizer: PreTrainedTokenizerBase, stages: tuple[tuple[int, int], ...], rows: tuple[Texts, ...]
) -> list[Unfit]:
    """For each stage the rows that it would not train on as they stand, tokenized as TRL does it.

    A stage is given by its number of answers and its token limit; without answers that of the prompt.

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
