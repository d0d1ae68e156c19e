"""pydantic's errors in one line each: the key, what was found, what is allowed."""

import re
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from ogpsa.utils.errors import closest_match

# pydantic's names of what it expects, as a user of YAML knows them.
_KINDS = {
    "a valid integer": "an integer",
    "a valid number": "a number",
    "a valid boolean": "true or false",
    "a valid string": "a text",
    "a valid list": "a list",
    "a valid dictionary": "a mapping",
}


def describe(error: ValidationError, raw: Mapping[str, Any], prefix: tuple[str, ...] = ()) -> list[str]:
    """One line for each key at fault: the key, what was found, what is allowed."""
    found: dict[tuple[str, ...], list[ErrorDetails]] = {}
    siblings: dict[tuple[str, ...], list[str]] = {}
    for details in error.errors():
        path, beside = _locate((*prefix, *details["loc"]), raw, details["type"] == "missing")
        found.setdefault(tuple(path), []).append(details)
        siblings[tuple(path)] = beside
    # If every branch of a union fails, the user meant the one that got furthest.
    furthest = [path for path in found if not any(other[: len(path)] == path != other for other in found)]
    return [_line(path, siblings[path], found[path]) for path in furthest]


def _line(path: tuple[str, ...], siblings: list[str], errors: list[ErrorDetails]) -> str:
    key, first = ".".join(path) or "configuration", errors[0]
    if first["type"] == "extra_forbidden":
        return f"{key}: unknown key; allowed: {', '.join(siblings)}{closest_match(path[-1], siblings)}"
    if first["type"] == "missing" or first["input"] == "???":
        return f"{key}: no value given, and it has no default"
    if first["type"] == "value_error":
        return f"{key}: {first['msg'].removeprefix('Value error, ')}"
    if first["type"] == "union_tag_invalid":
        tags, found = re.findall(r"'([^']*)'", first["ctx"]["expected_tags"]), first["ctx"]["tag"]
        name = first["ctx"]["discriminator"].strip("'")
        return f"{key}.{name}: found '{found}'; allowed: {', '.join(tags)}{closest_match(found, tags)}"
    allowed = (details["msg"].removeprefix("Input should be ").partition(", unable to")[0] for details in errors)
    messages = dict.fromkeys(_KINDS.get(kind, kind) for kind in allowed)
    if path[:1] == ("method",) and len(messages) > 1:
        messages = dict.fromkeys(kind.replace("a mapping", "a mapping by stage") for kind in messages)
    options = [
        word
        for details in errors
        if details["type"] == "literal_error"
        for word in re.findall(r"'([^']*)'", details["ctx"]["expected"])
    ]
    hint = closest_match(str(first["input"]), options)
    if isinstance(first["input"], str) and any(details["type"] == "list_type" for details in errors):
        hint = f"; write [{first['input']}] for a list of one"
    if first["type"] == "string_type" and isinstance(first["input"], list | dict | bool | int | float):
        text = f"{first['input']}" if isinstance(first["input"], int | float) else "…"
        hint = f"; a text that reads as something else takes quotes: '{key}=\"{text}\"'"
    return f"{key}: found {_shown(first['input'])}; allowed is {', or '.join(messages)}{hint}"


def _shown(value: object) -> str:
    """A value as YAML writes it."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)


def _locate(location: tuple[str | int, ...], raw: Mapping[str, Any], absent: bool) -> tuple[list[str], list[str]]:
    """The dotted path of an error and its sibling keys; union tags in ``location`` are not keys.

    ``absent`` says that the last part names a key that is not there.
    """
    path: list[str] = []
    siblings: list[str] = []
    here: Any = raw
    for position, part in enumerate(location):
        last = position == len(location) - 1
        if isinstance(here, Mapping) and (part in here or (last and absent)):
            siblings = [str(key) for key in here if key != part]
            path.append(str(part))
            here = here.get(part)
        elif isinstance(here, list) and isinstance(part, int) and part < len(here):
            path.append(str(part))
            here = here[part]
    return path, siblings
