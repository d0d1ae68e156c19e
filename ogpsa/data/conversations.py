"""Conversations in rows: from the forms in users' files to the one that a run uses.

``messages``, a ``prompt`` of several turns, answers that are whole conversations, and ``system`` next to a prompt
become ``prompt`` with ``chosen`` and ``rejected``. The answers are texts. The prompt is a text if it is a single user's
turn, otherwise a list of messages: an optional system's turn, then user and assistant in turns, the user's last.
"""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import zip_longest
from typing import Any

from ogpsa.utils.errors import closest_match
from ogpsa.utils.json_text import json_kind, parse_json

Message = dict[str, str]
Prompt = str | list[Message]
# The columns that may hold messages.
HOLDERS = ("prompt", "chosen", "completion", "rejected", "messages")
ROLES = ("system", "user", "assistant")
ALLOWED = "a text, or messages as a list of objects with role and content"
# Whose turn it is behind each role, and at the beginning.
FOLLOWS = {"": ("system", "user"), "system": ("user",), "user": ("assistant",), "assistant": ("user",)}
IN_TURNS = "allowed: a system's turn first or none, then user and assistant in turns"
# Other keys that change what a message says; no stage reads them.
UNREAD_IN_MESSAGE = (
    "tool_calls", "tool_call_id", "function_call", "tools", "name", "reasoning_content", "reasoning", "thinking",
    "images", "audio", "documents",
)  # fmt: skip
# How a list of messages begins in a cell of a table; with single quotes, it is Python's and no JSON.
CELL = re.compile(r"""\s*\[\s*\{\s*['"](?:role|content)['"]\s*:""")
# Whitespace and zero-width characters: a turn of nothing else is empty.
INVISIBLE = "".join(filter(str.isspace, map(chr, range(0x3001)))) + "\0\u00ad\u180e\u200b\u200c\u200d\u2060\ufeff"


class ConversationError(Exception):
    """A row that holds no conversation to learn from.

    Attributes:
        kind: the same for all rows with this mistake.
        told: the mistake in words, which follow the row's place in a message.
    """

    def __init__(self, kind: str, told: str) -> None:
        super().__init__(told)
        self.kind = kind
        self.told = told


def turn(role: str, text: str) -> Message:
    """One message."""
    return {"role": role, "content": text}


def turns(prompt: Prompt) -> list[Message]:
    """The messages of a prompt."""
    return [turn("user", prompt)] if isinstance(prompt, str) else prompt


def conversation(prompt: Prompt, answer: str) -> list[Message]:
    """The messages of a prompt with its answer."""
    return [*turns(prompt), turn("assistant", answer)]


def as_text(prompt: Prompt) -> str:
    """A prompt for readers that take one text: the words of a single turn, or several turns, each after its role."""
    messages = turns(prompt)
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n\n".join(f"{message['role'].capitalize()}: {message['content']}" for message in messages)


def users_turns(value: Any) -> list[str]:
    """The words of each user's turn in messages, or in their JSON; none where ``value`` holds no messages."""
    if isinstance(value, str) and CELL.match(value):
        with suppress(ValueError):
            value = parse_json(value)
    messages = [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []
    return [
        str(one["content"]) for one in messages if one.get("role") == "user" and isinstance(one.get("content"), str)
    ]


def plain_row(row: dict[str, Any], columns: Sequence[str], cells: bool) -> dict[str, Any]:
    """The row with its prompt and answers in a run's form; a row without messages and ``system`` stays as it is.

    Args:
        columns: the needed ones of ``prompt``, ``chosen`` and ``rejected``; others are ignored.
        cells: whether the row comes from a table of texts, which holds messages as JSON; elsewhere a text is messages
            only if all of it is, as an export leaves them.

    Raises:
        ConversationError: messages are not of a form that is read, or contradict each other.
    """
    listed = [name for name in HOLDERS if isinstance(row.get(name), str) and CELL.match(row[name])]
    row = row | {name: _from_json(name, row[name]) if cells else _if_messages(row[name]) for name in listed}
    answer = next((name for name in ("chosen", "completion", "messages") if row.get(name)), None)
    names = ["prompt"]
    if answer and ("chosen" in columns or not row.get("prompt")):
        names.append(answer)
    if "rejected" in columns:
        names.append("rejected")
    found, prompts = dict(row), dict[str, list[Message]]()
    for name in names:
        messages = _messages(name, row.get(name))
        if messages is None:
            continue
        last = "user" if name == "prompt" else "assistant"
        if messages[-1]["role"] != last:
            ends = f": column '{name}' ends with the {messages[-1]['role']}'s turn; allowed: the {last}'s last"
            raise ConversationError(f"{name} end", ends)
        if name != "prompt":
            found.pop(name)
            found["chosen" if name == "messages" else name] = messages.pop()["content"]
        if messages:
            prompts[name] = messages
    prompt = _with_system(found.pop("system", None), _shared(row.get("prompt"), prompts))
    if prompt is not None:
        found["prompt"] = prompt[0]["content"] if len(prompt) == 1 else prompt
    return found


def _if_messages(text: str) -> Any:
    """The messages that a text is as JSON; the text itself where it is something else."""
    try:
        value = parse_json(text)
    except ValueError:
        return text
    whole = isinstance(value, list) and all(
        isinstance(one, dict) and {"role", "content"} <= one.keys() for one in value
    )
    return value if whole else text


def _shared(given: Any, prompts: Mapping[str, list[Message]]) -> list[Message] | None:
    """The prompt of a row whose columns hold ``prompts``; ``given`` is what stands as its prompt."""
    text = given if isinstance(given, str) and "prompt" not in prompts and given.strip(INVISIBLE) else None
    if not prompts:
        return None if text is None else turns(text)
    (first, prompt), *others = prompts.items()
    for name, other in others:
        if other != prompt:
            places = enumerate(zip_longest(prompt, other), start=1)
            number = next(number for number, (one, two) in places if one != two)
            raise ConversationError(
                f"{first} {name}",
                f": '{first}' and '{name}' do not share their prompt: they differ from message {number} on; allowed: "
                "the same turns before the last answer",
            )
    asked = [message["content"].strip() for message in prompt if message["role"] == "user"]
    if text is not None and text.strip() not in asked:
        raise ConversationError(
            f"prompt {first}",
            f": column 'prompt' is not a user's turn of '{first}'; take it out, or write what is asked",
        )
    return prompt


def _with_system(system: Any, prompt: list[Message] | None) -> list[Message] | None:
    """The prompt with the system's turn that stands in a column of its own."""
    if isinstance(system, list | dict | bytes) and system:
        raise ConversationError("system kind", f": column 'system' holds {json_kind(system)}; allowed: a text")
    if prompt is None or not isinstance(system, str) or not system.strip(INVISIBLE):
        return prompt
    first = prompt[0]
    if first["role"] == "system":
        if first["content"].strip() != system.strip():
            told = ": column 'system' and the system's turn in the prompt differ; keep one"
            raise ConversationError("two systems", told)
        return prompt
    # Some files repeat it in front of the user's words, on lines of its own.
    begins = re.match(rf"\s*{re.escape(system.strip())}[^\S\n]*(?:\n|\Z)", first["content"])
    return prompt if begins else [turn("system", system), *prompt]


def _from_json(name: str, text: str) -> Any:
    try:
        return parse_json(text)
    except ValueError as error:
        told = f": column '{name}' holds messages that are not readable as JSON ({error})"
        raise ConversationError(f"{name} JSON", told) from None


def _messages(name: str, value: Any) -> list[Message] | None:
    """The messages in a column; None where it holds none, as a text does."""
    if name == "messages" and isinstance(value, str):
        value = _from_json(name, value)
    if not isinstance(value, list):
        if name != "messages":
            return None
        told = f": column 'messages' holds {json_kind(value)}; allowed: a list of objects with role and content"
        raise ConversationError("messages kind", told)
    if not value or not all(isinstance(message, dict) for message in value):
        told = f": column '{name}' holds {json_kind(value)}; allowed: {ALLOWED}"
        raise ConversationError(f"{name} list", told)
    alone = len(value) == 1 and name in ("chosen", "completion", "rejected")
    allowed = ROLES if alone else FOLLOWS[""]
    for number, message in enumerate(value, start=1):
        fault = _fault(message, allowed)
        if fault is not None:
            raise ConversationError(f"{name} {fault[0]}", f": column '{name}', message {number} {fault[1]}")
        allowed = FOLLOWS[message["role"]]
    return [turn(message["role"], message["content"]) for message in value]


def _fault(message: Mapping[str, Any], allowed: Sequence[str]) -> tuple[str, str] | None:
    """The kind of mistake in a message where the roles ``allowed`` may speak, and its words; None where it has none."""
    absent = [key for key in ("role", "content") if key not in message]
    unread = [key for key in UNREAD_IN_MESSAGE if message.get(key)]
    if "role" not in absent and message["role"] not in ROLES:
        role = message["role"]
        known = closest_match(role, ROLES) if isinstance(role, str) else ""
        return "role", f"has the role {role!r}; allowed: {', '.join(ROLES)}{known}"
    if unread:
        return unread[0], f"holds '{unread[0]}', which no stage reads; allowed: role and content"
    if absent:
        keys = ", ".join(map(str, message)) or "none"
        return "keys", f"has no '{absent[0]}' (keys found: {keys}); allowed: role and content"
    role, said = message["role"], message["content"]
    if isinstance(said, list):
        kinds = sorted({str(part.get("type", "part")) if isinstance(part, dict) else json_kind(part) for part in said})
        return "parts", f"({role}) holds a list of parts ({', '.join(kinds) or 'none'}); allowed: a text"
    if not isinstance(said, str) or not said.strip(INVISIBLE):
        held = "no word" if isinstance(said, str) else json_kind(said)
        return "content", f"({role}) holds {held}; allowed: a text that says something"
    if role not in allowed:
        return "order", f"is the {role}'s, where the {' or '.join(allowed)} speaks; {IN_TURNS}"
    return None
