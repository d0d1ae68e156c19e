"""Reading a judge's reply: what stands there is taken, what is unclear is missing."""

import re
from collections.abc import Mapping

# Markup that models put around and before an answer.
DECORATION = "*_`#>\"'<>[](){}| \t"
HEADING = re.compile(
    r"(?:final\s+)?(?:verdict|class|classification|category|label|grade|answer)[\"'*_`]*\s*(?:[:=|]|\bis\b)\s*", re.I
)

# Behind a number: what makes another of it, or puts it on another scale than one to five.
OTHERWISE = (
    r"[ \t*_`]*(?:%|percent\b)"
    r"|[ \t]*(?:[-–,/+x×÷^±~&→*]|\*\*|[-=]>|\.{2,}|or\b|to\b|and\b|plus\b|minus\b|times\b|divided by\b)[ \t]*\d"
    r"|[ \t*_`]*(?:(?:points?|stars?|marks?)\b[ \t]*)?[(\[]?[ \t]*(?:(?:out[ \t]+)?of\b|/|from\b)[ \t]*"
    r"(?:a[ \t]+)?(?:(?:possible|maximum|max|total)\b[ \t]*(?:of\b[ \t]*)?)?[*_`]*"
    r"(?!(?:5|five)(?![\w.]*\w))(?:\d|one|two|three|four|six|seven|eight|nine|ten|(?:a |one )?hundred)"
    r"|[^\n,;|]{0,30}\bscale\b[^\n,;|]*\b(?:[6-9]|\d\d+|seven|ten|hundred)\b"
    r"|[ \t*_`]*\|[ \t*_`]*[-+]?\d"
)


def read_choice(reply: str, choices: Mapping[str, str]) -> str | None:
    """The choice that a reply comes to, or None.

    A choice is a line of its own, with or without a heading such as ``Verdict:`` and a remark in parentheses that
    names no other choice. The reply's last line decides, if it has a heading; otherwise the choices found must agree.

    Args:
        choices: label → pattern that a choice has to match as a whole, whatever its letter case.
    """
    lines = [line for line in reply.splitlines() if line.strip(DECORATION)]
    found = [_choice(line, choices) for line in lines]
    if found and found[-1] and HEADING.match(lines[-1].strip(DECORATION)):
        return found[-1]
    named = {choice for choice in found if choice}
    return named.pop() if len(named) == 1 else None


def read_safety(reply: str) -> tuple[str, list[str]] | None:
    """``safe`` or ``unsafe``, and the hazards (``S2``) that a guard's reply names; None where it comes to neither."""
    word = read_choice(reply, {"safe": "safe", "unsafe": "unsafe"})
    return None if word is None else (word, re.findall(r"\bS\d+\b", reply))


def _choice(line: str, choices: Mapping[str, str]) -> str | None:
    text = HEADING.sub("", line.strip(DECORATION), count=1).strip(DECORATION + ".,;:!")
    whole = _matching(text, choices)
    if whole or ")" in text:
        return whole
    chosen, _, remark = text.partition("(")
    choice = _matching(chosen.strip(DECORATION), choices)
    return choice if choice and not _names_another(remark, choice, choices) else None


def _matching(text: str, choices: Mapping[str, str]) -> str | None:
    matching = [label for label, pattern in choices.items() if re.fullmatch(pattern, text, re.I)]
    return matching[0] if len(matching) == 1 else None


def _names_another(remark: str, choice: str, choices: Mapping[str, str]) -> bool:
    """Whether a remark holds another choice's words, or its letter as it is written, or a class's number."""
    others = {label: pattern for label, pattern in choices.items() if label != choice}
    words = "|".join(label.replace("_", "[ _-]?") for label in others)
    patterns = "|".join(others.values())
    return bool(
        re.search(rf"(?<![a-z])(?:{words})(?![a-z])", remark, re.I)
        or re.search(rf"(?<!\w)(?:{patterns}|\d)(?!\w)", remark)
    )


def read_numbers(reply: str, fields: Mapping[str, str]) -> dict[str, float] | None:
    """The numbers of the fields, or None where the reply does not name each once or end with all in their order.

    A number is read whole (``10`` is ten, ``-1`` minus one), and only where its line leaves no choice: not in
    ``1-5`` or ``0 or 1``, unless that stands in parentheses before it, nor in a table's row of several, in ``5 * 2``
    or ``4 out of 10``.

    Args:
        fields: name → pattern of the words before its number, at the beginning of a line or of an entry in a list.
    """
    named = "|".join(f"(?P<{name}>{words})" for name, words in fields.items())
    number = re.compile(
        rf"(?:^|[,;{{|])[\s*_`#>\-•\"']*(?:\(?\d[.)][ \t*_`]*)?(?:{named})(?:[ \t]+(?:score|rating|grade|answer))?"
        r"(?:[ \t*_`\"']*[(\[]\d[ \t]*(?:[-–,/]|or\b|to\b)[ \t]*\d[)\]])?"
        r"(?:[ \t*_`:=.()<\[\"'|]|[-–—](?!\d))*"
        r"(?P<number>[-+]?\d+(?:\.\d+)?)(?![\d.]*\d)(?:\s*/\s*5)?"
        rf"(?!\w|{OTHERWISE})",
        re.IGNORECASE | re.MULTILINE,
    )
    found = [(next(name for name in fields if match[name]), float(match["number"])) for match in number.finditer(reply)]
    last = dict(found[-len(fields) :])
    in_order = list(last) == list(fields)
    return last if in_order or (last.keys() == fields.keys() and len(found) == len(fields)) else None
