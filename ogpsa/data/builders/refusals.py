"""The safe answers of the safety set: written by an endpoint or a checkpoint, or drawn from templates.

What was written is kept on disk the moment it is there, under a hash of what was asked and of whom; a second build
asks only for what is not there.
"""

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from ogpsa.data.builders.settings import Refusals
from ogpsa.models.files import check_weights, fingerprint
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

Reply = Mapping[str, str]


def check_refusals(settings: Refusals) -> None:
    """Refuse a way that could not start, before anything is read.

    Raises:
        UserError: no key or address for the endpoint, no loadable checkpoint, or one whose tokenizer does not fit.
    """
    if settings.way == "endpoint":
        _endpoint(settings).check()
    elif settings.way == "model":
        if settings.model.path is None:
            raise UserError(f"{SECTION}.model.path: null; {SECTION}.way=model needs the folder of a checkpoint")
        folder = Path(settings.model.path)
        check_weights(folder, f"{SECTION}.model.path", "write the checkpoint again")
        from ogpsa.models.tokenizer import load_tokenizer

        load_tokenizer(folder, settings.model.template_kwargs)


def write_refusals(
    settings: Refusals, seed: int, prompts: Sequence[str], journal: Path
) -> tuple[list[str], dict[str, Any]]:
    """A refusal for each prompt, and what the data card says about them.

    A reply that is empty, cut or no refusal gives way to a template.

    Args:
        seed: decides which template a prompt gets.
        journal: where replies are kept.

    Raises:
        UserError: as ``check_refusals`` and ``Endpoint.complete``, or more replies gave way than
            ``settings.template_share`` allows.
    """
    check_refusals(settings)
    templates = [_template(settings.templates, seed, prompt) for prompt in prompts]
    if settings.way == "templates":
        return templates, {"way": settings.way, "templates": len(templates)}
    kept = Journal(journal, STAMP)
    try:
        keys = (
            _from_endpoint(settings, prompts, kept) if settings.way == "endpoint" else _local(settings, prompts, kept)
        )
        replies = [kept.pieces[key] for key in keys]
    finally:
        kept.close(discard=False)
    problems = [_problem(reply) for reply in replies]
    refusals = [
        template if problem else _answer(reply)
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


def _answer(reply: Reply) -> str:
    """A reply without its thoughts, which must not be trained on."""
    return (split_reply(reply["text"]).answer or "").strip()


def _problem(reply: Reply) -> str | None:
    """Why a reply is not used."""
    text = _answer(reply)
    if split_reply(reply["text"]).answer is None or (text and reply["finish_reason"] == "length"):
        return "cut"
    if says_nothing(text):
        return "empty"
    return None if declines(text) else "no refusal"


def _check_share(settings: Refusals, problems: Sequence[str | None], replies: Sequence[Reply]) -> None:
    """Refuse a safety set that is mostly templates where a writer was asked for."""
    given_way = [number for number, problem in enumerate(problems) if problem]
    if len(given_way) > settings.template_share * len(problems):
        first = given_way[0]
        raise UserError(
            f"{SECTION}.template_share: {len(given_way)} of {len(problems)} replies cannot be used as refusals, "
            f"above the share of {settings.template_share:g} for which a template may stand in; the first is "
            f"{problems[first]}: '{' '.join(replies[first]['text'].split())[:SHOWN]}'; change {SECTION}.system_prompt "
            f"or the writer, or allow it by {SECTION}.template_share=1 (no reply is asked for again)"
        )


def _messages(settings: Refusals, prompt: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": settings.system_prompt}, {"role": "user", "content": prompt}]


def _key(*asked: Any) -> str:
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:32]


def _endpoint(settings: Refusals) -> endpoint.Endpoint:
    given = settings.endpoint
    return endpoint.Endpoint.of(f"{SECTION}.endpoint", given, given.model, endpoint.Budget(given.max_calls))


def _from_endpoint(settings: Refusals, prompts: Sequence[str], kept: Journal) -> list[str]:
    """The keys of the replies that an endpoint gave, each in the journal."""
    asked = [settings.endpoint.model, settings.system_prompt, settings.max_tokens, settings.temperature]
    keys = [_key("endpoint", *asked, prompt) for prompt in prompts]
    pending = [(key, _messages(settings, prompt)) for key, prompt in zip(keys, prompts, strict=True)
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


def _local(settings: Refusals, prompts: Sequence[str], kept: Journal) -> list[str]:
    """The keys of a checkpoint's greedy replies, each in the journal.

    The batches are the same whether or not some are in the journal.
    """
    folder = Path(str(settings.model.path))
    pins = settings.model.template_kwargs
    asked = [fingerprint(folder), pins, settings.system_prompt, settings.max_tokens]
    keys = [_key("model", *asked, prompt) for prompt in prompts]
    # The longest first, so that a memory that is too small shows at once.
    order = sorted(range(len(prompts)), key=lambda number: (-len(prompts[number]), keys[number]))
    size = settings.model.batch_size
    batches = [order[start : start + size] for start in range(0, len(order), size)]
    pending = [batch for batch in batches if any(keys[number] not in kept.pieces for number in batch)]
    if pending:
        from ogpsa.models.generate import Generator

        generator = Generator.of_checkpoint(folder, settings.max_tokens, pins)
        progress = Progress(len(pending), "batches of refusals")
        for done, batch in enumerate(pending, start=1):
            replies = generator.next_turns([_messages(settings, prompts[number]) for number in batch])
            kept.keep({keys[number]: reply for number, reply in zip(batch, replies, strict=True)})
            progress.show(done)
    return keys
