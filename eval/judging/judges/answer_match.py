"""Accuracy: the response contains the target, without a model; a stand-in for ``simpleqa_grader``.

It cannot see a denial ("it was not Paris"), a hedge or another wording of the same answer.
"""

import re
import unicodedata

from eval.judging.judge import Item, RuleJudge, Verdict, missing

ARTICLES = ("the", "a", "an")


def answer_match(response: str, target: str) -> bool | None:
    """Whether the target's words stand in the response in one piece; None for a target without words.

    Letter case, accents, punctuation, thousands' commas and an article before the target do not matter.
    """
    wanted, given = _words(target), _words(response)
    if len(wanted) > 1 and wanted[0] in ARTICLES:
        wanted = wanted[1:]
    if not wanted:
        return None
    return any(given[start : start + len(wanted)] == wanted for start in range(len(given) - len(wanted) + 1))


def _words(text: str) -> list[str]:
    plain = "".join(letter for letter in unicodedata.normalize("NFKD", text) if not unicodedata.combining(letter))
    words = re.findall(r"\d+(?:[.,]\d+)*|[^\W\d_]+", plain.casefold())
    return [word.replace(",", "") for word in words]


def _rule(item: Item) -> Verdict:
    correct = answer_match(item.response, item.target)
    if correct is None:
        return missing("unparsed", reason="the target holds no word")
    return Verdict("correct" if correct else "incorrect", float(correct))


JUDGE = RuleJudge(metric="accuracy", rule=_rule, needs_target=True)
