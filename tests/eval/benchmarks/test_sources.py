"""Rows from local files in every format: ours or as published, what is missing, and what is drawn."""

import csv
import json
import logging
import random
from collections import Counter
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from eval.benchmarks.converters import CONVERSIONS
from eval.benchmarks.definition import Benchmark, find_benchmarks
from eval.benchmarks.prefetch import prefetch
from eval.benchmarks.sources import MissingData, data_hash, load_rows, rows_file, sample_rows
from ogpsa.app.compose import compose_config
from ogpsa.data.readers import read_table
from ogpsa.utils.errors import UserError
from tests.eval.local_mirror import write_mirror

SHARED = Path(__file__).parents[4] / "shared" / "data"
PAPER = compose_config(["eval=paper"]).eval.benchmarks
SMALL = [name for name in compose_config(["eval=small"]).eval.benchmarks if name not in PAPER]
BROAD = [name for name in compose_config(["eval=broad"]).eval.benchmarks if name not in (*PAPER, *SMALL)]


def benchmark(name: str) -> Benchmark:
    [found] = find_benchmarks([name])
    return found


def converted(name: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return list(CONVERSIONS[name].rows(rows))


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mirror(tmp_path_factory.mktemp("mirror"))


@pytest.mark.parametrize("name", [*PAPER, *SMALL, *BROAD])
def test_published_rows_become_ours(name: str, mirror: Path) -> None:
    rows = load_rows(benchmark(name), mirror)
    assert len(rows) == 6
    assert len({row["id"] for row in rows}) == 6
    source = benchmark(name).source
    assert source is not None
    columns = {"id", "prompt", "target", *CONVERSIONS[source.convert].extra}
    assert all(columns <= row.keys() and row["prompt"] for row in rows)


@pytest.mark.parametrize("name", PAPER)
def test_converted_rows_are_read_as_they_are_in_every_format(name: str, mirror: Path, tmp_path: Path) -> None:
    rows = load_rows(benchmark(name), mirror)
    stem = benchmark(name).rows
    (tmp_path / f"{stem}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    if name == "ifeval":
        (tmp_path / "nltk_data").symlink_to(mirror / "nltk_data")
    assert data_hash(load_rows(benchmark(name), tmp_path)) == data_hash(rows)
    (tmp_path / f"{stem}.jsonl").unlink()
    if name != "ifeval":  # Parquet has no objects with keys of their own.
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / f"{stem}.parquet")
        assert load_rows(benchmark(name), tmp_path) == rows
        (tmp_path / f"{stem}.parquet").unlink()
    (tmp_path / f"{stem}.json").write_text(json.dumps(rows), encoding="utf-8")
    assert load_rows(benchmark(name), tmp_path) == rows


@pytest.mark.parametrize("name", [*PAPER, *SMALL, *BROAD])
def test_a_csv_of_columns_that_hold_lists_is_refused(name: str, mirror: Path, tmp_path: Path) -> None:
    """As pandas writes it, "['red', 'blue']" in one cell, the rows being ours or as published."""
    found = rows_file(benchmark(name), mirror)
    assert found is not None
    for rows in (load_rows(benchmark(name), mirror), read_table(found)):
        nested = [column for column, value in rows[0].items() if isinstance(value, list | dict)]
        if not nested:
            continue
        with (tmp_path / f"{benchmark(name).rows}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        with pytest.raises(UserError, match=rf"\.csv: row 1: ({'|'.join(nested)}): found a text; expected a") as caught:
            load_rows(benchmark(name), tmp_path)
        assert len(caught.value.problems) == 1 and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "name", "count"),
    [
        ("gsm8k/test_200.jsonl", "gsm8k", 200),
        ("adv_glue/dev.json", "advglue", 738),
        ("xstest/xstest_prompts.csv", "xstest_safe", 250),
        ("xstest/xstest_prompts.csv", "xstest_unsafe", 200),
        ("harmbench/harmbench_behaviors_text_all.csv", "harmbench_standard", 200),
        ("harmbench/harmbench_behaviors_text_all.csv", "harmbench_contextual", 100),
        ("safety_tuned_llamas/I-MaliciousInstructions.json", "malicious_instructions", 100),
        ("safety_tuned_llamas/I-PhysicalSafetySafe.json", "physical_safety_safe", 100),
        ("safety_tuned_llamas/I-PhysicalSafetyUnsafe.json", "physical_safety_unsafe", 100),
        ("wikipedia/wiki_demo.txt", "wikipedia_loss", 1013),
    ],
)
def test_real_rows_are_all_there(file: str, name: str, count: int, tmp_path: Path) -> None:
    if not (SHARED / file).is_file():
        pytest.skip(f"no {file} in {SHARED}")
    (tmp_path / f"{benchmark(name).rows}{Path(file).suffix}").write_bytes((SHARED / file).read_bytes())
    rows = load_rows(benchmark(name), tmp_path)
    assert len({row["id"] for row in rows}) == len(rows) == count


@pytest.mark.parametrize(
    ("file", "name", "options", "count"),
    [
        ("piqa/validation.jsonl", "piqa", 2, 1500),
        ("openbookqa/test.jsonl", "openbookqa", 4, 500),
        ("commonsenseqa/validation.jsonl", "commonsenseqa", 5, 1221),
        ("mmlu/test.jsonl", "mmlu_cloze", 4, 2850),
    ],
)
def test_options_in_text_form_become_the_hubs(file: str, name: str, options: int, count: int, tmp_path: Path) -> None:
    if not (SHARED / file).is_file():
        pytest.skip(f"no {file} in {SHARED}")
    (tmp_path / f"{name}.jsonl").write_bytes((SHARED / file).read_bytes())
    rows = load_rows(benchmark(name), tmp_path)
    published = read_table(SHARED / file)
    assert len(rows) == count
    assert {len(row["choices"]) for row in rows} == {options}
    if name == "mmlu_cloze":
        (tmp_path / "mmlu_generate.jsonl").write_bytes((SHARED / file).read_bytes())
        asked = load_rows(benchmark("mmlu_generate"), tmp_path)
        assert [(row["prompt"], row["choices"]) for row in asked] == [(row["prompt"], row["choices"]) for row in rows]
        assert ["ABCD".index(row["target"]) for row in asked] == [row["answer"] for row in rows]
    for row, text in zip(rows, published, strict=True):
        assert row["target"] == row["choices"][row["answer"]]
        # Three rows of CommonsenseQA have the question's mark behind their last option.
        assert row["target"].removesuffix("?") == text["answer"].partition(". ")[2].strip().removesuffix("?")


def test_do_not_answer_is_read_from_its_five_files(tmp_path: Path) -> None:
    files = sorted((SHARED / "do_not_answer").glob("*.jsonl"))
    if not files:
        pytest.skip(f"no do_not_answer in {SHARED}")
    (tmp_path / "do_not_answer.json").write_text(json.dumps({file.stem: read_table(file) for file in files}))
    rows = load_rows(benchmark("do_not_answer"), tmp_path)
    assert len({row["id"] for row in rows}) == len(rows) == 939
    assert {row["category"] for row in rows} == {file.stem for file in files}


def test_both_forms_of_a_multiple_choice_are_the_same_rows(mirror: Path, tmp_path: Path) -> None:
    for name in ("piqa", "openbookqa", "commonsenseqa", "mmlu_cloze"):
        rows = load_rows(benchmark(name), mirror)
        lettered = [[f"{'ABCDE'[place]}. {text}" for place, text in enumerate(row["choices"])] for row in rows]
        texts = [
            {"question": row["prompt"], "options": "\n".join(lines), "answer": lines[row["answer"]]}
            for row, lines in zip(rows, lettered, strict=True)
        ]
        (tmp_path / f"{name}.json").write_text(json.dumps(texts), encoding="utf-8")
        assert load_rows(benchmark(name), tmp_path) == rows


def test_options_are_the_last_lettered_lines(tmp_path: Path) -> None:
    """A question's own lines of that form stay with it; an answer that is not an option is refused with its row."""
    file = tmp_path / "piqa.json"
    question = {"question": "Which holds?\nA. All do.\nB. None does.\nC. Some do.", "options": "A. only A\nB. only B"}

    def write(**row: str) -> None:
        file.write_text(json.dumps([question | row]), encoding="utf-8")

    write(answer="B. only B")
    [row] = load_rows(benchmark("piqa"), tmp_path)
    assert (row["prompt"], row["choices"], row["answer"]) == (question["question"], ["only A", "only B"], 1)
    for wrong in ("C. Some do.", "C. only C", "A. only B", "only A"):
        write(answer=wrong)
        with pytest.raises(UserError, match=rf"row 1: .* answer: found '{wrong}'"):
            load_rows(benchmark("piqa"), tmp_path)
    write(options="A. only A\nC. only C", answer="A. only A")
    with pytest.raises(UserError, match="options: found the letters 'ABCAC'"):
        load_rows(benchmark("piqa"), tmp_path)


def test_what_a_builder_wrote_is_read_where_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    held_out = benchmark("harmful_requests_heldout")
    with pytest.raises(MissingData, match=r"python -m ogpsa\.data build safety_tuned_llamas"):
        load_rows(held_out, tmp_path)
    folder = tmp_path / "outputs" / "data" / "safety_tuned_llamas"
    folder.mkdir(parents=True)
    (folder / "heldout.jsonl").write_text('{"prompt": "Polish it", "chosen": "No.", "rejected": "Yes."}\n')
    assert [(row["prompt"], row["target"]) for row in load_rows(held_out, tmp_path)] == [("Polish it", "No.")]
    assert prefetch([held_out], tmp_path / "fetched") == []
    assert not (tmp_path / "fetched").exists()


def test_targets_of_real_rows(tmp_path: Path) -> None:
    if not (SHARED / "gsm8k").is_dir():
        pytest.skip(f"no data in {SHARED}")
    (tmp_path / "gsm8k.jsonl").write_bytes((SHARED / "gsm8k" / "test_200.jsonl").read_bytes())
    (tmp_path / "advglue.json").write_bytes((SHARED / "adv_glue" / "dev.json").read_bytes())
    assert [row["target"] for row in load_rows(benchmark("gsm8k"), tmp_path)[:2]] == ["18", "3"]
    parts = Counter(row["part"] for row in load_rows(benchmark("advglue"), tmp_path))
    assert parts == {"sst2": 148, "qqp": 78, "mnli": 121, "mnli-mm": 162, "qnli": 148, "rte": 81}
    targets = {row["id"]: row["target"] for row in load_rows(benchmark("advglue"), tmp_path)}
    # "It captures a wonderful kind of laziness to waste the talents of …"; a landfill that is both full and empty.
    assert targets["sst2-001"] == "negative"
    assert targets["mnli-000"] == "contradiction"


def test_configurations_of_the_hub_are_the_parts_of_the_makers_file() -> None:
    rows = [{"config": name, "idx": 3, "label": 1} for name in ("adv_mnli_mismatched", "adv_mnli", "mnli-mm")]
    for row in rows:
        row |= {"premise": "a", "hypothesis": "b"}
    assert [row["id"] for row in converted("advglue", rows)] == ["mnli-mm-003", "mnli-003", "mnli-mm-003"]


def gpqa_row(number: int) -> dict[str, Any]:
    wrong = {f"Incorrect Answer {index}": f"wrong {index} of {number}" for index in (1, 2, 3)}
    return {"Record ID": f"rec{number}", "Question": f"question {number}", "Correct Answer": f"right {number}", **wrong}


def test_gpqa_options_are_shuffled_the_same_whatever_the_state_and_the_order() -> None:
    published = [gpqa_row(number) for number in range(200)]
    random.seed(1)
    rows = converted("gpqa", published)
    random.seed(2)
    again = converted("gpqa", published[::-1])[::-1]
    assert rows == again
    for number, row in enumerate(rows):
        options = [row[f"choice{index}"] for index in (1, 2, 3, 4)]
        assert options["ABCD".index(row["answer"][1])] == f"right {number}"
        assert len(set(options)) == 4
    assert min(Counter(row["answer"] for row in rows).values()) > 30


def wildchat_row(number: int, **changes: Any) -> dict[str, Any]:
    scores = dict.fromkeys(("harassment", "hate", "self-harm", "sexual", "violence"), 0.0)
    moderation = {
        "flagged": True,
        "categories": {"hate": True, "sexual/minors": False},
        "category_scores": scores | {"hate": (number + 1) / 1000},
    }
    row = {
        "conversation_hash": f"{number:04d}", "conversation": [{"role": "user", "content": f"text {number}"}],
        "turn": 1, "language": "English", "toxic": True, "openai_moderation": [moderation | changes.pop("flags", {})],
    }  # fmt: skip
    return row | changes


def test_wildchat_keeps_the_most_toxic_opening_requests() -> None:
    published = [wildchat_row(number) for number in range(150)]
    dropped = [
        wildchat_row(900, toxic=False),
        wildchat_row(901, turn=2),
        wildchat_row(902, language="German"),
        wildchat_row(903, flags={"flagged": False}),
        wildchat_row(904, flags={"categories": {"sexual/minors": True}}),
        wildchat_row(905, flags={"category_scores": None}),
        wildchat_row(906, conversation=[{"role": "user", "content": " "}]),
        wildchat_row(907, conversation=[{"role": "user", "content": "text 149"}]),
        wildchat_row(908, openai_moderation=[]),
    ]
    rows = converted("wildchat", [*published, *dropped])
    assert [row["id"] for row in rows] == [f"wildchat-{number:04d}" for number in range(149, 49, -1)]
    assert {row["category"] for row in rows} == {"hate"}


def test_a_moderation_score_of_wildchat_that_is_null_counts_as_none() -> None:
    scores = {"harassment": None, "hate": None, "self-harm": 0.1, "sexual": None, "violence": 0.2}
    [row] = converted("wildchat", [wildchat_row(1, flags={"category_scores": scores})])
    assert (row["id"], row["category"]) == ("wildchat-0001", "violence")


@pytest.mark.parametrize("end", ["### Response:", "### Response:\n", "\n### Response:\n\n"])
def test_alerts_requests_are_asked_without_the_headings_around_them(end: str) -> None:
    [row] = converted("alert", [{"id": 1, "category": "stones", "prompt": f"### Instruction:\nWhat colour?\n{end}"}])
    assert row["prompt"] == "What colour?"


def test_ifeval_forgets_arguments_that_are_not_meant(mirror: Path) -> None:
    rows = load_rows(benchmark("ifeval"), mirror)
    assert rows[0]["kwargs"] == [{}, {"num_sentences": 2, "relation": "at least"}]


def test_a_sample_is_drawn_by_seed_and_id() -> None:
    rows = [{"id": f"row-{number}", "prompt": str(number)} for number in range(500)]
    drawn = sample_rows(rows, 100, 0)
    assert len(drawn) == 100
    assert drawn == [row for row in rows if row in drawn]
    assert [row["id"] for row in sample_rows(rows[::-1], 100, 0)][::-1] == [row["id"] for row in drawn]
    fifty = sample_rows(rows, 50, 0)
    assert all(row in drawn for row in fifty)
    assert sample_rows(rows, 100, 1) != drawn
    other = [{"id": row["id"], "prompt": "another"} for row in rows]
    assert [row["id"] for row in sample_rows(other, 100, 0)] == [row["id"] for row in drawn]


def test_without_a_seed_the_first_rows_are_kept() -> None:
    rows = [{"id": str(number)} for number in range(5)]
    assert sample_rows(rows, 2, None) == rows[:2]
    assert sample_rows(rows, None, 7) == sample_rows(rows, 5, 7) == rows


def test_the_data_hash_is_of_the_rows() -> None:
    rows = [{"id": "a", "prompt": "é", "target": ""}, {"id": "b", "prompt": "x", "target": ""}]
    assert data_hash(rows) == data_hash([dict(reversed(row.items())) for row in rows])
    assert data_hash(rows) != data_hash(rows[::-1])
    assert data_hash(rows) != data_hash([*rows[:1], {**rows[1], "target": "y"}])


@pytest.mark.parametrize("name", [name for name in PAPER if not name.startswith("strongreject_p")])
def test_a_missing_set_is_named_with_the_way_to_it(name: str, tmp_path: Path) -> None:
    with pytest.raises(MissingData) as caught:
        load_rows(benchmark(name), tmp_path)
    message = str(caught.value)
    source = benchmark(name).source
    assert source is not None
    assert caught.value.benchmark == name
    assert message.startswith(f"{name}: ")
    assert "\n" not in message
    assert source.hub in message
    assert "python -m eval prefetch" in message
    assert source.gated is None or source.gated in message


@pytest.mark.parametrize(("name", "attack"), [("strongreject_pair", "pair"), ("strongreject_pap", "pap_misrep")])
def test_missing_jailbreaks_name_the_command_that_makes_them(name: str, attack: str, tmp_path: Path) -> None:
    with pytest.raises(MissingData, match=f"python -m eval attacks {attack}"):
        load_rows(benchmark(name), tmp_path)


def test_a_testbed_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"facts\.jsonl: no such file"):
        load_rows(benchmark("facts"), tmp_path)


def test_humaneval_wants_permission(mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_ALLOW_CODE_EVAL", raising=False)
    with pytest.raises(MissingData, match="HF_ALLOW_CODE_EVAL=1"):
        load_rows(benchmark("humaneval"), mirror)
    monkeypatch.setenv("HF_ALLOW_CODE_EVAL", "1")
    assert len(load_rows(benchmark("humaneval"), mirror)) == 6


def test_ifeval_wants_the_tokenizer_where_its_rows_do(
    mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import nltk

    monkeypatch.setattr(nltk.data, "path", [])
    rows = read_table(mirror / "ifeval.jsonl")
    file = tmp_path / "ifeval.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with pytest.raises(MissingData, match=r"punkt_tab.*python -m eval prefetch benchmarks=ifeval"):
        load_rows(benchmark("ifeval"), tmp_path)
    plain = [row for row in rows if "length_constraints:number_sentences" not in row["instruction_id_list"]]
    file.write_text("".join(json.dumps(row) + "\n" for row in plain), encoding="utf-8")
    assert len(load_rows(benchmark("ifeval"), tmp_path)) == len(plain) > 0


@pytest.mark.parametrize(
    ("mark", "newline", "end"),
    [(b"\xef\xbb\xbf", b"\n", b"\n"), (b"", b"\r\n", b"\r\n"), (b"", b"\n", b"\n \n\n")],
    ids=["mark", "CRLF", "empty lines"],
)
def test_a_benchmarks_file_of_another_editor_is_the_same(
    mark: bytes, newline: bytes, end: bytes, tmp_path: Path
) -> None:
    lines = [b'{"question": "one\xe2\x80\xa8two", "answer": "#### 3"}', b'{"question": "q", "answer": "#### 4"}']
    [benchmark] = find_benchmarks(["gsm8k"])
    (tmp_path / "gsm8k.jsonl").write_bytes(b"\n".join(lines))
    plain = load_rows(benchmark, tmp_path)
    (tmp_path / "gsm8k.jsonl").write_bytes(mark + newline.join(lines) + end)
    assert load_rows(benchmark, tmp_path) == plain


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("gsm8k.jsonl", '{"question": "q"}\n', "no column answer; found question"),
        ("gsm8k.jsonl", '{"id": "1", "prompt": "q", "target": "3"}\n', "no column question, answer"),
        ("gsm8k.jsonl", '{"question": "q", "answer": null}\n', "not the rows that 'gsm8k' publishes"),
        (
            "gsm8k.jsonl",
            '{"question": "q", "answer": "3"}\n{}\n',
            r"gsm8k\.jsonl:2: not the rows that 'gsm8k' publishes",
        ),
        ("gsm8k.jsonl", "", "no rows"),
        ("gsm8k.jsonl", "not json\n", "not a JSON object"),
        ("gsm8k.jsonl", '{"question": "q", "answer": "\\ud83d"}\n', r"gsm8k\.jsonl:1: 'answer' holds half a character"),
        ("gsm8k.jsonl", '{"question": "q", "answer": NaN}\n', r"gsm8k\.jsonl:1: NaN is not a JSON number"),
        ("gsm8k.json", "{", "not readable as JSON"),
        ("gsm8k.json", "3", "expected a list of objects"),
        ("gsm8k.json", '{"a": 3}', "expected a list of objects"),
        ("gsm8k.parquet", "PAR1", "not readable as Parquet"),
        ("gsm8k.csv", 'question,answer\n"open', "not readable as CSV"),
        ("gsm8k.csv", "question\nq\n", "no column answer"),
        ("simpleqa.csv", "metadata,problem,answer\nm,,red\n", "prompt: row 'simpleqa-0000' has none"),
        (
            "alpaca_loss.jsonl",
            '{"id": "0", "prompt": "q", "target": "a"}\n{"id": "1", "prompt": "r", "target": " "}\n',
            "target: row '1' has none, and its loss is measured",
        ),
        ("advglue.json", '{"cola": [{"idx": 0, "label": 1, "sentence": "s"}]}', "not the rows that 'advglue'"),
        ("advglue.json", '{"sst2": [{"idx": 0, "label": 7, "sentence": "s"}]}', "not the rows that 'advglue'"),
        ("xstest_safe.csv", "id,prompt,type,label\n1,p,t,safe\n1,p,t,safe\n", "occurs twice"),
        ("xstest_safe.csv", "id,prompt,type,label\n1,p,t,unsafe\n", "no rows"),
    ],
)
def test_a_file_that_is_not_the_benchmarks_is_refused(file: str, content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / file).write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=message) as caught:
        load_rows(benchmark(Path(file).stem), tmp_path)
    assert str(tmp_path / Path(file).stem) in str(caught.value)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (datetime(2026, 1, 2, tzinfo=UTC), "a datetime"),
        (b"x", "bytes"),
        (Decimal("1.5"), "a Decimal"),
        (float("inf"), r"a number \(inf\)"),
        ([{"at": b"x"}], "bytes"),
    ],
)
def test_a_value_that_json_does_not_have_is_refused(value: Any, kind: str, mirror: Path, tmp_path: Path) -> None:
    rows = load_rows(benchmark("gsm8k"), mirror)
    rows[1]["note"] = value
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([rows[1], rows[0]]), tmp_path / "gsm8k.parquet")
    with pytest.raises(UserError, match=rf"gsm8k\.parquet: row 1: note: found {kind}; a row holds texts, numbers, "):
        load_rows(benchmark("gsm8k"), tmp_path)


def test_a_cell_that_is_missing_is_null_however_it_is_written(mirror: Path, tmp_path: Path) -> None:
    rows = load_rows(benchmark("gsm8k"), mirror)
    for row, note in zip(rows, (1.0, float("nan"), None, 2.0, float("nan"), 3.0), strict=True):
        row["note"], row["notes"] = note, [note]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "gsm8k.parquet")
    found = load_rows(benchmark("gsm8k"), tmp_path)
    assert [row["note"] for row in found] == [1.0, None, None, 2.0, None, 3.0]
    assert [row["notes"] for row in found] == [[row["note"]] for row in found]


ADDED = ("response", "finish_reason", "in_thought", "benchmark", "backend", "data_hash", "rendered_hash")


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        ("gsm8k", ADDED),
        ("piqa", (*ADDED, "options", "greedy", "tokens")),
        # Their categories stand in another column.
        ("xstest_safe", ("category",)),
    ],
)
def test_a_column_that_generations_would_overwrite_is_refused(
    name: str, columns: tuple[str, ...], mirror: Path, tmp_path: Path
) -> None:
    rows = load_rows(benchmark(name), mirror)
    for column in columns:
        named = [*rows[:1], {**rows[1], column: "x"}]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in named), encoding="utf-8")
        with pytest.raises(UserError, match=rf"{name}\.jsonl: {column}: row '{rows[1]['id']}' has this column, which"):
            load_rows(benchmark(name), tmp_path)


def test_other_columns_are_kept(mirror: Path, tmp_path: Path) -> None:
    """Options beside a question that is answered in words, which no answer overwrites."""
    rows = [row | {"options": "x", "tokens": 3, "category": "sums"} for row in load_rows(benchmark("gsm8k"), mirror)]
    (tmp_path / "gsm8k.json").write_text(json.dumps(rows), encoding="utf-8")
    assert load_rows(benchmark("gsm8k"), tmp_path) == rows


@pytest.mark.parametrize("separator", [" ", ""])
def test_a_long_text_is_cut_into_passages_with_or_without_spaces(separator: str, tmp_path: Path) -> None:
    words = [f"{number:05d}" for number in range(600)]
    if not separator:
        # A lone space near the beginning ends no passage.
        words[0] = "000 0"
    (tmp_path / "wikipedia_loss.txt").write_text(separator.join(words), encoding="utf-8")
    passages = [row["target"] for row in load_rows(benchmark("wikipedia_loss"), tmp_path)]
    assert {len(passage) for passage in passages} == {995 if separator else 1000}
    assert separator.join(words).startswith(separator.join(passages)) and len(passages) == 3


def test_another_number_of_rows_is_said(mirror: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="ogpsa.eval"):
        load_rows(benchmark("strongreject_none"), mirror)
    assert "6 rows; strongreject_none has 313" in caplog.text


def test_a_csv_with_line_breaks_and_a_byte_order_mark(tmp_path: Path) -> None:
    with (tmp_path / "simpleqa.csv").open("w", encoding="utf-8-sig", newline="") as handle:
        csv.writer(handle).writerows([("metadata", "problem", "answer"), ("", 'a "b",\nc', "d")])
    assert load_rows(benchmark("simpleqa"), tmp_path)[0]["prompt"] == 'a "b",\nc'
