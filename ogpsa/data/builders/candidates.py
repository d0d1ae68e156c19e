"""Conversion of published rows to prompts with a chosen and a rejected answer, one function per form.

The columns are those of the hub's files; where a data set circulates in several forms, each is named here.
"""

import hashlib
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import cycle
from typing import Any

from ogpsa.data.builders.settings import GSM8K, HHRLHF, DataSet, NSPOGeneral, SafeRLHF, SafeRLHFPrompts, UltraFeedback
from ogpsa.data.conversations import Message, turn
from ogpsa.data.readers import with_input
from ogpsa.utils.errors import UserError, closest_match

Published = Mapping[str, Any]


@dataclass(frozen=True)
class Candidate:
    """A prompt and its answers.

    Attributes:
        chosen: None where it is still to be written.
        rejected: None where the data set has none.
        rank: of rows with the same prompt, the one of the highest rank is kept.
        question: the prompt without the text that all prompts of the data set share, if any.
        harmful: whether the request should be refused, where the rows say so.
        source: the published data set that it is from.
        turns: of a conversation all turns before the last answer, the user's first; ``prompt`` is then their text.
    """

    prompt: str
    chosen: str | None
    rejected: str | None
    rank: tuple[float, ...] = ()
    question: str | None = None
    harmful: bool | None = None
    source: str = ""
    turns: tuple[str, ...] = ()

    @property
    def messages(self) -> list[Message]:
        """Of a conversation the messages before the last answer."""
        return [turn(role, text) for role, text in zip(cycle(("user", "assistant")), self.turns, strict=False)]

    @property
    def asked_turns(self) -> list[Message]:
        """The messages before the last answer."""
        return self.messages or [turn("user", self.prompt)]

    @property
    def asked(self) -> list[str]:
        """What the user says in each turn, without the text that all prompts of the data set share."""
        return list(self.turns[::2]) or [self.question or self.prompt]


# A row becomes a candidate, or a reason why it does not.
Read = Callable[[Any, Published], Candidate | str]


@dataclass(frozen=True)
class Form:
    """The columns that are read, and how."""

    columns: tuple[str, ...]
    read: Read


def _safe_rlhf(settings: SafeRLHF, row: Published) -> Candidate | str:
    unsafe = []
    for number in (0, 1):
        severity = int(row[f"response_{number}_severity_level"])
        if not _truth(row[f"is_response_{number}_safe"]) and severity >= settings.min_severity:
            # Of two that are equally severe, the one that the annotators found less safe.
            unsafe.append(((severity, int(row["safer_response_id"]) != number), row[f"response_{number}"]))
    if not unsafe:
        return f"no unsafe answer of severity {settings.min_severity} or more"
    rank, answer = max(unsafe, key=lambda pair: pair[0])
    return Candidate(row["prompt"], None, answer, rank)


def _safe_rlhf_prompt(settings: SafeRLHFPrompts, row: Published) -> Candidate | str:
    unsafe = sum(not _truth(row[f"is_response_{number}_safe"]) for number in (0, 1))
    if unsafe < settings.unsafe_answers:
        return f"fewer than {settings.unsafe_answers} unsafe answers"
    return Candidate(row["prompt"], None, None, harmful=True)


def _ultrafeedback(settings: UltraFeedback, row: Published) -> Candidate | str:
    if row["source"] in settings.skip_sources:
        return f"of source {row['source']}"
    other = "fine-grained_score" if settings.score == "overall_score" else "overall_score"
    scored = []
    for completion in row["completions"]:
        score = _number(completion[settings.score])
        if score is not None:
            scored.append((score, _number(completion[other]) or 0.0, completion["response"]))
    if len(scored) < 2:
        return "fewer than two scored answers"
    best, worst = (choose(scored, key=lambda answer: answer[:2]) for choose in (max, min))
    if best[0] == worst[0] or best[0] - worst[0] < settings.min_gap:
        return "no distance between the scores" if best[0] == worst[0] else f"scores closer than {settings.min_gap:g}"
    return Candidate(row["instruction"], best[2], worst[2])


def _pair(settings: DataSet, row: Published) -> Candidate | str:
    if row.get("system") or row.get("history"):
        return "with a system prompt or earlier turns"
    return Candidate(with_input(row["instruction"], row), row["chosen"], row["rejected"])


def _sharegpt(settings: DataSet, row: Published) -> Candidate | str:
    if len(row["conversations"]) != 1:
        return "more than one turn"
    return Candidate(row["conversations"][0]["value"], row["chosen"]["value"], row["rejected"]["value"])


def _halueval_qa(settings: DataSet, row: Published) -> Candidate | str:
    return Candidate(row["question"], row["right_answer"], row["hallucinated_answer"])


def _halueval_general(settings: DataSet, row: Published) -> Candidate | str:
    if row["hallucination"] not in ("yes", "no"):
        raise ValueError(f"hallucination is '{row['hallucination']}', not yes or no")
    if row["hallucination"] == "yes":
        return "marked as a hallucination"
    return Candidate(row["user_query"], row["chatgpt_response"], None)


def _gsm8k(settings: GSM8K | NSPOGeneral, row: Published) -> Candidate | str:
    answer = row["answer"]
    return Candidate(
        row["question"], answer if settings.calculator_annotations else re.sub(r"<<.*?>>", "", answer), None
    )


LETTERS = "ABCD"


def _mmlu(settings: DataSet, row: Published) -> Candidate | str:
    right, options = int(row["answer"]), [f"{letter}. {row['choices'][n]}" for n, letter in enumerate(LETTERS)]
    prompt = "\n".join([row["question"], *options, "Answer with the letter and the text of the right option."])
    wrong = [option for number, option in enumerate(options) if number != right]
    drawn = hashlib.sha256(f"{settings.seed} {prompt}".encode()).digest()[0] % len(wrong)
    return Candidate(prompt, options[right], wrong[drawn], question=row["question"])


def _instruction(settings: DataSet, row: Published) -> Candidate | str:
    return Candidate(with_input(row["instruction"], row), row["output"], None)


def _leetcode(settings: DataSet, row: Published) -> Candidate | str:
    return Candidate(row["query"], row["response"], None)


def _humaneval(settings: DataSet, row: Published) -> Candidate | str:
    return Candidate(row["prompt"], row["prompt"] + row["canonical_solution"], None)


SPEAKER = re.compile(r"(?:\A|\n\n)(Human|Assistant):")


def _hh_rlhf(settings: HHRLHF, row: Published) -> Candidate | str:
    (prompt, chosen), (other, rejected) = (_spoken(row[name]) for name in ("chosen", "rejected"))
    if not prompt or not other:
        return "turns out of order"
    if prompt != other:
        return "conversations that differ before their last answers"
    if len(prompt) == 1:
        return Candidate(prompt[0], chosen, rejected)
    if not settings.several_turns:
        return "more than one turn"
    return Candidate("", chosen, rejected, turns=tuple(prompt))


def _spoken(conversation: str) -> tuple[list[str], str]:
    """The turns before the last answer, and that answer; no turns where Human and Assistant do not take turns."""
    before, *found = SPEAKER.split(conversation)
    speakers, said = found[::2], found[1::2]
    if before.strip() or not said or speakers != ["Human", "Assistant"] * (len(said) // 2):
        return [], ""
    return said[:-1], said[-1]


FORMS: dict[str, tuple[Form, ...]] = {
    "safe_rlhf": (
        Form(
            ("prompt", "response_0", "response_1", "is_response_0_safe", "is_response_1_safe",
             "response_0_severity_level", "response_1_severity_level", "safer_response_id"),
            _safe_rlhf,
        ),
    ),
    "ultrafeedback": (
        Form(("source", "instruction", "completions"), _ultrafeedback),
        # llamafactory/ultrafeedback_binarized, and LLaMA-Factory's preference files.
        Form(("instruction", "chosen", "rejected"), _pair),
        Form(("conversations", "chosen", "rejected"), _sharegpt),
    ),
    "halueval": (
        Form(("question", "right_answer", "hallucinated_answer"), _halueval_qa),
        Form(("user_query", "chatgpt_response", "hallucination"), _halueval_general),
    ),
    "gsm8k": (Form(("question", "answer"), _gsm8k),),
    "mmlu": (Form(("question", "choices", "answer"), _mmlu),),
    "safety_tuned_llamas": (Form(("instruction", "input", "output"), _instruction),),
    "hh_rlhf": (Form(("chosen", "rejected"), _hh_rlhf),),
    "alpaca": (Form(("instruction", "input", "output"), _instruction),),
    "safe_rlhf_prompts": (Form(("prompt", "is_response_0_safe", "is_response_1_safe"), _safe_rlhf_prompt),),
    "leetcode": (
        Form(("query", "response"), _leetcode),
        Form(("prompt", "canonical_solution"), _humaneval),
    ),
}  # fmt: skip
FORMS["ultrafeedback_short"] = FORMS["ultrafeedback"]


def find_form(name: str, place: str, row: Published) -> Form:
    """The form of a data set that the columns of a row show.

    Raises:
        UserError: a column is missing; names ``place``, the columns and the closest match to each.
    """
    forms = FORMS[name]
    closest = max(forms, key=lambda form: sum(column in row for column in form.columns) / len(form.columns))
    absent = [column for column in closest.columns if column not in row]
    if not absent:
        return closest
    found = ", ".join(map(str, row)) or "none"
    needed = " or ".join(", ".join(form.columns) for form in forms)
    raise UserError(
        *(
            f"{place}: no column '{column}' (columns found: {found}); a row of {name} holds {needed}"
            f"{closest_match(column, row.keys() - set(closest.columns))}"
            for column in absent
        )
    )


def read_candidate(
    name: str, form: Form, settings: DataSet, place: str, number: int, row: Published
) -> Candidate | str:
    """One row's candidate, or the reason why it is none; ``name`` is the published data set's.

    Raises:
        UserError: a column does not hold what the data set publishes.
    """
    try:
        found = form.read(settings, row)
        if not isinstance(found, str):
            _check_texts(found)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
        raise UserError(f"{place}: row {number}: not what {name} publishes ({type(error).__name__}: {error})") from None
    return found


def _check_texts(candidate: Candidate) -> None:
    for name in ("prompt", "chosen", "rejected"):
        value = vars(candidate)[name]
        if value is not None and not isinstance(value, str):
            raise TypeError(f"{name} is {type(value).__name__}, not text")


def _truth(value: Any) -> bool:
    """A truth value, also as CSV writes it."""
    text = str(value).lower()
    if text not in ("true", "false"):
        raise ValueError(f"'{value}' is neither true nor false")
    return text == "true"


def _number(value: Any) -> float | None:
    """A score; None where the annotators gave none."""
    if value is None or value == "N/A":
        return None
    score = float(value)
    if not math.isfinite(score):
        raise ValueError(f"a score is {score}")
    return score
