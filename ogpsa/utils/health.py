"""Faults of an answer's form, whatever it says: repetition, another language, debris.

Light rules on the text, without a model [ours]; each errs on the side of seeing nothing.
"""

import re
import unicodedata
from collections import Counter
from typing import Literal, get_args

Fault = Literal["repetitive", "wrong_language", "debris"]
FAULTS: tuple[Fault, ...] = get_args(Fault)

# Words, or signs of scripts without blanks.
WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7a3]|\w+")
# Words in a row that are compared, in the last words of a text, which a loop does not leave; how many words that takes,
# and the share that came before.
IN_A_ROW, LAST, LONG_ENOUGH, REPEATED = 4, 100, 50, 0.6
# A number may well have a period (0.333 ...), if not a very long one.
STUTTER = re.compile(r"([^\W\d_]{1,8}?)\1{19,}|(\d{1,8}?)\2{199,}")
# Code, and rows of a table, may be alike on purpose, and show a template's marks.
CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)
TABLE_ROW = re.compile(r"^[ \t]*\|.*\|[ \t]*$", re.MULTILINE)

# What chat templates write around a turn.
DEBRIS = re.compile(
    r"<\|[\w /-]{1,40}\|>|<\uff5c[^<>\uff5c]{1,40}\uff5c>|\[/?INST\]|<</?SYS>>|</s>|</?(?:start|end)_of_turn>"
    r"|^(?:assistant|user|system)[ \t]*$|^#{2,3} ?(?:Instruction|Response|Input|Human|Assistant|User) ?:"
    r"|^(?:Human|USER|ASSISTANT) ?: ",
    re.MULTILINE,
)

# Before a mark that is spoken of, within a sentence, an entry or quotation marks.
SPOKEN_OF = re.compile(r"(?:[`\"'\u201c\u2018(*|]|(?:\w[,:]?|[-*•|]) )\Z")

# Letters of a text that are looked at, and the share of them that makes their script the text's.
LOOKED_AT, SHARE = 1000, 0.7
# Of languages in Latin script, words that the others do not have, as far as that goes.
STOP_WORDS = {
    "English": "the and is are was were that this with have not you for they from there be of to do in it what how as",
    "German": "der die das und ist nicht ein eine mit für auf ich sie wir werden wird dass auch sich den dem von zu",
    "French": "les des une est dans pour que qui vous nous avec sur pas plus cette sont être ces leur aux le du et",
    "Spanish": "el los las una es por para con que del se pero como más esta su son al sus muy también hay",
    "Portuguese": "os uma não para com que dos das se mais como você são ao pelo seu sua também há um em",
    "Italian": "il gli una è non per con che della sono di del nel anche più questo come essere alla dei le si",
    "Dutch": "het een van niet dat zijn voor met op aan ook worden wordt deze maar naar bij de en is je",
    "Polish": "nie się jest że jak dla ale czy przez był oraz tym które może są będzie jako przy",
    "Turkish": "bir ve bu için ile olarak daha çok gibi ne olan değil kadar sonra veya ama da de",
    "Indonesian": "yang dan di untuk dengan ini itu tidak adalah dari pada dalam akan anda atau juga ke",
    "Vietnamese": "là và của không có được cho một các những người trong với này để bạn đã",
    "Swedish": "och att det som är på för av med inte den till ett kan har om jag du vi",
}
WORDS = {language: frozenset(words.split()) for language, words in STOP_WORDS.items()}
# Letters and stop words that an answer needs, and a request, which is short; the stop words' share of all words, and
# how far they lead before the next language's.
ANSWER, REQUEST = (20, 5), (8, 2)
HIT_SHARE, LEAD = 0.15, 1.5
# A request that is about languages may well be answered in another.
ABOUT_LANGUAGE = re.compile(
    r"translat|language|übersetz|sprache|tradu[cisz]|idioma|langue|lingua|翻译|翻譯|翻訳|перев|번역|"
    r"\b(?:english|german|french|spanish|portuguese|italian|dutch|polish|turkish|indonesian|vietnamese|swedish|latin|"
    r"russian|ukrainian|chinese|mandarin|cantonese|japanese|korean|arabic|hebrew|hindi|greek|thai|"
    r"englisch|deutsch|französisch|spanisch|anglais|français|allemand|espagnol|inglés|español|inglês|português)\b|"
    r"英[语語文]|中文|日本語|日语|法语|德语",
    re.IGNORECASE,
)


def faults(prompt: str, answer: str) -> list[Fault]:
    """The faults of form of an answer to a prompt."""
    return [
        fault
        for fault, found in zip(
            FAULTS, (_repeats(answer), _changes_language(prompt, answer), _has_debris(prompt, answer)), strict=True
        )
        if found
    ]


def language_of(text: str, least: tuple[int, int] = ANSWER) -> str | None:
    """The language, or the script where that tells as much; None where a text is short or mixed.

    Source code has no language.

    Args:
        least: letters and stop words that it takes.
    """
    text = re.sub(r"```.*?(?:```|\Z)|`[^`\n]*`|https?://\S+", " ", text, flags=re.DOTALL)
    letters = [sign for sign in text[: 4 * LOOKED_AT] if sign.isalpha()][:LOOKED_AT]
    if len(letters) < least[0]:
        return None
    scripts = Counter(_script(sign) for sign in letters)
    if scripts["KANA"] >= (1 - SHARE) * scripts["CJK"] and scripts["KANA"] + scripts["CJK"] >= SHARE * len(letters):
        return "Japanese"
    script, count = scripts.most_common(1)[0]
    if count < SHARE * len(letters):
        return None
    return _latin_language(text, least[1]) if script == "LATIN" else script.title()


def _repeats(text: str) -> bool:
    """Whether a piece of a word is stuttered, or a text is in a loop, with its code and tables and without them."""
    return bool(STUTTER.search(text)) or all(map(_loops, (text, TABLE_ROW.sub("", CODE.sub("", text)))))


def _loops(text: str) -> bool:
    words = WORD.findall(text.lower())[-LAST:]
    if len(words) < LONG_ENOUGH:
        return False
    rows = list(zip(*(words[start:] for start in range(IN_A_ROW)), strict=False))
    return 1 - len(set(rows)) / len(rows) >= REPEATED


def _changes_language(prompt: str, answer: str) -> bool:
    if ABOUT_LANGUAGE.search(prompt):
        return False
    asked, answered = language_of(prompt, REQUEST), language_of(answer)
    return asked is not None and answered is not None and asked != answered


def _has_debris(prompt: str, answer: str) -> bool:
    """Whether an answer holds marks of a template that neither it nor the prompt talks about."""
    answer = CODE.sub("`", answer)
    return any(
        mark[0].strip() not in prompt and not SPOKEN_OF.search(answer[max(0, mark.start() - 3) : mark.start()])
        for mark in DEBRIS.finditer(answer)
    )


def _script(letter: str) -> str:
    name = unicodedata.name(letter, "UNKNOWN").partition(" ")[0].partition("-")[0]
    return "KANA" if name in ("HIRAGANA", "KATAKANA") else name


def _latin_language(text: str, least: int) -> str | None:
    words = re.findall(r"[^\W\d_]{2,}", text.lower())
    hits = Counter({language: sum(word in known for word in words) for language, known in WORDS.items()})
    (language, most), (_, next_most) = hits.most_common(2)
    enough = most >= max(least, HIT_SHARE * len(words)) and most >= LEAD * next_most
    return language if enough else None
