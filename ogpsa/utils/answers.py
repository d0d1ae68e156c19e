"""A model's reply: the thought that it may begin with, the answer, and whether that says anything.

No judge, metric or training row may read a thought as an answer. The marks are those that published models and their
chat templates write; a mark in quotes or backticks is talked about, not used.
"""

import html
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass

# A tag's name, a namespace before it (``<seed:think>``) or attributes behind it aside.
TAGS = (
    "think|thinking|thoughts?|(?:thought|thinking|reasoning)[_-]?process|reason|reasoning|reasoning[_-](?:content|steps|trace)|"
    "reflection|reflect|self[_-]reflection|scratch_?pad|analysis|antthinking|rationale|planning|deliberation|internal|"
    "(?:inner|internal)[_-]?(?:monologue|thoughts?|thinking|reasoning|reflection)|monologue|chain[_-]of[_-]thoughts?|cot|"
    "(?:deep|ds|longcat|seed)[_-]?think(?:ing)?"
)
# Of control tokens: the bar, also of full width, and what stands between words.
BAR, GAP = r"[|\uff5c]", r"[_\u2581 ]"
# Opening and closing mark of each kind; a closing mark without its opening one ends what the prompt opened.
KINDS = (
    (rf"(?:<|&lt;) ?(?:\w+:)?(?:{TAGS})\b(?:\s[^<>]*?)?(?:>|&gt;)",
     rf"(?:<|&lt;)\s*/\s*(?:\w+:)?(?:{TAGS})\s*(?:>|&gt;)"),
    (rf"<{BAR}(?:(?:begin|start){GAP}(?:of{GAP})?(?:thoughts?|thinking)|(?:thought|think){GAP}(?:start|begin)|thinking|think){BAR}>",
     rf"<{BAR}(?:end{GAP}(?:of{GAP})?(?:thoughts?|thinking)|(?:thought|think){GAP}end|/thinking|/think){BAR}>"),
    (r"\[(?:think|thinking|reasoning)\]", r"\[/(?:think|thinking|reasoning)\]"),
    (r"◁\s*think\s*▷", r"◁\s*/\s*think\s*▷"),
    (r"<unused94>", r"<unused95>"),
    (r"<\|channel>\s*thought\b", r"<channel\|>"),
)  # fmt: skip
UNQUOTED = r"(?<![`\"'\u201c\u2018\u00ab])"
MARKS = re.compile(
    UNQUOTED
    + "(?:"
    + "|".join(
        f"(?P<open{number}>{opening})|(?P<close{number}>{closing})" for number, (opening, closing) in enumerate(KINDS)
    )
    + ")",
    re.IGNORECASE,
)
# Without one of these a text holds no mark; looked for first, which is faster.
MARK_BEGINS = re.compile(r"[<&\[◁]")
# Those that no answer's own XML uses.
CERTAIN_TAGS = ("think", "thinking", "thought", "thoughts", "antthinking", "longcat_think", "ds_think", "deep_think")
# A thought that a reply begins with, its opening and its end in words or HTML: Ollama, Granite, folded details.
WORDED = (
    (r"\s*Thinking\.\.\.[ \t]*\n", r"^[ \t]*\.\.\.done thinking\.?[ \t]*$"),
    (r"\s*(?:\*\*)?Here(?:'s| is) my (?:thought|thinking|reasoning) process:?(?:\*\*)?:?",
     r"^[ \t]*(?:\*\*)?Here(?:'s| is) my (?:final )?(?:response|answer):?(?:\*\*)?:?"),
    (r"\s*<details[^<>]*>\s*<summary[^<>]*>\W*(?:(?:my|show) )?(?:thinking|thoughts?|reasoning|chain of thought)\b"
     r"[^<>]*</summary>", r"</details>"),
)  # fmt: skip
# What some models wrap the answer in.
WRAPPED = re.compile(
    r"\s*(?:<(?P<tag>answer|solution|response|output|final_answer)>(?P<tagged>.*?)(?:</(?P=tag)>\s*|\Z)"
    rf"|<{BAR}begin{GAP}of{GAP}solution{BAR}>(?P<solution>.*?)(?:<{BAR}end{GAP}of{GAP}solution{BAR}>\s*|\Z)"
    r"|<\|start_response\|>(?P<response>.*?)(?:<\|end_response\|>\s*|\Z))\Z",
    re.IGNORECASE | re.DOTALL,
)
# gpt-oss: a message in a channel, ``final`` the answer's; the second form is what is left without special tokens.
CHANNEL = re.compile(
    r"(?:<\|start\|>\s*\w*\s*)?<\|channel\|>\s*(?P<name>\w+)[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>"
    r"(?P<text>.*?)(?=<\|end\|>|<\|return\|>|<\|call\|>|<\|start\|>|<\|channel\|>|\Z)",
    re.DOTALL,
)
BARE_CHANNELS = re.compile(
    r"\s*(?:assistant\s*analysis|analysis(?=[^\W_]|[\"'(]))(?P<thought>.*?)(?:assistant\s*final(?P<answer>.*))?\Z",
    re.DOTALL,
)
# Special tokens without which a thought cannot be told from the answer.
MARK_TOKENS = re.compile(
    MARKS.pattern + r"|<\|(?:channel|message|start|end|constrain)\|>"
    rf"|<{BAR}(?:begin|end){GAP}of{GAP}solution{BAR}>|<\|(?:start|end)_response\|>",
    re.IGNORECASE,
)  # fmt: skip
# A control token in the text, as tokenizers of all families write it, or an empty HTML tag.
SPECIAL_TOKEN = re.compile(
    r"<\|[^<>|]*\|>|<\uff5c[^<>\uff5c]*\uff5c>|</?(?:s|pad|unk|eos|bos|br|p|mask|cls|sep|end|(?:start|end)_of_(?:turn|text|sentence)|"
    r"(?:assistant|user|system)|unused\d+)\s*/?>|\[/?(?:INST|PAD|EOS|BOS|UNK|CLS|SEP|MASK)\]|<0x[0-9A-F]{2}>|&nbsp;|\ufffd",
    re.IGNORECASE,
)
# What holds the place of an answer: a speaker, an element, a box of LaTeX or an escape without content, a picture.
SPEAKER = re.compile(
    r"\W*(?:assistant|(?:ai|bot|model|user|human|system|response|answer|reply|output)\s*[*_]*:)\W*", re.IGNORECASE
)
HOLLOW = re.compile(
    rf"<(?P<element>[a-z][\w-]*)(?:\s[^<>]*)?>\s*</(?P=element)\s*>|</?(?:{TAGS}|answer|final_answer)\s*/?>"
    r"|<(?:image|img|audio|video)\s*/?>|\\[a-z]+\{\s*\}|\\[nrt](?![a-z])",
    re.IGNORECASE,
)
# Of the symbols, those that markup is made of: rules and blanks of pieces of words, too. Letters that show nothing.
MARKUP = "`|~<>=+^$\u2581\u2800" + "".join(map(chr, range(0x2500, 0x2580)))
UNSEEN = "\u115f\u1160\u3164\uffa0"


@dataclass(frozen=True)
class Reply:
    """A model's reply in its two parts.

    Attributes:
        thought: what was thought, without the marks; empty where there is none.
        answer: the rest; None where the thought does not end.
        opened_before: the reply closes a thought that the prompt opened.
    """

    thought: str
    answer: str | None
    opened_before: bool = False


def split_reply(text: str, in_thought: bool = False) -> Reply:
    """Part a reply into thought and answer.

    Args:
        in_thought: the prompt has begun a thought, so that the reply need not begin one.
    """
    if channels := list(CHANNEL.finditer(text)):
        return _split_channels(text, channels)
    if bare := BARE_CHANNELS.match(text):
        return Reply(bare["thought"].strip(), None if bare["answer"] is None else bare["answer"].strip())
    for begins, ends in WORDED:
        if begun := re.match(begins, text, re.IGNORECASE):
            thought, *behind = re.split(ends, text[begun.end() :], maxsplit=1, flags=re.IGNORECASE | re.MULTILINE)
            return Reply(thought.strip(), _unwrapped(behind[0]).strip() if behind else None)
    thoughts: list[str] = []
    answers: list[str] = []
    opened_before = False
    # The number of the kind of thought that is open; -1: one that the prompt opened, which any mark closes.
    kind = -1 if in_thought else None
    start, tag = 0, ""
    for mark in MARKS.finditer(text) if MARK_BEGINS.search(text) else ():
        opening, number = _read(mark)
        if not _is_used(text, mark, opening, kind is not None or bool(thoughts)):
            continue
        piece = text[start : mark.start()]
        if (
            kind == number
            and _tag(mark) != tag
            and re.search(rf"/\s*(?:\w+:)?{tag}\s*(?:>|&gt;)", text[mark.end() :], re.IGNORECASE)
        ):
            # A tag inside the thought's own.
            continue
        if kind is None and opening:
            answers.append(piece)
            kind, tag = number, _tag(mark)
        elif kind is None and (text[mark.end() :].strip() or not opened_before):
            # Nothing of this reply opened it: all before belongs to the thought.
            thoughts += [*answers, piece]
            answers, opened_before = [], True
        elif kind is None or (not opening and kind in (-1, number)):
            (answers if kind is None else thoughts).append(piece)
            opened_before = opened_before or kind == -1
            kind = None
        elif kind == -1 and opening and not piece.strip():
            # The reply repeats the mark of the prompt.
            kind, tag = number, _tag(mark)
        else:
            continue
        start = mark.end()
    rest = text[start:]
    if kind is not None:
        return Reply("\n".join([*thoughts, rest]).strip(), None, opened_before)
    answer = "".join([*answers, rest])
    if not thoughts:
        return Reply("", _unwrapped(answer), opened_before)
    return Reply("\n".join(thoughts).strip(), _unwrapped(answer).strip(), opened_before)


def ends_in_thought(text: str) -> bool:
    """Whether a text, such as the end of a prompt, leaves a thought open."""
    return split_reply(text).answer is None


def template_opens_thought(render: Callable[[list[dict[str, str]]], str]) -> bool:
    """Whether a chat template begins the reply's thought: ``render`` gives the prompt that messages become."""
    request = "request"
    return ends_in_thought(render([{"role": "user", "content": request}]).rpartition(request)[2])


def answer_stops(text: str, stop: Sequence[str], in_thought: bool = False) -> bool:
    """Whether one of the texts ``stop`` is in the reply's answer; in its thought it does not count."""
    answer = split_reply(text, in_thought).answer
    return answer is not None and any(end in answer for end in stop)


def says_nothing(text: str) -> bool:
    """Whether a text holds no word, number or symbol: punctuation, markup, special tokens or a speaker alone."""
    rest = html.unescape(text)
    while (hollowed := SPECIAL_TOKEN.sub("", HOLLOW.sub("", rest))) != rest:
        rest = hollowed
    if SPEAKER.fullmatch(rest):
        return True
    # Letters, digits and symbols such as emoji, but for those that markup is made of.
    return not any(unicodedata.category(sign)[0] in "LNS" and sign not in MARKUP + UNSEEN for sign in rest)


def _is_used(text: str, mark: re.Match[str], opening: bool, has_thought: bool) -> bool:
    """Whether a mark is used, not talked about: in fenced code, or within a sentence of the answer.

    A thought opens the reply or a line, or follows a thought. A closing mark without an opening one ends what the
    prompt opened, unless words of one line stand on both sides of it, it ends a sentence or its opening is in the line.
    """
    before, after = text[: mark.start()], text[mark.end() :]
    if before.count("```") % 2 and "```" in after:
        return False
    line = before.rpartition("\n")[2]
    if opening:
        named = _tag(mark)
        certain = not named or named in CERTAIN_TAGS
        at_start = not SPECIAL_TOKEN.sub("", before).strip() or has_thought
        return at_start or (certain and not line.strip())
    tag = _tag(mark)
    named_before = tag and re.search(rf"(?:<|&lt;) ?(?:\w+:)?{re.escape(tag)}\b[^<>]*(?:>|&gt;)", line, re.IGNORECASE)
    in_sentence = line.endswith(" ") and line.strip() and re.match(r" +[\w(]|[.,;:!?)](?:\s|\Z)", after)
    return has_thought or not (named_before or in_sentence)


def _read(mark: re.Match[str]) -> tuple[bool, int]:
    """Whether a mark opens a thought, and the number of its kind."""
    name = next(name for name, found in mark.groupdict().items() if found is not None)
    return name.startswith("open"), int(name.removeprefix("open").removeprefix("close"))


def _tag(mark: re.Match[str]) -> str:
    """The word of a mark such as ``</think>``; empty for marks of other forms."""
    named = re.match(r"(?:<|&lt;)\s*/?\s*(?:\w+:)?([\w-]+)", mark[0])
    return named[1].lower() if named else ""


def _unwrapped(answer: str) -> str:
    """An answer without the mark around the whole of it."""
    if wrapped := WRAPPED.match(answer):
        return next(part for name, part in wrapped.groupdict().items() if name != "tag" and part is not None)
    return answer


def _split_channels(text: str, channels: list[re.Match[str]]) -> Reply:
    final = [channel["text"] for channel in channels if channel["name"] == "final"]
    thought = [text[: channels[0].start()]] + [channel["text"] for channel in channels if channel["name"] != "final"]
    return Reply("\n".join(thought).strip(), "".join(final).strip() if final else None)
