"""The chat template: rendered alike in training, evaluation and builders, whatever the day.

What a run pins is written into the template itself, so that everyone who holds the tokenizer renders with it: TRL,
lm-eval, a builder, and whoever loads a stage's checkpoint.
"""

import json
import logging
import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from datetime import datetime
from typing import Any

from jinja2 import Environment, TemplateError, meta, nodes
from jinja2.ext import loopcontrols
from transformers import PreTrainedTokenizerBase

from ogpsa.utils.errors import UserError, closest_match

Messages = Sequence[Mapping[str, str]]
log = logging.getLogger(__name__)

CLOCK = "strftime_now"
# Characters of a turn that a message shows.
SHOWN = 40
# The day that Llama's templates fall back to where they have no clock.
FROZEN_DAY = "2024-07-26"
# The caller's own arguments, which no run may pin.
RESERVED = (
    "messages", "tools", "documents", "add_generation_prompt", "continue_final_message", "chat_template", "tokenize",
    "padding", "truncation", "max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask",
)  # fmt: skip
# Each line ends in a newline that transformers' settings of jinja (trim_blocks) leave out of the text.
PINS = re.compile(r"\A\{# pinned: (?P<values>.*?) #\}\n.*?\{# end of the pins #\}\n", re.DOTALL)
# transformers' own tag, which plain jinja does not parse.
GENERATION = re.compile(r"\{%-?\s*(end)?generation\s*-?%\}")
# How Python writes an object that has no text of its own.
ADDRESS = re.compile(r" at 0x[0-9a-f]+>")
# A template is somebody else's program: whatever it raises, from ``raise_exception`` to a division by zero, is reported
# as the template's error.
RENDERING_ERRORS = (Exception,)


def pin(tokenizer: PreTrainedTokenizerBase, values: Mapping[str, Any]) -> None:
    """Fix variables of the tokenizer's chat template, and its clock if it has one (``strftime_now``).

    Values that are pinned already stay unless ``values`` replaces them. A template with nothing to pin stays unchanged,
    to the byte.

    Args:
        values: by the variable's name; ``strftime_now`` is a date, as 2024-07-26.

    Raises:
        UserError: there is no template, it cannot be parsed, draws at random, or does not read one of the variables.
    """
    templates = tokenizer.chat_template
    if templates is None:
        raise UserError(f"{tokenizer.name_or_path}: the tokenizer has no chat template; use an instruct model")
    try:
        if isinstance(templates, dict):
            templates = {name: _pinned(text, values if name == "default" else {}) for name, text in templates.items()}
        else:
            templates = _pinned(templates, values)
    except UserError as error:
        raise UserError(*(f"{tokenizer.name_or_path}: {problem}" for problem in error.problems)) from None
    tokenizer.chat_template = templates


def _pinned(template: str, values: Mapping[str, Any]) -> str:
    found = PINS.match(template)
    body = template[found.end() :] if found else template
    pins = (json.loads(found["values"]) if found else {}) | dict(values)
    read = template_variables(body)
    allowed = sorted(read - set(RESERVED))
    unread = [name for name in pins if name not in allowed]
    if unread:
        raise UserError(
            *(
                f"model.template_kwargs.{name}: the chat template reads no such variable; it reads "
                f"{', '.join(allowed) or 'none'}{closest_match(name, allowed)}"
                for name in unread
            )
        )
    if CLOCK in read:
        pins.setdefault(CLOCK, FROZEN_DAY)
    if not pins:
        return body
    # A comment ends at the first #}.
    noted = json.dumps(pins, sort_keys=True).replace("#", "\\u0023")
    lines = [
        _frozen_clock(body, value) if name == CLOCK else f"{{% set {name} = {value!r} %}}"
        for name, value in sorted(pins.items())
    ]
    return "\n".join([f"{{# pinned: {noted} #}}", *lines, "{# end of the pins #}", body])


def _frozen_clock(template: str, day: Any) -> str:
    """A macro in place of the clock: each of strftime's codes in the template by its value on that day."""
    try:
        date = datetime.fromisoformat(day)
    except (TypeError, ValueError):
        raise UserError(f"model.template_kwargs.{CLOCK}: found {day!r}; write a date, as {FROZEN_DAY}") from None
    codes = sorted(set(re.findall(r"(?<!\{)%-?[A-Za-z]", template)))
    steps = "".join(f"|replace('{code}', {date.strftime(code)!r})" for code in codes)
    return f"{{% macro {CLOCK}(format) %}}{{{{ format{steps}|replace('%%', '%') }}}}{{% endmacro %}}"


def template_variables(template: str) -> set[str]:
    """The variables that a chat template takes from its caller.

    Raises:
        UserError: it cannot be parsed, or draws at random.
    """
    try:
        tree = Environment(extensions=[loopcontrols]).parse(GENERATION.sub("", template))
    except TemplateError as error:
        raise UserError(f"the chat template cannot be parsed ({_reason(error)})") from None
    used = [*(part.name for part in tree.find_all(nodes.Filter)), *(part.name for part in tree.find_all(nodes.Name))]
    drawn = [name for name in used if name in ("random", "lipsum")]
    if drawn:
        raise UserError(f"the chat template draws at random ({drawn[0]}), so that no two renderings are alike")
    return meta.find_undeclared_variables(tree)


def render(tokenizer: PreTrainedTokenizerBase, messages: Messages, add_generation_prompt: bool = True) -> str:
    """The text of a conversation; without a generation prompt after an assistant's turn, that turn stays open.

    Raises:
        UserError: the template does not take it.
    """
    try:
        return str(
            tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )
    except RENDERING_ERRORS as error:
        raise UserError(f"{tokenizer.name_or_path}: {not_taken(messages, error)}") from None


class Chat:
    """A chat template for conversations that may begin with a system's turn.

    A template that refuses such a turn, or leaves it out, gets its text in front of the user's, and one line says so.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._takes_system = takes_system(tokenizer)
        if not self._takes_system:
            log.warning(
                "%s: the chat template has no system's turn; system prompts and task descriptions are put in front of "
                "the user's turn",
                tokenizer.name_or_path,
            )

    def render(self, messages: Messages, add_generation_prompt: bool = True) -> str:
        """The text of a conversation.

        Raises:
            UserError: as ``render``.
        """
        if messages and messages[0]["role"] == "system" and not self._takes_system:
            system, *rest = messages
            if rest and rest[0]["role"] == "user":
                first, *rest = rest
                system = {**first, "content": f"{system['content']}\n\n{first['content']}"}
            messages = [{**system, "role": "user"}, *rest]
        return render(self._tokenizer, messages, add_generation_prompt)


def takes_system(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the template writes what a system's turn says."""
    said = "Speak plainly."
    try:
        return said in render(tokenizer, [{"role": "system", "content": said}, {"role": "user", "content": "Hello"}])
    except UserError:
        return False


def check_repeatable(tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a template that renders one conversation in two ways.

    Raises:
        UserError: it does, or takes no user's turn.
    """
    conversation = [{"role": "user", "content": "Hello"}]
    texts = {render(tokenizer, turns) for turns in (conversation, deepcopy(conversation))}
    # Two objects may have one address, one after the other.
    if len(texts) > 1 or any(ADDRESS.search(text) for text in texts):
        raise UserError(f"{tokenizer.name_or_path}: the chat template makes two texts of one conversation")


def lost_turn(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> str | None:
    """Difference between a prompt's text and its turns; None if it holds each turn's words.

    A template may put a system's turn in another place.
    """
    if len(messages) == 1:
        return None
    try:
        text = str(tokenizer.apply_chat_template(list(map(dict, messages)), tokenize=False, add_generation_prompt=True))
    except RENDERING_ERRORS as error:
        return f"{not_taken(messages, error)}; write what it does not take into a user's turn, or take the row out"
    place = 0
    for number, message in enumerate(messages, start=1):
        said, role = message["content"].strip(), message["role"]
        found = text.find(said, 0 if role == "system" else place)
        if found < 0:
            turn = f"turn {number} ({role}), {said[:SHOWN]!r}"
            return f"the chat template leaves out or changes {turn}; write it into another turn, or take the row out"
        place = place if role == "system" else found + len(said)
    return None


def not_taken(messages: Messages, error: Exception) -> str:
    """The message for a conversation that the chat template does not render."""
    roles = ", ".join(message["role"] for message in messages)
    return f"the chat template does not take the turns {roles} ({_reason(error)})"


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
