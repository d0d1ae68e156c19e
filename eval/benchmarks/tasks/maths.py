"""Functions of MATH's benchmark: the answer in the last box of a response, compared as text in one normal form."""

import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

# Layout that says nothing: sizes of brackets, spaces, signs of money, percent and degrees.
LAYOUT = re.compile(
    r"\\left(?![a-z])|\\right(?![a-z])|(?<!\\)\\[!,;: ]|\\q?quad\b|\{,\}|\\?\$|\\?%|\^\{?\\circ\}?|\\degree\b|°|~"
    r"|\\displaystyle\b|\\[bB]igg?[lr]?(?![a-z])"
)
SAME = {r"\\[dtc]frac": r"\\frac", r"\\leq\b": r"\\le", r"\\geq\b": r"\\ge", r"\\neq\b": r"\\ne", "−": "-"}
TEXT = r"\\(?:text|mbox|textbf|textrm|mathrm|mathbf)\s*\{([^{}]*)\}"
ARGUMENT = r"(\{(?:[^{}]|\{[^{}]*\})*\}|\\[a-z]+|[^{}\\\s])"
NUMBER = re.compile(r"(-?)(?:(\d+(?:\.\d+)?)|\\frac\{(-?\d+)\}\{(\d+)\})")


def math_results(document: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Whether a response's boxed answer is the known one, and whether it has a boxed answer."""
    found = boxed(results[0])
    return {"acc": float(found is not None and same(found, document["target"])), "read": float(found is not None)}


def boxed(text: str) -> str | None:
    r"""Contents of the last closed ``\boxed{…}`` or ``\fbox{…}``; None if there is none."""
    for start in reversed([match.end() for match in re.finditer(r"\\(?:boxed|fbox)\s*\{", text)]):
        depth = 1
        for brace in re.finditer(r"(?<!\\)[{}]", text[start:]):
            depth += 1 if brace[0] == "{" else -1
            if depth == 0:
                return text[start : start + brace.start()]
    return None


def same(one: str, other: str) -> bool:
    """Whether two answers have one normal form, or are the same plain number."""
    first, second = normal(one), normal(other)
    values = _value(first), _value(second)
    return first == second or (values[0] is not None and values[0] == values[1])


def normal(answer: str) -> str:
    """An answer without what does not change it: layout, units behind it, spaces, braces round one sign, a name before
    its equals sign, and short forms of fractions and roots.
    """
    text = LAYOUT.sub("", answer.strip().rstrip("."))
    for pattern, replacement in SAME.items():
        text = re.sub(pattern, replacement, text)
    text = re.sub(r"^\s*[a-zA-Z](?:_\w|')?\s*(?:=|\\in\b)", "", text)
    # Words behind something else are a unit, words alone the answer.
    text = re.sub(rf"(?<=\S)\s*{TEXT}(?:\^\{{?\d\}}?)?\s*$", "", text) or text
    text = re.sub(TEXT, r"\1", text)
    text = re.sub(r"\s+", "", text)
    if re.fullmatch(r"-?\d{1,3}(,\d{3})+(\.\d+)?", text):
        text = text.replace(",", "")
    text = re.sub(r"(?<![\d.])\.(?=\d)", "0.", text)
    text = re.sub(r"\\frac" + ARGUMENT + ARGUMENT, lambda found: rf"\frac{_braced(found[1])}{_braced(found[2])}", text)
    text = re.sub(r"\\sqrt" + ARGUMENT, lambda found: rf"\sqrt{_braced(found[1])}", text)
    text = re.sub(r"^(-?)(\d+)/(\d+)$", r"\1\\frac{\2}{\3}", text)
    text = re.sub(r"([_^])\{(\w)\}", r"\1\2", text)
    if re.fullmatch(r"\([A-Za-z]\)", text):
        text = text[1:-1]
    return text.lower() if re.fullmatch(r"[A-Za-z]{2,}", text) else text


def _braced(argument: str) -> str:
    return argument if argument.startswith("{") else f"{{{argument}}}"


def _value(text: str) -> Fraction | None:
    """The value of a whole number, a decimal or a fraction of whole numbers."""
    found = NUMBER.fullmatch(text)
    if found is None or (found[4] and int(found[4]) == 0):
        return None
    size = Fraction(found[2]) if found[2] else Fraction(int(found[3]), int(found[4]))
    return -size if found[1] else size
