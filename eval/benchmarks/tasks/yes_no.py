"""Functions of the benchmarks that are answered by yes or no, where the request may itself hold the word.

Apart from ``choices.py``: a file's code is part of the hash of every task that names one of its functions.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

BOXED = re.compile(r"\\(?:boxed|fbox)\b")
MARKUP = re.compile(r"\\(?:text\w*|math\w*)\b|[*_`$#{}]")
QUOTES = r"\"'“”„\u2018’\u201a«»"
# "No one" and "no longer" say no no, "yes or no" neither, and "no is wrong" talks about an answer.
EITHER = (
    r"\b(yes|no)\b(?!\s+(?:one|longer|more|such)\b|\s*(?:/|or\b)\W*(?:yes|no)\b)"
    rf"(?![{QUOTES}]?\s+(?:is|was|seems|would\s+be)(?:n['’]t)?\s+(?:\w+\s+){{0,2}}"
    r"(?:correct|incorrect|right|wrong|true|false)\b)"
)
# Behind a quotation mark it is the answer that the request shows.
WORD = rf"(?<![{QUOTES}]){EITHER}"
IS = r"(?:\s+(?:is|would\s+be|should\s+be|must\s+be)\b|\s*[:=–—-]|\n)\W{0,6}"
# What leads to the response's own answer, and not to the one that is shown or would be right.
OWN = rf"\b(?:the|my|final)\s+answer{IS}"
LEAD = (
    r"(?:(?<!wrong )(?<!given )(?<!shown )(?<!stated )(?<!incorrect )(?<!provided )(?<!proposed )"
    rf"\b(?:answer|choice)(?:\s+to\s+(?:the|this)\s+question)?{IS}"
    r"|\bI(?:['’]d|\s+would)?\s+(?:answer|say|choose|pick|select|go\s+with)\b\W{0,6})"
)
# A line of its own, in which the word may be quoted.
LINE = rf"(?:^\W*|\bfinal\s+)answer{IS}{EITHER}(?=[{QUOTES}]?\s*(?:$|[^\w\s{QUOTES}])|\s+(?:because|since|as)\b)"
LAST = (
    r"\W*(?:(?:so|therefore|thus|hence)\b\W+)?(?:(?:it['’]s|(?:it|that|this)\s+(?:is|must\s+be))\s+)?"
    rf"\W*{WORD}\W*\Z"
)
# So that no response takes long to read.
LAST_CHARACTERS = 200


def yes_no_results(document: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Whether the yes or no that a response comes to is the right one, and whether one could be read at all."""
    found = read_yes_no(results[0])
    return {"acc": float(found == document["target"]), "read": float(found is not None)}


def read_yes_no(response: str) -> str | None:
    """``yes`` or ``no``: the one that a response begins with, unless a line with its answer or its last sentence says
    otherwise; without such a beginning, the one that it names last as its answer or ends with as a sentence.
    """
    plain = MARKUP.sub("", BOXED.sub(" final answer: ", response))
    text = "\n".join(line.strip() for line in plain.splitlines() if re.search(r"\w", line))
    first = _all(rf"\A\W*{WORD}", text)
    if first:
        later, stops = [*_all(LINE, text), *_all(rf"{OWN}{WORD}\W*\Z", text)], ".!?"
    else:
        # At the end a quoted word is the response's own.
        text = re.sub(rf"(?i)[{QUOTES}](?=(?:yes|no)\W*\Z)", "", text)
        later, stops = _all(f"{LEAD}{WORD}|{LINE}", text), ".!?:;"
    last = _all(rf"(?:\A|\n|[{stops}]\s){LAST}", text[-LAST_CHARACTERS:])
    found = [*first, *later, *last]
    return next(word.lower() for word in found[-1].groups() if word) if found else None


def _all(pattern: str, text: str) -> list[re.Match[str]]:
    return list(re.finditer(pattern, text, re.IGNORECASE | re.MULTILINE))
