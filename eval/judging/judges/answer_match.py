"""Accuracy: the response contains the target, without a model; a stand-in for ``simpleqa_grader``.

It cannot see a denial ("it was not Paris"), a hedge or another wording of the same answer.
"""

import re
import unicodedata

from eval.judging.judge import Item, RuleJudge, Verdict, missing

ARTICLES = ("the", "a", "an")


# Scripts without blanks between words, or, as Korean, with particles at a word's end: any piece may be a word.
UNSPACED = (
    r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u3400-\u9fff\uac00-\ud7a3\U00020000-\U0003ffff"
)
# Vowel signs of Indian scripts, which ``re`` does not count as letters.
VOWELS = "".join(sign for sign in map(chr, range(0x900, 0xE00)) if unicodedata.category(sign).startswith("M"))
WORDS = re.compile(
    rf"(?P<number>(?:(?<![\w)\]%.-])(?<!\d )-)?(?:\d+(?:[.,]\d+)*|(?<![\w.])\.\d+))|[{UNSPACED}]"
    rf"|(?:(?![{UNSPACED}])[^\W\d_{VOWELS}][{VOWELS}]*)+(?:(?:\+{{1,2}}|#)(?![\w+#]))?"
)
# The dashes that stand for a minus; a power is not a digit of its base, nor a fraction one of its whole number.
SIGNS = {0x2212: "-", 0x2012: "-", 0x2013: "-"} | {ord(sign): f"^{power}" for power, sign in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")}
SIGNS |= {ord(sign): f" {sign}" for sign in "¼½¾⅐⅑⅒⅓⅔⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞"}


def answer_match(response: str, target: str) -> bool | None:
    """Whether the target's words stand in the response in one piece; None for a target without words.

    Letter case, accents, punctuation, thousands' commas and an article before the target do not matter. Numbers count
    by value, with their sign (``3.0`` is 3, ``-5`` is not 5). Initials (``U.S.``) and digits in threes (``1 000``) may
    be one word or several. In scripts without blanks any piece may be a word.
    """
    given = _readings(response)
    wanted = [words[1:] if len(words) > 1 and words[0] in ARTICLES else words for words in _readings(target)]
    if not any(wanted):
        return None
    return any(
        words[start : start + len(piece)] == piece
        for words in given
        for piece in wanted
        for start in range(len(words) - len(piece) + 1)
    )


def _readings(text: str) -> list[list[str]]:
    """The words of a text, and those with initials and digits in threes put together."""
    letters = unicodedata.normalize("NFKD", text.translate(SIGNS))
    # Latin, Greek, Cyrillic, Hebrew and Arabic marks are accents; those of other scripts tell words apart.
    plain = "".join(letter for letter in letters if not (unicodedata.combining(letter) and letter < "\u0900"))
    plain = unicodedata.normalize("NFC", plain).casefold()
    plain = re.sub(r"(?<!\d )\b(?:minus|negative) (?=[$€£]?\d)", "-", plain)
    plain = re.sub(r"(?<!\w)-[$€£](?=\d)", "-", plain)
    joined = re.sub(r"\b(?:[^\W\d_]\. ?)+(?:[^\W\d_]\b)?", lambda found: re.sub(r"\. ?(?=\w)", "", found[0]), plain)
    joined = re.sub(r"(?<![\d.,])\d{1,3}(?:[ '\u2019_]\d{3})+(?!\d)", lambda found: re.sub(r"\D", "", found[0]), joined)
    return [_words(plain), _words(joined)]


def _words(plain: str) -> list[str]:
    words: list[str] = []
    for found in WORDS.finditer(plain):
        words += _values(found[0]) if found["number"] else [found[0]]
    return words


def _values(number: str) -> list[str]:
    """A number in one form whatever its separators; a list such as ``1,5,7`` in several."""
    if re.fullmatch(r"-?[1-9]\d{0,2}(?:,\d{2,3})*,\d{3}(?:\.\d+)?", number):
        number = number.replace(",", "")
    elif re.fullmatch(r"-?[1-9]\d{0,2}(?:\.\d{3})+,\d+|-?[1-9]\d{0,2}(?:\.\d{3}){2,}", number):
        number = number.replace(".", "").replace(",", ".")
    elif re.fullmatch(r"-?\d+,\d+", number):
        number = number.replace(",", ".")
    values = []
    for value in number.split(","):
        if value.count(".") < 2:
            sign, digits = ("-", value[1:]) if value.startswith("-") else ("", value)
            whole, _, part = digits.partition(".")
            whole, part = whole.lstrip("0") or "0", part.rstrip("0")
            value = (sign if whole != "0" or part else "") + whole + (f".{part}" if part else "")
        values.append(value)
    return values


def _rule(item: Item) -> Verdict:
    correct = answer_match(item.response, item.target)
    if correct is None:
        return missing("unparsed", reason="the target holds no word")
    return Verdict("correct" if correct else "incorrect", float(correct))


JUDGE = RuleJudge(metric="accuracy", rule=_rule, needs_target=True)
