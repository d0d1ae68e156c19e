"""Strict JSON: what Python's parser accepts beyond the standard is an error."""

import json
import math
import re
from typing import Any

# The halves of a character, of which JSON can hold one alone.
SURROGATE = re.compile(r"\\u[dD][89abAB]|\\u[dD][c-fC-F]|[\ud800-\udfff]")


def parse_json(text: str) -> Any:
    """The value that a JSON text holds.

    Raises:
        json.JSONDecodeError: it is no JSON.
        ValueError: it holds what cannot be kept: NaN, a number that is infinite, a name twice in one object, half a
            character.
    """
    try:
        value = DECODER.decode(text.strip(WHITESPACE))
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if SURROGATE.search(text):
        _check_characters(value, "")
    return value


def json_kind(value: Any) -> str:
    """A value in words, by the names that JSON has for it."""
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case int() | float():
            return f"a number ({value!r:.20})"
        case str():
            return "a text" if value.strip() else "an empty text"
        case list():
            messages = [entry for entry in value if isinstance(entry, dict) and "role" in entry]
            if value and len(messages) == len(value):
                return f"a list of messages ({', '.join(map(_message, messages))})"
            return f"a list of {len(value)}"
        case dict():
            return f"an object ({', '.join(value) or 'empty'})"
        case bytes():
            return "bytes"
    return f"a {type(value).__name__}"


def _message(message: dict[str, Any]) -> str:
    content = message.get("content")
    return f"{message['role']}" + ("" if isinstance(content, str) and content.strip() else " without content")


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text} is too large for a number")
    return value


def _int(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"a number of {len(text)} digits is too large") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the name '{next(name for name in names if names.count(name) > 1)}' stands twice")
    return value


def _check_characters(value: Any, place: str) -> None:
    match value:
        case str():
            try:
                value.encode()
            except UnicodeEncodeError as error:
                half = f"\\u{ord(value[error.start]):04x}"
                raise ValueError(f"{place}holds half a character, {half}, which no UTF-8 file can") from None
        case list():
            for entry in value:
                _check_characters(entry, place)
        case dict():
            for name, entry in value.items():
                _check_characters(name, "a name ")
                _check_characters(entry, place or f"'{name}' ")


WHITESPACE = " \t\n\r"
DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_float=_float, parse_int=_int, parse_constant=_constant)
