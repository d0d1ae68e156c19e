"""The safe answers of the safety set: written by an endpoint or a checkpoint, or drawn from templates.

Each reply is saved as soon as it arrives, under a hash of the request and the writer; a second build requests only what
is missing.
"""

import hashlib
import sys
from collections import Counter
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

from ogpsa.data.builders.replies import Reply, answer, check_writer, local_replies, reply_key, turns
from ogpsa.data.builders.settings import Refusals
from ogpsa.utils import endpoint
from ogpsa.utils.answers import says_nothing, split_reply
from ogpsa.utils.errors import UserError
from ogpsa.utils.journal import Journal
from ogpsa.utils.progress import Progress
from ogpsa.utils.refusal_rules import declines

STAMP = {"holds": "refusals"}
SECTION = "refusals"
# Characters of a reply that a message shows.
SHOWN = 120


def check_refusals(settings: Refusals) -> None:
    """Refuse a ``way`` that cannot start, before anything is read.

    Raises:
        UserError: no key or address for the endpoint, no loadable checkpoint, or one whose tokenizer does not fit.
    """
    if settings.way == "endpoint":
        _endpoint(settings).check()
    elif settings.way == "model":
        check_writer(SECTION, settings.model)


def write_refusals(
    settings: Refusals, seed: int, prompts: Sequence[str], journal: Path
) -> tuple[list[str], dict[str, Any]]:
    """A refusal for each prompt, and what the data card says about them.

    A template replaces a reply that is empty, cut or not a refusal.

    Args:
        seed: decides which template a prompt gets.
        journal: where replies are kept.

    Raises:
        UserError: as ``check_refusals`` and ``Endpoint.complete``, or templates replace more replies than
            ``settings.template_share`` allows.
    """
    check_refusals(settings)
    templates = [_template(settings.templates, seed, prompt) for prompt in prompts]
    if settings.way == "templates":
        return templates, {"way": settings.way, "templates": len(templates)}
    kept = Journal(journal, STAMP)
    if settings.way == "endpoint":
        keys = _from_endpoint(settings, prompts, kept)
    else:
        keys = local_replies(settings.model, settings.system_prompt, settings.max_tokens, prompts, kept, SECTION)
    replies = [kept.pieces[key] for key in keys]
    problems = [_problem(reply) for reply in replies]
    refusals = [
        template if problem else answer(reply)
        for template, problem, reply in zip(templates, problems, replies, strict=True)
    ]
    by_template = Counter(problem for problem in problems if problem)
    _check_share(settings, problems, replies)
    writer = settings.endpoint.model if settings.way == "endpoint" else settings.model.path
    facts = {"way": settings.way, "by": writer, "written": problems.count(None), "templates": sum(by_template.values())}
    return refusals, facts | {"templates_because": dict(by_template)}


def _template(templates: Sequence[str], seed: int, prompt: str) -> str:
    digest = hashlib.sha256(f"{seed} {prompt}".encode()).digest()
    return templates[int.from_bytes(digest[:8], "big") % len(templates)]


def _problem(reply: Reply) -> str | None:
    """Why a reply is not used."""
    text = answer(reply)
    if split_reply(reply["text"]).answer is None or (text and reply["finish_reason"] == "length"):
        return "cut"
    if says_nothing(text):
        return "empty"
    return None if declines(text) else "not a refusal"


def _check_share(settings: Refusals, problems: Sequence[str | None], replies: Sequence[Reply]) -> None:
    """Refuse a safety set with more templates than ``template_share`` allows."""
    given_way = [number for number, problem in enumerate(problems) if problem]
    if len(given_way) > settings.template_share * len(problems):
        first = given_way[0]
        raise UserError(
            f"{SECTION}.template_share: {len(given_way)} of {len(problems)} replies cannot be used as refusals, "
            f"above the share of {settings.template_share:g} for which a template may stand in; the first is "
            f"{problems[first]}: '{' '.join(replies[first]['text'].split())[:SHOWN]}'; change {SECTION}.system_prompt "
            f"or the writer, or allow it by {SECTION}.template_share=1 (no reply is asked for again)"
        )


def _endpoint(settings: Refusals) -> endpoint.Endpoint:
    given = settings.endpoint
    return endpoint.Endpoint.of(f"{SECTION}.endpoint", given, given.model, endpoint.Budget(given.max_calls))


def _from_endpoint(settings: Refusals, prompts: Sequence[str], kept: Journal) -> list[str]:
    """The keys of the replies that an endpoint gave, each in the journal."""
    asked = [settings.endpoint.model, settings.system_prompt, settings.max_tokens, settings.temperature]
    keys = [reply_key("endpoint", *asked, prompt) for prompt in prompts]
    pending = [(key, turns(settings.system_prompt, prompt)) for key, prompt in zip(keys, prompts, strict=True)
               if key not in kept.pieces]  # fmt: skip
    if not pending:
        return keys
    characters = sum(len(message["content"]) for _, messages in pending for message in messages)
    tokens_in = characters // endpoint.CHARACTERS_PER_TOKEN
    tokens = f"about {tokens_in} tokens in, at most {len(pending) * settings.max_tokens} out"
    print(f"refusals by {settings.endpoint.model}: {len(pending)} calls, {tokens}", file=sys.stderr, flush=True)
    progress, finished = Progress(len(pending), "refusals"), count(1)

    def done(index: int, reply: endpoint.Completion) -> None:
        kept.keep({pending[index][0]: {"text": reply.text, "finish_reason": reply.finish_reason}})
        progress.show(next(finished))

    _endpoint(settings).complete(
        [messages for _, messages in pending], done, max_tokens=settings.max_tokens, temperature=settings.temperature
    )
    return keys
