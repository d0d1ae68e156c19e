"""Functions of the benchmarks that are answered by yes or no, where the request may itself hold the word.

Apart from ``choices.py``: a file's code is part of the hash of every task that names one of its functions.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

BOXED = re.compile(r"\\(?:boxed|fbox)\b")
MARKUP = re.compile(r"\\(?:text\w*|math\w*)\b|</?\w+>|[*_`$#{}]")
QUOTES = r"\"'“”„\u2018’\u201a«»"
# What may follow a "no" that is an answer without a comma; in "no film" and "no longer" it is none.
FOLLOWS = (
    r"(?:it|its|this|that|these|those|the|they|he|she|there|an?|his|her|their|both|all|i|you|we|because|since|as|but|and|"
    r"or|so|if|not|for|from|to|in|on|according|actually|is|was|seems|would)\b"
)
# "Yes or no" and "yes and no" say neither, and "no is wrong" talks about an answer.
EITHER = (
    rf"\b(yes|no)\b(?!(?<=no)[ \t]+(?!{FOLLOWS})\w)(?!\s*(?:/|(?:or|and)\b)\W*(?:yes|no)\b)"
    rf"(?![{QUOTES}]?\s+(?:is|was|seems|would\s+be)(?:n['’]t)?\s+(?:\w+\s+){{0,2}}"
    r"(?:correct|incorrect|right|wrong|true|false)\b)"
)
# Behind a quotation mark it is the answer that the request shows.
WORD = rf"(?<![{QUOTES}]){EITHER}"
SO = r"(?:so|therefore|thus|hence)\b\W+"
HOW = r"(?:an?|clear(?:ly)?|definite(?:ly)?|simply|probably|likely|indeed|therefore|thus)\b"
MARK = rf"(?:\s*[:=→–—-]|\n)(?:\W{{1,3}}{HOW}){{0,2}}\W{{0,6}}"
IS = rf"(?:\s+(?:is|would\s+be|should\s+be|must\s+be)\b(?:\W{{1,3}}{HOW}){{0,2}}\W{{0,6}}|{MARK})"
# What leads to the response's own answer, and not to the one that is shown or would be right.
OWN = rf"\b(?:the|my|final)\s+answer(?!\s+(?:would|should)\b){IS}"
LEAD = (
    r"(?:(?<!wrong )(?<!given )(?<!shown )(?<!stated )(?<!incorrect )(?<!provided )(?<!proposed )"
    rf"\b(?:answer|choice|reply|response)(?:\s+to\s+(?:the|this)\s+question)?{IS}"
    r"|\bI(?:['’](?:d|ll)|\s+(?:would|will|must))?\s+(?:have\s+to\s+)?"
    r"(?:answer|say|reply|respond|choose|pick|select|go)(?:\s+with)?\b\W{0,6})"
)
# A line of its own, in which the word may be quoted.
LINE = rf"(?:^\W*|\bfinal\s+)answer{IS}{EITHER}(?=[{QUOTES}]?\s*(?:$|[^\w\s{QUOTES}])|\s+(?:because|since|as)\b)"
# The response's first word, or the first after the request's question.
FIRST = (
    rf"\A\W*(?:(?:so|therefore|thus|hence|well|hmm+|ok(?:ay)?|indeed|actually)\b\W+|"
    rf"[^?\n]{{0,200}}\b(?:made\s+up|false|contradict\w*)\b[^?\n]{{0,200}}\?\W*)?{WORD}"
)
# A correction of what came before.
ACTUALLY = rf"[.!?…]\s+actually\W+{WORD}"
LAST = (
    rf"\W*(?:(?:{SO}|actually\b\W+))?(?:(?:it['’]s|that['’]s|(?:it|that|this)\s+(?:is|must\s+be))\s+(?:{HOW}\s+){{0,2}})?"
    rf"\W*{WORD}\W*\Z"
)
# The last sentence says why, or the word is its conclusion.
REASONED = rf"(?:(?:\n|[.!]\s)\W*{WORD},[^.!?\n]*[.!]?\W*\Z|,\s+{SO}{WORD}\W*\Z)"
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
    first = _all(FIRST, text)
    if first:
        later, stops = [*_all(LINE, text), *_all(rf"{OWN}{WORD}\W*\Z", text)], ".!?"
    else:
        # At the end a quoted word is the response's own.
        text = re.sub(rf"(?i)[{QUOTES}](?=(?:yes|no)\W*\Z)", "", text)
        later, stops = _all(f"{LEAD}{WORD}|{LINE}", text), ".!?:;–—-"
        later += _all(REASONED, text[-LAST_CHARACTERS:])
    last = _all(rf"(?:\A|\n|[{stops}]\s){LAST}", text[-LAST_CHARACTERS:])
    found = [*first, *later, *_all(ACTUALLY, text), *last]
    return next(word.lower() for word in found[-1].groups() if word) if found else None


def _all(pattern: str, text: str) -> list[re.Match[str]]:
    return list(re.finditer(pattern, text, re.IGNORECASE | re.MULTILINE))
