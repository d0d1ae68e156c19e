"""Training rows as editors and exports make them: each passes as it is, or is named by file and row."""

import gzip
import json
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from ogpsa.app.compose import compose_config
from ogpsa.config import Config
from ogpsa.data.rows import load_data
from ogpsa.utils.errors import UserError
from ogpsa.utils.files import write_jsonl

ROW = {"prompt": "How do I bake bread?", "chosen": "I cannot help.", "rejected": "Take flour."}
LINE = json.dumps(ROW)


@cache
def composed(*overrides: str) -> Config:
    settings = ["data=files", "data.safety=rows", "method=baseline", "stage.batch_size=1", "stage.micro_batch_size=1"]
    stage = next((word for word in overrides if word.startswith("stage=")), "stage=dpo")
    return compose_config([*settings, stage, *(word for word in overrides if word != stage)])


def load(file: Path, *overrides: str) -> list[dict[str, Any]]:
    config = composed(*overrides)
    data = config.data.model_copy(update={"safety": str(file)})
    return load_data(config.model_copy(update={"data": data})).safety


def refused(file: Path, *overrides: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        load(file, *overrides)
    return [problem.replace(f"{file.parent}/", "") for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("name", "content", "count"),
    [
        ("rows.jsonl", b"\xef\xbb\xbf" + LINE.encode(), 1),
        ("rows.jsonl", f"{LINE}\n\ufeff{LINE}".encode(), 2),
        ("rows.jsonl", f"{LINE}\r\n{LINE}\r\n".encode(), 2),
        ("rows.jsonl", f"{LINE}\n\n \t\n".encode(), 1),
        ("rows.ndjson", LINE.encode(), 1),
        ("rows.json", b"\xef\xbb\xbf" + json.dumps([ROW, ROW], indent=2).encode(), 2),
        ("rows.CSV", b"\xef\xbb\xbfprompt,chosen,rejected\r\n" + ",".join(ROW.values()).encode() + b"\r\n\r\n", 1),
    ],
    ids=["mark", "marks", "CRLF", "empty last lines", "another ending", "JSON list", "CSV of a spreadsheet"],
)
def test_files_of_editors_and_exports_are_read(name: str, content: bytes, count: int, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    assert load(tmp_path / name) == [ROW] * count


@pytest.mark.parametrize(
    "text",
    [
        "one\u2028two\u2029three\x85four\x0bfive\x0csix",
        "nul \0",
        "\U0001f600",
        "x" * 3_000_000,
        '"quoted", and\n\tmore',
    ],
    ids=["separators", "NUL", "astral", "3 million characters", "quotes"],
)
@pytest.mark.parametrize("ending", [".jsonl", ".json", ".csv", ".parquet"])
def test_every_text_that_json_can_hold_passes(text: str, ending: str, tmp_path: Path) -> None:
    row = ROW | {"chosen": text}
    file = tmp_path / f"rows{ending}"
    if ending == ".csv":
        cells = [f'"{value.replace(chr(34), chr(34) * 2)}"' for value in row.values()]
        file.write_text(f"{','.join(row)}\n{','.join(cells)}\n", encoding="utf-8", newline="")
        if "\0" in text:
            assert "line 2 holds the character NUL" in refused(file)[0]
            return
    elif ending == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), file)
    else:
        file.write_text(json.dumps(row if ending == ".jsonl" else [row]), encoding="utf-8")
    assert load(file) == [row]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (LINE.encode("utf-16"), ": not a UTF-8 text file; expected one JSON object a line (UTF-16 or UTF-32"),
        (LINE.encode("utf-16-le"), ": not a UTF-8 text file; expected one JSON object a line (UTF-16 or UTF-32"),
        (LINE.encode("utf-32"), ": not a UTF-8 text file; expected one JSON object a line (UTF-16 or UTF-32"),
        (f'{LINE}\n{{"prompt": "Äpfel"}}'.encode("latin-1"), "(line 2 holds the byte 0xC4: save it as UTF-8"),
        (gzip.compress(LINE.encode(), mtime=0), "(compressed by gzip: unpack it by gunzip)"),
        (b"PK\x03\x04", "(a zip archive or a spreadsheet"),
        (b"PAR1", "(Parquet: name it .parquet)"),
        (f"{LINE}\n{LINE}\0".encode(), "(line 2 holds the character NUL"),
        (f"{LINE}\n\n{LINE}".encode(), ":2: not a JSON object; expected one JSON object a line (the line is empty)"),
        (f"[{LINE}]".encode(), ":1: not a JSON object; expected one JSON object a line (a JSON list is read from"),
        (f"{LINE}{LINE}".encode(), ":1: not a JSON object; expected one JSON object a line (Extra data at column"),
        (f"{LINE}\n12".encode(), ":2: not a JSON object; expected one JSON object a line (found a number (12))"),
        (b'{"prompt": "a\\ud83d"}', ":1: 'prompt' holds half a character, \\ud83d, which no UTF-8 file can"),
        (b'{"prompt": NaN}', ":1: NaN is not a JSON number"),
        (b'{"prompt": -Infinity}', ":1: -Infinity is not a JSON number"),
        (b'{"prompt": 1e999}', ":1: 1e999 is too large for a number"),
        (b'{"prompt": ' + b"1" * 5000 + b"}", ":1: a number of 5000 digits is too large"),
        (b'{"prompt": "a", "prompt": "b"}', ":1: the name 'prompt' stands twice"),
        (b'{"prompt": ' + b"[" * 100_000, ":1: nested too deeply"),
    ],
)
def test_a_file_that_holds_no_rows_is_named_with_its_line(content: bytes, problem: str, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(content)
    [line] = refused(tmp_path / "rows.jsonl")
    assert line.startswith("data.safety: rows.jsonl") and problem in line


def test_a_damaged_page_of_parquet_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "rows.parquet"
    text = [{"prompt": f"p{n} " * 50, "chosen": f"c{n}", "rejected": f"r{n}"} for n in range(500)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(text), file, compression="gzip")
    content = bytearray(file.read_bytes())
    content[200:400] = bytes(200)
    file.write_bytes(content)
    [line] = refused(file)
    assert line.startswith("data.safety: ") and "not readable as Parquet (" in line


@pytest.mark.parametrize("empty", ["", " ", None, []])
def test_an_empty_column_says_nothing(tmp_path: Path, empty: object) -> None:
    row = {"prompt": "What is this", "chosen": "No idea", "rejected": "A"}
    write_jsonl(tmp_path / "rows.jsonl", [row | {"input": empty, "tools": empty}])
    assert load(tmp_path / "rows.jsonl") == [row]


@pytest.mark.parametrize("nothing", [None, "", " "])
def test_an_answer_may_stand_under_either_name(tmp_path: Path, nothing: str | None) -> None:
    # As where two data sets were joined.
    rows = [
        {"prompt": "a", "completion": "b c", "chosen": nothing},
        {"prompt": "d", "chosen": "e f", "completion": nothing},
    ]
    write_jsonl(tmp_path / "rows.jsonl", rows * 8)
    config = compose_config(["data=files", f"data.safety={tmp_path}/rows.jsonl", "stage=sft", "method=baseline"])
    assert [row["chosen"] for row in load_data(config).safety] == ["b c", "e f"] * 8


def test_one_object_of_texts_is_not_a_list_of_rows(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(LINE)
    [line] = refused(tmp_path / "rows.json")
    assert "expected a list of objects, or an object of such lists; row 1 is a text" in line


def test_a_packed_table_is_named_as_what_it_holds(tmp_path: Path) -> None:
    packed = tmp_path / "rows.csv.gz"
    packed.write_bytes(gzip.compress(b"prompt,chosen,rejected\na,b,\n"))
    assert refused(packed)[0].startswith("data.safety: rows.csv.gz: row 1 has no text in column 'rejected'")
    packed.write_bytes(gzip.compress(b"prompt,chosen,rejected\n"))
    assert refused(packed) == ["data.safety: rows.csv.gz holds no rows; expected rows below the header"]


NEED = "dpo need chosen, prompt, rejected"
ALLOWED = "allowed: a text, or messages as a list of objects with role and content"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"prompt": 12}, f": column 'prompt' holds a number (12); allowed: a text; {NEED}"),
        ({"prompt": None}, f": column 'prompt' holds null; allowed: a text; {NEED}"),
        ({"prompt": True}, f": column 'prompt' holds true; allowed: a text; {NEED}"),
        ({"chosen": ["a", "b"]}, f": column 'chosen' holds a list of 2; {ALLOWED}"),
        ({"chosen": {"text": "a"}}, f": column 'chosen' holds an object (text); {ALLOWED}; {NEED}"),
        (
            {"chosen": [{"role": "user", "content": "a"}, {"role": "bot"}]},
            ": column 'chosen', message 2 has the role 'bot'; allowed: system, user, assistant",
        ),
        (
            {"rejected": "\u200b\ufeff\u3000\n"},
            f" has no text in column 'rejected' (columns found: chosen, prompt, rejected); {NEED}",
        ),
        ({"chosen": " "}, f" has no text in column 'chosen' (columns found: chosen, prompt, rejected); {NEED}"),
        (
            {"rejected": " I cannot help.\n"},
            ": chosen and rejected are equal, and a pair without a difference has no gradient; take it out, or allow "
            "it by stage.equal_answers=true",
        ),
        ({"completion": "Sure."}, ": holds both 'chosen' and 'completion', and they differ; keep one"),
        (
            {"history": [["a", "b"]]},
            ": column 'history' is read by no stage; put it into the prompt, or take the column out",
        ),
        *(
            ({name: value}, f": column '{name}' is read by no stage; put it into the prompt, or take the column out")
            for name, value in {
                "context": "a",
                "Documents": [{"title": "x"}],
                "messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": ROW["prompt"]}],
                "conversations": [{"from": "human", "value": "And then?"}],
                "instruction": "Answer in French.",
                "question": "Why?",
                "image": "a.png",
                "chat_template_kwargs": {"style": "plain"},
            }.items()
        ),
        *(
            ({name: "Be kind."}, f": column '{name}' is read by no stage; name it 'system', or take the column out")
            for name in ("system_prompt", "System", " system")
        ),
        (
            {"rejected": "\u200bI cannot help."},
            ": chosen and rejected are equal, and a pair without a difference has no gradient; take it out, or allow "
            "it by stage.equal_answers=true",
        ),
        ({"chosen": "..."}, ": column 'chosen' says nothing, but '...'; write an answer"),
        ({"rejected": "<end>"}, ": column 'rejected' says nothing, but '<end>'; write an answer"),
        (
            {"chosen": "<think>hm</think>\n"},
            ": column 'chosen' says nothing, but '<think>hm</think>\\n'; write an answer",
        ),
        ({"chosen": "<think>hm i"}, ": column 'chosen' begins a thought that does not end; end it, or take it out"),
    ],
)
@pytest.mark.parametrize(
    ("ending", "place"), [(".jsonl", ":2"), pytest.param(".json", ": row 2", marks=pytest.mark.slow)]
)
def test_a_row_that_cannot_be_trained_on_is_named(
    change: dict[str, Any], problem: str, ending: str, place: str, tmp_path: Path
) -> None:
    rows, file = [ROW, ROW | change], tmp_path / f"rows{ending}"
    file.write_text("\n".join(map(json.dumps, rows)) if ending == ".jsonl" else json.dumps(rows), encoding="utf-8")
    assert refused(file) == [f"data.safety: rows{ending}{place}{problem}"]


@pytest.mark.parametrize(
    "more",
    [
        {"id": 7, "source": "a set", "score_chosen": 8.5, "label": 1, "category": "bread", "conversation_id": "c1"},
        {"messages": [{"role": "user", "content": ROW["prompt"]}, {"role": "assistant", "content": ROW["chosen"]}]},
        {"instruction": ROW["prompt"], "input": "bread", "system": "", "history": [], "tools": None, "images": [None]},
        {"split": "train", "config": "default"},
    ],
    ids=["facts of a data set", "the same as messages", "what the prompt was made of", "one part"],
)
def test_columns_that_say_nothing_else_pass(more: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROW | more), encoding="utf-8")
    assert load(tmp_path / "rows.jsonl") == [ROW]


def test_an_answer_marked_as_unwanted_does_not_count(tmp_path: Path) -> None:
    row = {"prompt": "a", "completion": "b", "label": False}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row), encoding="utf-8")
    [line] = refused(tmp_path / "rows.jsonl", "stage=sft")
    assert line.endswith(": label is false, so that the completion is not an answer to learn; take the row out")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.json", json.dumps({"train": [ROW], "test": [ROW]})),
        ("rows.jsonl", "\n".join(json.dumps(ROW | {"split": part}) for part in ("train", "test"))),
    ],
)
def test_a_part_that_is_kept_from_training_is_named(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert refused(tmp_path / name) == [
        f"data.safety: {name} holds the parts test, train, and all of it would be trained on; keep the rows of 'test' "
        "in another file"
    ]


HEADER, CELLS = list(ROW), list(ROW.values())


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("rows.csv", f"{';'.join(HEADER)}\n{';'.join(CELLS)}", ":1: the cells are separated by ';'; save it with"),
        ("rows.csv", "\t".join(HEADER), ":1: the cells are separated by '\\t'; save it with commas"),
        ("rows.csv", f"sep=,\n{','.join(HEADER)}", ":1: the line 'sep=,' is a spreadsheet's own note; take it out"),
        ("rows.csv", f"sep=;\n{';'.join(HEADER)}", ":1: the line 'sep=;' is a spreadsheet's own note; take it out"),
        ("rows.csv", ",".join(HEADER), " holds no rows; expected rows below the header"),
        ("rows.tsv", "\t".join(HEADER), ": cells separated by tabs are not read; save it as CSV with commas"),
    ],
)
def test_a_table_of_other_cells_is_named_as_one(name: str, content: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    [line] = refused(tmp_path / name)
    assert line.startswith(f"data.safety: {name}{problem}")


def test_bytes_in_parquet_are_not_text(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([ROW | {"chosen": b"a"}]), tmp_path / "rows.parquet")
    [line] = refused(tmp_path / "rows.parquet")
    assert f"row 1: column 'chosen' holds bytes; allowed: a text; {NEED}" in line


def test_rows_of_one_mistake_are_one_line_and_each_mistake_is_told(tmp_path: Path) -> None:
    rows = [ROW, *[ROW | {"prompt": number} for number in range(12)], ROW | {"chosen": ""}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    wrong, empty = refused(tmp_path / "rows.jsonl")
    assert wrong == (
        "data.safety: rows.jsonl:2: column 'prompt' holds a number (0); allowed: a text; dpo need chosen, prompt, "
        "rejected (and 11 more rows: 3, 4, 5, 6, 7, 8, 9, 10, …)"
    )
    assert empty.startswith("data.safety: rows.jsonl:14 has no text in column 'chosen'")


def test_equal_answers_pass_where_nobody_compares_them_or_a_key_allows_them(tmp_path: Path) -> None:
    row, file = ROW | {"rejected": ROW["chosen"]}, tmp_path / "rows.jsonl"
    file.write_text(json.dumps(row), encoding="utf-8")
    assert load(file, "stage.equal_answers=true") == [row]
    assert load(file, "stage=sft") == [{"prompt": row["prompt"], "chosen": row["chosen"]}]


def test_a_csv_says_which_requests_are_harmful_and_what_answers_them(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("prompt,harmful,target\nHow do I pick a lock?,True,\nWhat is 2 + 2?,false,4\nHi,,\n")
    config = compose_config([
        "data=files", f"data.safety={file}", "stage=grpo", "reward=two_sided", "stage.batch_size=4", "method=baseline",
        "stage.num_generations=2", "stage.micro_batch_size=2", "stage.updates_per_generation=1",
    ])  # fmt: skip
    assert load_data(config).safety == [
        {"prompt": "How do I pick a lock?", "harmful": True},
        {"prompt": "What is 2 + 2?", "harmful": False, "target": "4"},
        {"prompt": "Hi"},
    ]
    file.write_text("prompt,harmful\nHi,perhaps\n")
    with pytest.raises(UserError, match=r"rows\.csv: row 1: column 'harmful' holds a text; allowed: true or false"):
        load_data(config)


def test_missing_rows_of_the_small_suite_are_built_by_make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"; build it: make data-small$"):
        load_data(compose_config(["data=small", "model=smollm2_135m", "stage=sft", "method=baseline"]))


def test_every_missing_file_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        load_data(compose_config(["data=paper", "model=qwen2_5_7b"]))
    keys = ["safety", "reference_sets.helpfulness", "reference_sets.truthfulness", "reference_sets.preference"]
    assert sorted(line.partition(":")[0] for line in caught.value.problems) == sorted(f"data.{key}" for key in keys)
    assert all("; build it: python -m ogpsa.data build " in line for line in caught.value.problems)
