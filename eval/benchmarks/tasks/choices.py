"""Functions of the benchmarks that are answered in words: which letter, or which of yes and no, a response comes to."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

LETTERS = "ABCDEFGHIJ"
BOXED = re.compile(r"\\(?:boxed|fbox)\b")
MARKUP = re.compile(r"\\(?:text\w*|math\w*)\b|[*_`$#{}]")
# What leads to an answer: "The correct answer is option", "Answer:", "final answer".
LEAD = (
    r"(?i:\banswer(?:\s+(?:choice|option|letter))?\b\W{0,4}(?:(?:is|would\s+be|should\s+be|must\s+be)\b\W{0,4})?"
    r"(?:(?:the\s+)?(?:option|choice|letter)\b\W{0,3})?)"
)


def letter_results(document: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Whether the letter that a response comes to is the right one, and whether one could be read at all."""
    options = document["choices"] if "choices" in document else LETTERS[:4]
    found = read_letter(results[0], len(options))
    # GPQA's targets stand in parentheses.
    return {"acc": float(found == document["target"].strip("()")), "read": float(found is not None)}


def yes_no_results(document: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Whether the yes or no that a response comes to is the right one, and whether one could be read at all."""
    found = read_yes_no(results[0])
    return {"acc": float(found == document["target"]), "read": float(found is not None)}


def read_letter(response: str, options: int) -> str | None:
    """The letter of one of ``options`` that a response names last as its answer; else one that stands alone in its last
    line, or at the beginning of its first; None where there is none. Letters are capitals, and options that are merely
    repeated are no answer.
    """
    letters = LETTERS[:options]
    # "The answer is A cat", "Answer: I think …" name no letter.
    words = "".join(letter for letter in letters if letter in "AI")
    others = "".join(letter for letter in letters if letter not in "AI")
    letter = rf"([{others}](?![\w'’])|[{words}](?![\w'’])(?=[ \t]*(?:[^\w\s'’]|\n|\Z)|\s+(?:because|since|as)\b))"
    text = _plain(response)
    found = _read(text, letter, rf"([{letters}])\W*", rf"\W*([{letters}])(?:[).:](?:\s|\Z)|\W*\Z)")
    if found is None:
        return None
    repeated = set(re.findall(rf"(?m)^\W*([{letters}])[).:]\s", text))
    return None if found.begins_line and repeated - {found.word} else found.word


def read_yes_no(response: str) -> str | None:
    """``yes`` or ``no``, whichever a response names last as its answer, consists of in its last line or begins with."""
    word = r"(?i:(yes|no))\b"
    found = _read(_plain(response), word, rf"{word}\W*", rf"\W*{word}")
    return found.word.lower() if found else None


@dataclass(frozen=True)
class _Found:
    """What a response names; ``begins_line``: at the beginning of a line, where options stand as well."""

    word: str
    begins_line: bool


def _plain(response: str) -> str:
    return MARKUP.sub("", BOXED.sub(" answer: ", response)).strip()


def _read(text: str, answer: str, alone: str, beginning: str) -> _Found | None:
    if named := list(re.finditer(LEAD + answer, text)):
        return _Found(named[-1][1], "\n" in named[-1][0])
    lines = text.splitlines() or [""]
    if last := re.fullmatch(rf"\W*{alone}", lines[-1]):
        return _Found(last[1], begins_line=False)
    first = re.match(beginning, lines[0])
    return _Found(first[1], begins_line=True) if first else None
