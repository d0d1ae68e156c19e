"""Greedy replies of a checkpoint in this process, each saved in a journal as soon as it is complete."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ogpsa.data.builders.settings import Checkpoint
from ogpsa.models.files import check_weights, fingerprint
from ogpsa.utils.answers import split_reply
from ogpsa.utils.errors import UserError
from ogpsa.utils.journal import Journal
from ogpsa.utils.progress import Progress

Reply = Mapping[str, str]


def check_writer(section: str, writer: Checkpoint) -> None:
    """Refuse a checkpoint that could not write, before anything is read.

    Args:
        section: of the recipe, for messages.

    Raises:
        UserError: no folder is named, it holds no loadable checkpoint, or one whose tokenizer does not fit.
    """
    if writer.path is None:
        raise UserError(f"{section}.model.path: null; {section}.way=model needs the folder of a checkpoint")
    folder = Path(writer.path)
    check_weights(folder, f"{section}.model.path", "write the checkpoint again")
    from ogpsa.models.tokenizer import load_tokenizer

    load_tokenizer(folder, writer.template_kwargs)


def reply_key(*asked: Any) -> str:
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:32]


def turns(system_prompt: str | None, prompt: str) -> list[dict[str, str]]:
    """The conversation that is to be answered."""
    system = [] if system_prompt is None else [{"role": "system", "content": system_prompt}]
    return [*system, {"role": "user", "content": prompt}]


def answer(reply: Reply) -> str:
    """A reply without its thoughts, which must not be trained on."""
    return (split_reply(reply["text"]).answer or "").strip()


def local_replies(
    writer: Checkpoint, system_prompt: str | None, max_tokens: int, prompts: Sequence[str], kept: Journal, what: str
) -> list[str]:
    """The keys of a checkpoint's greedy replies, each in the journal.

    The batches are the same whether or not some are in the journal.

    Args:
        what: the replies, on the progress line.
    """
    folder = Path(str(writer.path))
    pins = writer.template_kwargs
    asked = [fingerprint(folder), pins, system_prompt, max_tokens]
    keys = [reply_key("model", *asked, prompt) for prompt in prompts]
    # The longest first, so that a memory that is too small shows at once.
    order = sorted(range(len(prompts)), key=lambda number: (-len(prompts[number]), keys[number]))
    size = writer.batch_size
    batches = [order[start : start + size] for start in range(0, len(order), size)]
    pending = [batch for batch in batches if any(keys[number] not in kept.pieces for number in batch)]
    if pending:
        from ogpsa.models.generate import Generator

        generator = Generator.of_checkpoint(folder, max_tokens, pins)
        progress = Progress(len(pending), f"batches of {what}")
        for done, batch in enumerate(pending, start=1):
            replies = generator.next_turns([turns(system_prompt, prompts[number]) for number in batch])
            kept.keep({keys[number]: reply for number, reply in zip(batch, replies, strict=True)})
            progress.show(done)
    return keys
