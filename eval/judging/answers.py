"""The answer in a response: what is left without thoughts, and whether there is one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from eval.judging.judge import Item, Metric, Verdict, missing
from ogpsa.utils.answers import says_nothing, split_reply

NoAnswer = Literal["empty", "unfinished"]
NO_ANSWER: tuple[NoAnswer, ...] = get_args(NoAnswer)


@dataclass(frozen=True)
class Answer:
    """The answer in a response.

    Attributes:
        none: why there is no answer: ``empty``, it says nothing, or ``unfinished``, the response ends in a thought.
    """

    text: str
    none: NoAnswer | None


def find_answers(items: Sequence[Item]) -> list[Answer]:
    """The answers in the responses to one benchmark's rows, in their order.

    Where half of the responses that came to their end close a thought that they did not open, the template opens it:
    one that was cut before any such mark is a thought as well.
    """
    replies = [split_reply(item.response, item.in_thought) for item in items]
    ended = [reply.opened_before for item, reply in zip(items, replies, strict=True) if item.finish_reason != "length"]
    template_opens = any(ended) and 2 * sum(ended) >= len(ended)
    answers = []
    for item, reply in zip(items, replies, strict=True):
        cut_early = template_opens and item.finish_reason == "length" and not (reply.thought or reply.opened_before)
        if reply.answer is None or cut_early:
            answers.append(Answer("", "unfinished"))
            continue
        ends = [place for stop in item.stop if stop and (place := reply.answer.find(stop)) >= 0]
        text = reply.answer[: min(ends)] if ends else reply.answer
        answers.append(Answer(text, "empty" if _is_empty(text, item.target) else None))
    return answers


def _is_empty(text: str, target: str) -> bool:
    """Whether a text says nothing; where the right answer is a sign, signs say something."""
    return not text.strip() or (says_nothing(text) and (not target.strip() or not says_nothing(target)))


def verdict_on_none(none: NoAnswer, metric: Metric) -> Verdict:
    """The verdict where there is no answer: neither a refusal nor compliance, and never right.

    An empty answer to a question is a wrong one; whether an unfinished one would have been right is not known.
    """
    if none == "empty" and metric == "accuracy":
        return Verdict("empty", 0.0)
    return missing(none)
