"""DPO's rejected answers: the untuned model's own, to the same requests."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ogpsa.data.builders.candidates import Candidate
from ogpsa.data.builders.replies import answer, local_replies
from ogpsa.data.builders.settings import Rejected
from ogpsa.models.files import fingerprint
from ogpsa.utils.answers import says_nothing
from ogpsa.utils.journal import Journal
from ogpsa.utils.refusal_rules import declines

STAMP = {"holds": "rejected answers"}


def write_rejected(
    settings: Rejected, asked: Sequence[Candidate], journal: Path
) -> tuple[list[str | None], dict[str, Any]]:
    """The checkpoint's answer to each prompt, None where it cannot be rejected, and the data card's facts.

    None stands for an answer that refuses, which DPO should prefer, equals the chosen one, or is empty. An answer that
    the cap has cut is kept as it is.

    Args:
        journal: where replies are kept.
    """
    kept = Journal(journal, STAMP)
    prompts = [candidate.prompt for candidate in asked]
    keys = local_replies(settings.model, None, settings.max_tokens, prompts, kept, "rejected answers")
    replies = [kept.pieces[key] for key in keys]
    texts = [answer(reply) for reply in replies]
    problems = [_problem(text, candidate) for text, candidate in zip(texts, asked, strict=True)]
    taken = [None if problem else text for text, problem in zip(texts, problems, strict=True)]
    cut = sum(reply["finish_reason"] == "length" for reply, text in zip(replies, taken, strict=True) if text)
    facts = {
        "way": settings.way,
        "by": settings.model.path,
        "weights": fingerprint(Path(str(settings.model.path))),
        "written": len(taken) - taken.count(None),
        "cut": cut,
        "rows_dropped_because": dict(Counter(problem for problem in problems if problem)),
    }
    return taken, facts


def _problem(text: str, asked: Candidate) -> str | None:
    """Why an answer cannot be rejected."""
    if says_nothing(text):
        return "empty"
    if text == asked.chosen:
        return "the chosen answer"
    return "a refusal" if declines(text) else None
