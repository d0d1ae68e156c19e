"""The safe answers of the safety set: written by an endpoint or a checkpoint, or drawn from templates.

What was written is kept on disk the moment it is there, under a hash of what was asked and of whom; a second build
asks only for what is not there.
"""

import hashlib
import json
import re
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

STAMP = {"holds": "refusals"}
SECTION = "refusals"
# A reply that says none of this at its beginning may have complied. The writer is told to keep to the user's language:
# the more widely spoken ones, by what their refusals are made of.
PHRASES = (
    # English
    r"\b(can(['’]?t|not| not)|won['’]?t|(will|must) not|not (able|willing)|unable|declin\w+|refus\w+|sorry)\b",
    # German, Dutch
    r"\b(tut mir (sehr )?leid|leider|bedaure|lehne (das|dies|ich)|verweigere)\b",
    r"\b(ich (kann|darf|werde|möchte)|(kann|darf|werde|möchte) ich)\b[^.!?]{0,60}\b(nicht|keine?)\b",
    r"\b(het spijt me|helaas|(ik (kan|mag|zal|wil)|(kan|mag|zal|wil) ik)\b[^.!?]{0,60}\b(niet|geen)\b)",
    # French, Italian, Spanish, Portuguese
    r"\b(désolée?|regrette|n(e |['’])(peux|puis|pourrai|vais)\b[^.!?]{0,20}\bpas|refuse)\b",
    r"\b(mi dispiace|spiacente|purtroppo|non (posso|potrò|sono in grado))\b",
    r"\b(lo siento|lamento|disculpa|no (puedo|podemos|podré|voy a|me es posible)|me niego)\b",
    r"\b(desculp\w+|lamento|sinto muito|infelizmente|não (posso|podemos|vou|consigo))\b",
    # Polish, Russian, Ukrainian, Turkish
    r"\b(przykro mi|przepraszam|niestety|nie (mogę|pomogę|będę))\b",
    r"(извин|сожалени|не (могу|можем|буду|стану)|вибач|на жаль|не можу)",
    r"(üzgünüm|maalesef|yard\u0131mc\u0131 olamam|\w+(amam|emem|am\u0131yorum|emiyorum)\b)",
    # Chinese, Japanese, Korean
    r"(抱歉|对不起|對不起|无法|無法|拒绝|拒絕|不能(为|為|提供|协助|協助|帮|幫|回答|满足|滿足|支持))",
    r"(申し訳|すみません|ごめん|できません|出来ません|いたしかねます|お断り)",
    r"(죄송|미안|(드릴|할|제공할|답변할) 수 없|않겠습니다|거절)",
    # Arabic, Persian, Hindi, Vietnamese, Indonesian
    r"(آسف|عذرا|لا (أستطيع|يمكنني|يمكن)|متأسف|نمی(‌|\s)?توانم)",
    r"(माफ़|माफ|क्षमा|नहीं (कर|दे) सकत)",
    r"(xin lỗi|rất tiếc|không thể)",
    r"\b(maaf|tidak (bisa|dapat|boleh))\b",
)
DECLINES = re.compile("|".join(PHRASES), re.IGNORECASE)
# Characters of a reply that a message shows.
SHOWN = 120
BEGINNING = 200

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
    """What a reply says without its thoughts, which are not to be trained on."""
    return (split_reply(reply["text"]).answer or "").strip()


def _problem(reply: Reply) -> str | None:
    """Why a reply is not used."""
    text = _answer(reply)
    if split_reply(reply["text"]).answer is None or (text and reply["finish_reason"] == "length"):
        return "cut"
    if says_nothing(text):
        return "empty"
    return None if DECLINES.search(text[:BEGINNING]) else "no refusal"


def _check_share(settings: Refusals, problems: Sequence[str | None], replies: Sequence[Reply]) -> None:
    """Refuse a safety set that is mostly templates where a writer was asked for."""
    given_way = [number for number, problem in enumerate(problems) if problem]
    if len(given_way) > settings.template_share * len(problems):
        first = given_way[0]
        raise UserError(
            f"{SECTION}.template_share: {len(given_way)} of {len(problems)} replies are no refusal that can be used, "
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
