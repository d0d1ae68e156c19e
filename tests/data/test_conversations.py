"""Conversations in people's files: each form gives the rows of a run, or one line that names the row."""

import csv
import gzip
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from ogpsa.app.compose import compose_config
from ogpsa.config import Config
from ogpsa.data.__main__ import main
from ogpsa.data.conversations import as_text
from ogpsa.data.rows import load_data
from ogpsa.utils.errors import EXIT_DONE, UserError
from ogpsa.utils.files import read_json

SHARED = Path(__file__).parents[2].parent / "shared" / "data"


def said(*words: str, first: str = "user") -> list[dict[str, str]]:
    """Messages whose speakers take turns; a system's turn is one more before the user's."""
    roles = ["system"] * (first == "system") + ["user", "assistant"] * len(words)
    if first == "assistant":
        roles = ["assistant"]
    return [{"role": role, "content": text} for role, text in zip(roles, words, strict=False)]


BEFORE = said("Be kind.", "Hi", "Hello!", "How do I bake?", first="system")
WHOLE, OTHER = [*BEFORE, *said("No.", first="assistant")], [*BEFORE, *said("Take flour.", first="assistant")]
ONE = {"prompt": "Hi", "chosen": "No.", "rejected": "Yes."}
LONG = {"prompt": BEFORE, "chosen": "No.", "rejected": "Take flour."}


@cache
def config_of(stage: str) -> Config:
    """A run over a file that is yet to be named."""
    steps = ["stage.batch_size=1", "stage.micro_batch_size=1"]
    if stage == "grpo":
        steps = ["reward=refusal_rules", "stage.batch_size=8", "stage.micro_batch_size=8", "stage.num_generations=8"]
        steps.append("stage.updates_per_generation=1")
    return compose_config(["data=files", "data.safety=rows", "method=baseline", f"stage={stage}", *steps])


def load(file: Path, stage: str) -> list[dict[str, Any]]:
    config = config_of(stage)
    data = config.data.model_copy(update={"safety": str(file)})
    return load_data(config.model_copy(update={"data": data})).safety


def write(file: Path, rows: list[dict[str, Any]]) -> Path:
    """The rows in the format that the file's ending names; lists stand in CSV as JSON."""
    match file.suffix:
        case ".parquet":
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
        case ".csv":
            with file.open("w", encoding="utf-8", newline="") as opened:
                table = csv.writer(opened)
                table.writerow(rows[0])
                for row in rows:
                    table.writerow(value if isinstance(value, str) else json.dumps(value) for value in row.values())
        case ".json":
            file.write_text(json.dumps(rows), encoding="utf-8")
        case _:
            file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return file


FORMS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "messages of one turn": ("sft", {"messages": said("Hi", "No.")}, ONE),
    "messages": ("sft", {"messages": WHOLE}, LONG),
    "messages beside their first words": ("sft", {"prompt": "Hi", "messages": WHOLE}, LONG),
    "prompt of one turn": ("dpo", ONE | {"prompt": said("Hi")}, ONE),
    "prompt of several turns": ("dpo", LONG, LONG),
    "answers of one message": (
        "dpo",
        LONG | {name: said(str(LONG[name]), first="assistant") for name in ("chosen", "rejected")},
        LONG,
    ),
    "completion": ("sft", {"prompt": BEFORE, "completion": said("No.", first="assistant")}, LONG),
    "whole conversations": ("dpo", {"chosen": WHOLE, "rejected": OTHER}, LONG),
    "a published row": (
        "dpo",
        {"prompt": "Hi", "chosen": said("Hi", "No."), "rejected": said("Hi", "Yes."), "messages": said("Hi", "No.")},
        ONE,
    ),
    "system": ("dpo", ONE | {"system": "Be kind."}, ONE | {"prompt": said("Be kind.", "Hi", first="system")}),
    "system that says nothing": ("dpo", ONE | {"system": " "}, ONE),
    "system in the prompt": (
        "dpo", ONE | {"prompt": "Be kind.\n\nHi", "system": "Be kind."}, ONE | {"prompt": "Be kind.\n\nHi"},
    ),
    "system that is the prompt": ("dpo", ONE | {"prompt": "Hi", "system": "Hi "}, ONE | {"prompt": "Hi"}),
    "system as a part of the prompt's first word": (
        "dpo", ONE | {"prompt": "Before?", "system": "Be"}, ONE | {"prompt": said("Be", "Before?", first="system")},
    ),
    "system as the prompt's first words": (
        "dpo", ONE | {"prompt": "Be brief? yes", "system": "Be"},
        ONE | {"prompt": said("Be", "Be brief? yes", first="system")},
    ),
    "system beside turns": ("dpo", LONG | {"prompt": BEFORE[1:], "system": "Be kind."}, LONG),
    "GRPO's prompt": ("grpo", {"prompt": BEFORE}, LONG),
    "GRPO's prompt of messages": ("grpo", {"messages": WHOLE}, LONG),
}  # fmt: skip
COLUMNS = {"sft": ("prompt", "chosen"), "dpo": ("prompt", "chosen", "rejected"), "grpo": ("prompt",)}


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".csv", ".parquet"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_read_from_every_format(form: str, ending: str, tmp_path: Path) -> None:
    stage, given, wanted = FORMS[form]
    assert load(write(tmp_path / f"rows{ending}", [given]), stage) == [{name: wanted[name] for name in COLUMNS[stage]}]


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".parquet", ".csv"])
def test_messages_that_an_export_has_made_a_text_are_messages(tmp_path: Path, ending: str) -> None:
    row = ONE | {"prompt": json.dumps(said("Hi"))}
    assert load(write(tmp_path / f"rows{ending}", [row]), "dpo") == [ONE | {"prompt": "Hi"}]
    for text in (str(said("Hi")), f"{json.dumps(said('Hi'))} <- parse this", '[{"role": 1}]'):
        other = write(tmp_path / f"other{ending}", [ONE | {"prompt": text}])
        if ending == ".csv":
            with pytest.raises(UserError, match=r"column 'prompt'"):
                load(other, "dpo")
        else:
            assert load(other, "dpo") == [ONE | {"prompt": text}]


IN_TURNS = "allowed: a system's turn first or none, then user and assistant in turns"
PARTS = [{"type": "text", "text": "What is this?"}, {"type": "image", "image": "a.png"}]


@pytest.mark.parametrize(
    ("stage", "row", "problem"),
    [
        (
            "sft",
            {"messages": [*said("Hi"), {"role": "Assistant", "content": "No."}]},
            ": column 'messages', message 2 has the role 'Assistant'; allowed: system, user, assistant; did you mean "
            "'assistant'?",
        ),
        (
            "sft",
            {"messages": [{"role": "tool", "content": "12"}]},
            ": column 'messages', message 1 has the role 'tool'; allowed: system, user, assistant",
        ),
        (
            "sft",
            {"messages": said("Hi", " \u200b")},
            ": column 'messages', message 2 (assistant) holds no word; allowed: a text that says something",
        ),
        (
            "sft",
            {"messages": [{"role": "user", "content": PARTS}, *said("No.", first="assistant")]},
            ": column 'messages', message 1 (user) holds a list of parts (image, text); allowed: a text",
        ),
        (
            "sft",
            {"messages": [*said("Hi"), {"role": "assistant", "content": None, "tool_calls": [{"name": "bake"}]}]},
            ": column 'messages', message 2 holds 'tool_calls', which no stage reads; allowed: role and content",
        ),
        (
            "sft",
            {"messages": [{"from": "human", "value": "Hi"}]},
            ": column 'messages', message 1 has no 'role' (keys found: from, value); allowed: role and content",
        ),
        (
            "sft",
            {"messages": [*said("Hi"), *said("Ho", "No.")]},
            f": column 'messages', message 2 is the user's, where the assistant speaks; {IN_TURNS}",
        ),
        (
            "sft",
            {"messages": [*said("Hi"), *BEFORE]},
            f": column 'messages', message 2 is the system's, where the assistant speaks; {IN_TURNS}",
        ),
        (
            "sft",
            {"messages": said("No.", first="assistant")},
            f": column 'messages', message 1 is the assistant's, where the system or user speaks; {IN_TURNS}",
        ),
        ("sft", {"messages": BEFORE}, ": column 'messages' ends with the user's turn; allowed: the assistant's last"),
        (
            "sft",
            {"messages": "[{'role': 'user'}]"},
            ": column 'messages' holds messages that are not readable as JSON (Expecting property name enclosed in "
            "double quotes: line 1 column 3 (char 2))",
        ),
        (
            "sft",
            {"messages": {"role": "user"}},
            ": column 'messages' holds an object (role); allowed: a list of objects with role and content",
        ),
        (
            "sft",
            {"prompt": ["Hi"], "chosen": "No."},
            ": column 'prompt' holds a list of 1; allowed: a text, or messages as a list of objects with role and "
            "content",
        ),
        ("dpo", LONG | {"prompt": WHOLE}, ": column 'prompt' ends with the assistant's turn; allowed: the user's last"),
        (
            "dpo",
            {"chosen": WHOLE, "rejected": [*said("Hi", "Hello!", "How?"), OTHER[-1]]},
            ": 'chosen' and 'rejected' do not share their prompt: they differ from message 1 on; allowed: the same "
            "turns before the last answer",
        ),
        (
            "dpo",
            {"prompt": "And then?", "chosen": WHOLE, "rejected": OTHER},
            ": column 'prompt' is not a user's turn of 'chosen'; take it out, or write what is asked",
        ),
        (
            "dpo",
            LONG | {"system": "Be rude."},
            ": column 'system' and the system's turn in the prompt differ; keep one",
        ),
        ("dpo", ONE | {"system": ["Be kind."]}, ": column 'system' holds a list of 1; allowed: a text"),
        (
            "grpo",
            {"prompt": said("Hi", "No.")},
            ": column 'prompt' ends with the assistant's turn; allowed: the user's last",
        ),
    ],
)  # fmt: skip
def test_a_row_that_is_not_a_conversation_takes_one_line(
    stage: str, row: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as caught:
        load(write(tmp_path / "rows.jsonl", [row, row]), stage)
    [line] = caught.value.problems
    assert line == f"data.safety: {tmp_path}/rows.jsonl:1{problem} (and 1 more row: 2)"


def test_a_cell_of_a_table_that_looks_like_messages_is_not_taken_for_words(tmp_path: Path) -> None:
    row = ONE | {"prompt": str(said("Hi"))}
    with pytest.raises(
        UserError, match=r"rows\.csv: row 1: column 'prompt' holds messages that are not readable as JSON"
    ):
        load(write(tmp_path / "rows.csv", [row]), "dpo")


def test_each_users_turn_is_compared_for_leakage(tmp_path: Path) -> None:
    data, benchmarks = tmp_path / "data", tmp_path / "benchmarks"
    for folder in (data, benchmarks):
        folder.mkdir()
    write(
        data / "rows.jsonl", [{"messages": said("Hi", "Ho")}, {"messages": WHOLE}, {"prompt": BEFORE, "chosen": "No."}]
    )
    write(benchmarks / "asked.jsonl", [{"prompt": "Be kind."}, {"prompt": "how do i bake"}])
    assert main(["check", str(data), "--against", str(benchmarks)]) == EXIT_DONE
    report = read_json(data / "leakage.json")
    assert [(found["left"], found["right"], found["exact"]) for found in report["pairs"][0]["rows"]] == [
        (2, 2, True), (3, 2, True),
    ]  # fmt: skip
    assert [facts["rows"] for facts in report["files"].values()] == [3, 2]


ROLES = {"human": "user", "gpt": "assistant", "system": "system"}


def test_published_conversations_are_read_whole(tmp_path: Path) -> None:
    file = SHARED / "preference" / "dpo_en_demo_300.json"
    if not file.exists():
        pytest.skip("no published rows")

    def message(one: dict[str, str]) -> dict[str, str]:
        return {"role": ROLES[one["from"]], "content": one["value"]}

    published = json.loads(file.read_text(encoding="utf-8"))
    rows = [
        {
            "prompt": [message(one) for one in row["conversations"]],
            "chosen": [message(row["chosen"])],
            "rejected": [message(row["rejected"])],
        }
        for row in published
    ]
    loaded = load(write(tmp_path / "rows.parquet", rows), "dpo")
    assert [row["chosen"] for row in loaded] == [row["chosen"]["value"] for row in published]
    several = [row["prompt"] for row in loaded if isinstance(row["prompt"], list)]
    assert len(several) == sum(len(row["conversations"]) > 1 for row in published) == 186
    assert sum(prompt[0]["role"] == "system" for prompt in several) == 80


def test_published_pairs_of_whole_conversations_share_their_prompts(tmp_path: Path) -> None:
    file = SHARED / "hh_rlhf" / "harmless_base_test.jsonl.gz"
    if not file.exists():
        pytest.skip("no published rows")

    def messages(text: str) -> list[dict[str, str]]:
        parts = re.split(r"\n\n(Human|Assistant): ?", text)[1:]
        roles = {"Human": "user", "Assistant": "assistant"}
        return [
            {"role": roles[who], "content": words.strip()} for who, words in zip(parts[::2], parts[1::2], strict=True)
        ]

    def in_turns(chosen: list[dict[str, str]], rejected: list[dict[str, str]]) -> bool:
        roles = ["user", "assistant"] * (len(chosen) // 2)
        whole = [one["role"] for one in chosen] == [one["role"] for one in rejected] == roles
        return whole and chosen[:-1] == rejected[:-1] and all(one["content"] for one in (*chosen, *rejected))

    with gzip.open(file, "rt", encoding="utf-8") as opened:
        rows = [{name: messages(text) for name, text in json.loads(line).items()} for line in opened]
    fit = [row for row in rows if row["chosen"] != row["rejected"] and in_turns(row["chosen"], row["rejected"])]
    loaded = load(write(tmp_path / "rows.jsonl", fit[:500]), "dpo")
    assert [as_text(row["prompt"]) for row in loaded] == [as_text(row["chosen"][:-1]) for row in fit[:500]]
    with pytest.raises(UserError) as refused:
        load(write(tmp_path / "rows.jsonl", rows), "dpo")
    assert any("is the assistant's, where the user speaks" in line for line in refused.value.problems)
