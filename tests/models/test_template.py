"""Chat templates: pinned variables, frozen clocks, and system's turns where a template has none."""

import logging
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ogpsa.models.template import Chat, check_repeatable, pin, render
from ogpsa.models.tokenizer import rendered_hash
from ogpsa.utils.errors import UserError
from tests.tiny import byte_tokenizer, save_tiny

# Templates of real models, as the library ships them.
PUBLISHED = Path(str(files("trl"))) / "chat_templates"
CHATML = byte_tokenizer().chat_template
ASKED = [{"role": "user", "content": "Hello"}]
WITH_SYSTEM = [{"role": "system", "content": "Be brief."}, *ASKED]
IN_A_MACRO = "{% macro day() %}{{ strftime_now('%A, %-d. %B %Y') }}{% endmacro %}{{ day() }}"
DATED = {
    "clock": "{{ strftime_now('%d %b %Y') }}",
    "clock in a macro": IN_A_MACRO,
    "clock as a number": "{{ strftime_now('%Y') | int + 1 }}",
    "clock behind a variable": "{% if not date_string is defined %}{% set date_string = strftime_now('%H:%M') %}"
    "{% endif %}{{ date_string }}",
}


def with_template(template: str) -> PreTrainedTokenizerBase:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def published(name: str) -> PreTrainedTokenizerBase:
    return with_template((PUBLISHED / f"{name}.jinja").read_text(encoding="utf-8"))


def set_day(monkeypatch: pytest.MonkeyPatch, day: datetime) -> None:
    class Clock(datetime):
        @classmethod
        def now(cls, *_: Any) -> Any:
            return day

    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Clock)


@pytest.mark.parametrize(
    "tokenizer",
    [
        *(pytest.param(with_template(text + CHATML), id=name) for name, text in DATED.items()),
        *(pytest.param(published(name), id=name) for name in ("llama3_2", "gptoss", "muse_glimmer")),
    ],
)
def test_two_days_make_the_same_prompt(tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = []
    for day in (datetime(2026, 12, 31, 23, 59), datetime(2027, 1, 1, 0, 1)):
        set_day(monkeypatch, day)
        texts.append(render(tokenizer, ASKED))
        pin(tokenizer, {})
        texts.append(render(tokenizer, ASKED))
    assert texts[0] != texts[1] == texts[2] == texts[3]


def test_the_day_can_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = with_template(IN_A_MACRO + CHATML)
    pin(tokenizer, {"strftime_now": "2024-12-05"})
    assert render(tokenizer, ASKED).startswith("Thursday, 5. December 2024<user>")
    tokenizer = published("llama3_2")
    pin(tokenizer, {"date_string": "5 Dec 2024"})
    assert "Today Date: 5 Dec 2024\n" in render(tokenizer, ASKED)


AWKWARD = "a 'b' \"c\" \\ \n é 😀 #} %} {{ x }}"


@pytest.mark.parametrize("value", ["26 Jul 2024", AWKWARD, True, False, None, 3, 0.5, [1, {"a": None}]])
def test_a_pinned_value_is_the_one_that_was_given(value: Any) -> None:
    template = "{{ x | tojson }}{{ x is defined }}" + CHATML
    given = with_template(template).apply_chat_template(ASKED, tokenize=False, x=value)
    tokenizer = with_template(template)
    pin(tokenizer, {"x": value})
    assert tokenizer.apply_chat_template(ASKED, tokenize=False) == given
    # Also where someone gives another.
    assert tokenizer.apply_chat_template(ASKED, tokenize=False, x="other") == given


@pytest.mark.parametrize("start", ["", "\n", "\n\n  ", "  {% if true %}a{% endif %}\n  ", "{#- b -#} \n c"])
def test_pins_change_nothing_else(start: str) -> None:
    template = start + "{{ x is defined and x is none }}" + CHATML
    plain, tokenizer = with_template(template), with_template(template)
    pin(tokenizer, {"x": None})
    text = tokenizer.apply_chat_template(ASKED, tokenize=False)
    assert text == plain.apply_chat_template(ASKED, tokenize=False, x=None)


def test_a_template_without_pins_stays_as_it_is() -> None:
    tokenizer = byte_tokenizer()
    pin(tokenizer, {})
    assert tokenizer.chat_template == CHATML


def test_pins_go_with_the_checkpoint_and_the_newest_wins(tmp_path: Path) -> None:
    tokenizer = with_template("{{ x }} {{ y }} {{ strftime_now('%Y') }}" + CHATML)
    pin(tokenizer, {"x": 1, "y": 1, "strftime_now": "1999-01-01"})
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert render(loaded, ASKED).startswith("1 1 1999<")
    before = loaded.chat_template
    pin(loaded, {"x": 1})
    assert loaded.chat_template == before
    pin(loaded, {"y": 2})
    assert render(loaded, ASKED).startswith("1 2 1999<")


@pytest.mark.parametrize(
    ("template", "values", "line"),
    [
        ("{{ enable_thinking }}", {"enable_thinkin": False}, "model.template_kwargs.enable_thinkin: the chat template "
         "reads no such variable; it reads enable_thinking; did you mean 'enable_thinking'?"),
        ("", {"date_string": "today"}, "it reads none"),
        ("", {"messages": []}, "model.template_kwargs.messages: the chat template reads no such variable"),
        ("{{ strftime_now('%Y') }}", {"strftime_now": "26 Jul 2024"}, "found '26 Jul 2024'; write a date"),
        ("{{ ['a', 'b'] | random }}", {}, "draws at random (random)"),
        ("{{ lipsum() }}", {}, "draws at random (lipsum)"),
        ("{% if %}", {}, "the chat template cannot be parsed ("),
        (None, {}, "the tokenizer has no chat template"),
    ],
)  # fmt: skip
def test_what_cannot_be_pinned_is_refused(template: str | None, values: dict[str, Any], line: str) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = None if template is None else template + CHATML
    with pytest.raises(UserError) as caught:
        pin(tokenizer, values)
    assert line in str(caught.value)


def test_a_template_that_writes_an_address_is_refused() -> None:
    with pytest.raises(UserError, match="makes two texts of one conversation"):
        check_repeatable(with_template("{{ messages[0].items }}" + CHATML))


RAISES = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + CHATML
DROPS = CHATML.replace("{% for message in messages %}", "{% for message in messages if message.role != 'system' %}")
GEMMA = published("gemma").chat_template


@pytest.mark.parametrize("template", [RAISES, DROPS, GEMMA], ids=["raises", "drops", "gemma"])
def test_a_system_prompt_is_never_lost(template: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        chat = Chat(with_template(template))
    assert "the chat template has no system's turn" in caplog.text
    text = chat.render(WITH_SYSTEM)
    assert text == chat.render([{"role": "user", "content": "Be brief.\n\nHello"}])
    assert "Be brief.\n\nHello" in text
    assert "Be brief." in chat.render(WITH_SYSTEM[:1])


def test_a_system_turn_stays_where_the_template_has_one(caplog: pytest.LogCaptureFixture) -> None:
    assert Chat(byte_tokenizer()).render(WITH_SYSTEM) == "<system>Be brief.<end><user>Hello<end><assistant>"
    assert not caplog.text


def test_turns_that_a_template_refuses_are_named() -> None:
    template = "{{ raise_exception('roles must alternate') }}" + CHATML
    with pytest.raises(UserError, match=r"does not take the turns user \(roles must alternate\)"):
        render(with_template(template), ASKED)


def test_the_hash_tells_templates_and_pins_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dated = "{{ strftime_now('%Y-%m-%d') }}{{ x }}"
    for name, template in {"a": CHATML, "b": "b" + CHATML, "c": dated + CHATML}.items():
        save_tiny(tmp_path / name, with_template(template))
    asked: list[tuple[str, dict[str, Any]]] = [
        ("a", {}), ("b", {}), ("c", {}), ("c", {"x": 1}), ("c", {"strftime_now": "1999-01-01"}),
    ]  # fmt: skip
    found = [rendered_hash(tmp_path / name, values) for name, values in asked]
    assert len(set(found)) == len(found)
    # Days are alike.
    set_day(monkeypatch, datetime(2030, 1, 1))
    assert [rendered_hash(tmp_path / name, values) for name, values in asked] == found
