"""Functions of the benchmarks that are answered with a letter: which one a response comes to."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

LETTERS = "ABCDEFGHIJ"
BOXED = re.compile(r"\\(?:boxed|fbox)\b")
MARKUP = re.compile(r"\\(?:text\w*|math\w*)\b|[*_`$#{}]")
# What leads to an answer: "The correct answer is option", "The best choice would be", "Answer:", "I would choose".
LEAD = (
    r"(?i:(?<!wrong )(?<!incorrect )(?:\b(?:answer|(?:correct|right|best|final)\s+(?:option|choice|letter|one))\b"
    r"(?:\s+(?:choice|option|letter|to\s+(?:the|this)\s+question)\b)?"
    r"|\bI(?:['’]d|\s+would)?\s+(?:choose|pick|select|go\s+with)\b)\W{0,6}"
    r"(?:(?:is|would\s+be|should\s+be|must\s+be)\b\W{0,6})?(?:(?:the\s+)?(?:option|choice|letter)\b\W{0,3})?)"
)
# What stands before a letter that is then called right, and what calls it so: "Option B is correct".
CALLED = (
    r"(?i:^\W*|[.!?:;,]\s+\(?|\b(?:so|therefore|thus|hence|that|think|believe)\s+\(?)"
    r"(?i:(?<!\bnor )(?<!\bor )(?<!\bif )(?<!\bwhether )\b(?:option|choice|letter|answer|statement)\s+\(?)?"
)
RIGHT = (
    r"(?i:\)?(?:\s*\([^()\n]*\))?\s+(?:is|would\s+be|should\s+be|must\s+be|seems|appears\s+to\s+be)\s+(?:the\s+)?"
    r"(?:most\s+)?(?:(?:correct|right)\b|(?:best\s+)?(?:answer|option|choice)\b)(?!\s*\?))"
)
# What the last sentence may hold beside it: "Therefore, it is option".
LAST = (
    r"(?:.*(?<!\b[A-J])[.!?:;]\s+)?\W*(?i:(?:(?:so|therefore|thus|hence)\b\W+)?"
    r"(?:(?:it['’]s|(?:it|that|this)\s+(?:is|must\s+be))\s+)?(?:(?:the\s+)?(?:option|choice|letter)\s+)?)\W*"
)
# Within a line, so that no response takes long to read.
LITTLE = r".{0,200}?"
LAST_CHARACTERS = 200
REASON = r"(?:because|since|as)\b"


def letter_results(document: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Whether the letter that a response comes to is the right one, and whether one could be read at all."""
    options = document["choices"] if "choices" in document else LETTERS[:4]
    found = read_letter(results[0], len(options))
    # GPQA's targets stand in parentheses.
    return {"acc": float(found == document["target"].strip("()")), "read": float(found is not None)}


def read_letter(response: str, options: int) -> str | None:
    """The letter of one of ``options`` that a response names last as its answer or ends with as a sentence; else the
    one that its last line begins with, or its first; None where there is none. Letters are capitals, or stand before a
    parenthesis. Options that are merely repeated are no answer.
    """
    letters = LETTERS[:options]
    either = rf"([{letters}](?!\w)|[{letters.lower()}](?=\)))"
    # "The answer is A cat", "Answer: I think …" name no letter.
    words = "".join(letter for letter in letters if letter in "AI")
    single = rf"(?![{words}](?!\s*(?:[^\w\s'’]|\Z)|\n|\s+{REASON}))(?![{letters}]['’]\w)"
    # "B or C", "A. Tundra B. Taiga C. Desert" name several.
    other = rf"(?:,\s*(?:and|or)|,|&|/|and|or)\s*\(?[{letters}]\b\)?"
    single += rf"(?!\w\)?(?:\s*{other})+\s*(?:[.\n]|\Z))(?![Aa][).:]\s{LITTLE}\b[Bb][).:]\s{LITTLE}\b[Cc][).:])"
    begins = rf"\W*(?:(?i:option|choice)\s+)?(?<!\w){single}{either}"
    lines = _lines(response)
    text = "\n".join(lines)
    labels = [re.match(rf"{begins}(?:[).:](?:\s|\Z)|\W*\Z)", line) for line in lines]
    named = re.finditer(rf"(?m){LEAD}(?<!\w){single}{either}|{CALLED}{either}{RIGHT}", text)
    for found in reversed([*named, *_last(text, either)]):
        place = found.start(found.lastindex or 0)
        number = text.count("\n", 0, place)
        if found.lastindex == 2 or not _listed(labels, number, place - text.rfind("\n", 0, place) - 1):
            return found[found.lastindex or 0].upper()
    for line in lines[-1:] + lines[:1]:
        beginning = rf"{begins}(?:[).:](?:\s|\Z)(?!\s*(?:is|isn['’]t)\b)|\W*\Z|,?\s+{REASON})"
        first = re.match(beginning, line)
        if first and not {label[1].upper() for label in labels if label} - {first[1].upper()}:
            return first[1].upper()
    return None


def _lines(response: str) -> list[str]:
    """The lines that say something, without markup."""
    plain = MARKUP.sub("", BOXED.sub(" answer: ", response))
    return [line.strip() for line in plain.splitlines() if re.search(r"\w", line)]


def _last(text: str, answer: str) -> list[re.Match[str]]:
    """The answer that the last sentence consists of."""
    found = re.compile(rf"{LAST}{answer}\W*\Z").match(text, max(text.rfind("\n") + 1, len(text) - LAST_CHARACTERS))
    return [found] if found else []


def _listed(labels: Sequence[re.Match[str] | None], number: int, column: int) -> bool:
    """Whether what stands there labels one of several options: another follows, or the one before it precedes."""
    here = labels[number]
    if here is None or here.start(1) != column:
        return False
    before, after = (labels[place] if 0 <= place < len(labels) else None for place in (number - 1, number + 1))
    follows = before is not None and ord(before[1].upper()) + 1 == ord(here[1].upper())
    return follows or (after is not None and after[1].upper() != here[1].upper())
