"""Prompts of endpoint judges: messages with placeholders, filled so that no answer can leave its place."""

import hashlib
import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path

from ogpsa.utils.errors import UserError
from ogpsa.utils.files import read_text
from ogpsa.utils.json_text import parse_json

Message = Mapping[str, str]

# What published prompts call the three texts.
PLACEHOLDERS = {
    "prompt": ("prompt", "question", "forbidden_prompt", "user_prompt", "request", "instruction"),
    "response": ("response", "completion", "predicted_answer", "model_completion", "model_answer", "answer"),
    "target": ("target", "gold_target", "reference"),
}
MEANINGS = {alias: meaning for meaning, aliases in PLACEHOLDERS.items() for alias in aliases}
PLACEHOLDER = re.compile(r"\{(boundary|" + "|".join(MEANINGS) + r")\}")
ROLES = ("system", "user", "assistant")


def prompt_messages(path: Path, key: str, needed: Collection[str]) -> tuple[Message, ...]:
    """The messages of a judge's prompt with their placeholders.

    Args:
        path: a text, which is one message of the user, or a ``.json`` list of messages
            ``{"role": …, "content": …}``.
        key: what named the file, for messages to the user.
        needed: the texts whose placeholders it must have.

    Raises:
        UserError: the file is not there, is not such a list, or lacks a placeholder.
    """
    try:
        # As an editor shows it: a judge's words do not depend on how lines end.
        text = read_text(path, "a judge's prompt").replace("\r\n", "\n")
    except (OSError, UserError) as error:
        raise UserError(f"{key}: {path} cannot be read as a text: {error}") from None
    messages: tuple[Message, ...] = ({"role": "user", "content": text},)
    if path.suffix == ".json":
        try:
            messages = tuple(parse_json(text))
            valid = bool(messages) and all(
                message.keys() == {"role", "content"}
                and message["role"] in ROLES
                and isinstance(message["content"], str)
                for message in messages
            )
        except (ValueError, TypeError, AttributeError):
            valid = False
        if not valid:
            form = '{"role": …, "content": text}'
            raise UserError(f"{key}: {path} is no list of messages {form}; roles: {', '.join(ROLES)}")
    found = {MEANINGS.get(word) for message in messages for word in PLACEHOLDER.findall(message["content"])}
    lacking = [" or ".join(f"{{{alias}}}" for alias in PLACEHOLDERS[word]) for word in needed if word not in found]
    if lacking:
        raise UserError(*(f"{key}: {path} has no placeholder {words}" for words in lacking))
    return messages


def fill(messages: tuple[Message, ...], prompt: str, response: str, target: str) -> list[dict[str, str]]:
    """The messages with the texts in their places; a placeholder inside a text stays as it is.

    ``{boundary}`` becomes a word that depends on the texts, so none of them can hold it and close its own place.
    """
    texts = {"prompt": prompt, "response": response, "target": target}
    boundary = hashlib.sha256(json.dumps([prompt, response, target]).encode()).hexdigest()[:16]

    def text(match: re.Match[str]) -> str:
        return boundary if match[1] == "boundary" else texts[MEANINGS[match[1]]]

    return [{"role": message["role"], "content": PLACEHOLDER.sub(text, message["content"])} for message in messages]


def prompt_hash(messages: tuple[Message, ...]) -> str:
    """Sixteen hexadecimal digits over the messages, placeholders in place."""
    return hashlib.sha256(json.dumps(messages, sort_keys=True).encode()).hexdigest()[:16]
