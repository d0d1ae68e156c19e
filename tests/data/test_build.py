"""Building data sets from made-up rows with the columns that the real ones have, and from slices of real ones."""

import csv
import gzip
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import chdir
from functools import partial
from hashlib import sha256
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest
import torch

from ogpsa.app.compose import compose_config
from ogpsa.config import GRPOSettings
from ogpsa.data.__main__ import main
from ogpsa.data.builders.settings import FOLDER, SCHEMAS, load_settings
from ogpsa.data.rows import load_data
from ogpsa.models.files import fingerprint
from ogpsa.models.load import load_model
from ogpsa.preflight.unfit_rows import check_answers
from ogpsa.utils.errors import EXIT_DONE, EXIT_USER_ERROR, UserError
from ogpsa.utils.files import mark_complete, read_json, read_jsonl
from tests.endpoint_server import EndpointServer, Reply, Request, serve
from tests.tiny import byte_tokenizer, save_tiny, tiny_model

ROOT = Path(__file__).parents[2]
REAL = ROOT.parent / "shared" / "data"
REFUSAL = "I'm sorry, but I can't help with that."
Row = dict[str, Any]


def safe_row(prompt: str, *answers: tuple[str, bool, int], safer: int = 0, **more: Any) -> Row:
    """A row of PKU-SafeRLHF; an answer is a text, whether it is safe, and its severity."""
    row: Row = {"prompt": prompt, "prompt_source": "made up", "safer_response_id": safer, "better_response_id": 0}
    for number, (text, safe, severity) in enumerate(answers):
        row |= {
            f"response_{number}": text, f"is_response_{number}_safe": safe,
            f"response_{number}_severity_level": severity, f"response_{number}_harm_category": {"Privacy": not safe},
            f"response_{number}_source": "made up",
        }  # fmt: skip
    return row | more


def safe_rows(count: int) -> list[Row]:
    return [
        safe_row(f"How do I curse neighbour {n}?", ("I won't.", True, 0), (f"Say abra {n}.", False, 1 + n % 3))
        for n in range(count)
    ]


def feedback_row(instruction: str, *scores: tuple[Any, Any], source: str = "sharegpt") -> Row:
    """A row of UltraFeedback with an answer for each (overall score, fine-grained score)."""
    completions = [
        {"model": f"m{n}", "response": f"answer {n}", "overall_score": overall, "fine-grained_score": fine,
         "principle": "helpfulness", "custom_system_prompt": "", "critique": "",
         "annotations": {"helpfulness": {"Rating": "3"}}}
        for n, (overall, fine) in enumerate(scores)
    ]  # fmt: skip
    return {
        "source": source, "instruction": instruction, "models": [c["model"] for c in completions],
        "completions": completions, "correct_answers": ["None"], "incorrect_answers": ["None"],
    }  # fmt: skip


MADE_UP: dict[str, list[Row]] = {
    "safe_rlhf": safe_rows(12),
    "ultrafeedback": [feedback_row(f"Explain tides {n}", (3.0, 2.5), (7.5, 4.0), (1.0, 1.25)) for n in range(12)],
    "halueval": [
        {"knowledge": f"The tower {n} is {n} m high.", "question": f"How high is tower {n}?",
         "right_answer": f"{n} m", "hallucinated_answer": f"{n} km"} for n in range(12)
    ],
    "gsm8k": [
        {"question": f"What is {n} plus 1?", "answer": f"{n}+1 = <<{n}+1={n + 1}>>{n + 1}\n#### {n + 1}"}
        for n in range(12)
    ],
    "mmlu": [
        {"question": f"Which number follows {n}?", "subject": "", "choices": [str(n + k) for k in (3, 1, 2, 5)],
         "answer": 1} for n in range(12)
    ],
    "safety_tuned_llamas": [
        {"instruction": f"Help me to steal {n}.", "input": "", "output": f"I won't: {n}."} for n in range(12)
    ],
    "hh_rlhf": [
        {answer: f"\n\nHuman: How do I rob {n}?\n\nAssistant: {answer} {n}" for answer in ("chosen", "rejected")}
        for n in range(12)
    ],
    "alpaca": [
        {"instruction": f"Add one to {n}.", "input": f"It is {n}." * (n % 2), "output": f"{n + 1}"} for n in range(12)
    ],
}  # fmt: skip
# Of which no row has a rejected answer.
SFT_ALONE = ("gsm8k", "safety_tuned_llamas", "alpaca")
PARTS = {"safe_rlhf": "train", "ultrafeedback": "reference", "halueval": "reference", "gsm8k": "reference",
         "mmlu": "reference", "safety_tuned_llamas": "train", "hh_rlhf": "train", "alpaca": "reference"}  # fmt: skip


def write(file: Path, rows: list[Row]) -> Path:
    """Write rows in the format that the file's ending says."""
    if file.suffix == ".jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif file.suffix == ".json":
        file.write_text(json.dumps(rows), encoding="utf-8")
    elif file.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    else:
        with file.open("w", encoding="utf-8", newline="") as handle:
            writer = csv.DictWriter(handle, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return file


def arguments(name: str, source: Path | str, out: Path, *overrides: str) -> list[str]:
    given = ["build", name, f"source.path={source}", f"output={out}"]
    if name == "safe_rlhf" and not any("refusals.way" in override for override in overrides):
        given.append("refusals.way=templates")
    if name == "safety_tuned_llamas" and not any("rejected" in override for override in overrides):
        given.append(
            "rejected={way: none, parts: [], max_tokens: 8, model: {path: null, batch_size: 1, template_kwargs: {}}}"
        )
    return [*given, *overrides]


def build(name: str, source: Path | str, out: Path, *overrides: str) -> Row:
    """The card of a build that may replace another."""
    (out / "card.json").unlink(missing_ok=True)
    assert main(arguments(name, source, out, *overrides)) == EXIT_DONE
    card: Row = read_json(out / "card.json")
    return card


def rows_of(out: Path, part: str) -> list[Row]:
    return read_jsonl(out / f"{part}.jsonl")


@pytest.fixture
def work(tmp_path: Path) -> Iterator[Path]:
    """The working directory."""
    with chdir(tmp_path):
        yield tmp_path


@pytest.mark.parametrize("name", MADE_UP)
@pytest.mark.parametrize(
    "ending",
    [".jsonl", pytest.param(".json", marks=pytest.mark.long), pytest.param(".parquet", marks=pytest.mark.long)],
)
def test_a_local_copy_becomes_rows_that_a_run_reads(name: str, ending: str, work: Path) -> None:
    source = write(work / f"copy{ending}", MADE_UP[name])
    part, out = PARTS[name], work / "out"
    card = build(name, source, out, f"parts={{{part}: 8}}")
    assert card["counts"] == {"read": 12, "dropped": {}, "eligible": 12, "drawn": 8, "written": 8}
    assert card["source"]["sha256"] == sha256(source.read_bytes()).hexdigest()
    rows = rows_of(out, part)
    files = [part, "harmful_answers"] if name == "safe_rlhf" else [part]
    assert card["parts"] == {
        file: {
            "file": f"{file}.jsonl",
            "rows": 8,
            "sha256": sha256((out / f"{file}.jsonl").read_bytes()).hexdigest(),
        }
        for file in files
    }
    assert len({row["prompt"] for row in rows}) == 8
    pairs = name not in SFT_ALONE
    assert all(("rejected" in row) == pairs and row["chosen"] for row in rows)
    stages = ["stage.sft", "stage.dpo"] if pairs else ["stage"]
    batches = [f"{stage}.{key}" for stage in stages for key in ("batch_size=8", "micro_batch_size=4")]
    given = ["data=files", f"data.safety={out / part}.jsonl", "eval=quick"]
    config = compose_config([*given, f"stage={'sft_dpo' if pairs else 'sft'}", "method=baseline", *batches])
    columns = ("chosen", "prompt", "rejected") if pairs else ("chosen", "prompt")
    assert load_data(config).safety == [{column: row[column] for column in columns} for row in rows]


@pytest.mark.parametrize("name", ["gsm8k", "halueval", "safe_rlhf"])
def test_csv_gives_the_same_rows(name: str, work: Path) -> None:
    parts = f"parts={{{PARTS[name]}: 8}}"
    build(name, write(work / "a.jsonl", MADE_UP[name]), work / "a", parts)
    build(name, write(work / "a.csv", MADE_UP[name]), work / "b", parts)
    assert rows_of(work / "a", PARTS[name]) == rows_of(work / "b", PARTS[name])


def test_a_folder_laid_out_like_the_hub_is_read_by_configuration_and_split(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(work / "cache"))
    (work / "hub" / "main").mkdir(parents=True)
    for split, rows in (("train", MADE_UP["gsm8k"]), ("test", MADE_UP["gsm8k"][:3])):
        write(work / "hub" / "main" / f"{split}.parquet", rows)
    files = "".join(f"  - split: {split}\n    path: main/{split}.parquet\n" for split in ("train", "test"))
    (work / "hub" / "README.md").write_text(f"---\nconfigs:\n- config_name: main\n  data_files:\n{files}---\n")
    card = build("gsm8k", work / "hub", work / "out", "parts.reference=8")
    assert card["counts"]["read"] == 12
    assert card["source"] == {
        "path": str(work / "hub"), "licence": "MIT", "config": "main", "split": "train", "revision": None,
    }  # fmt: skip


def test_a_json_file_at_an_address_is_read(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    write(work / "rows.json", MADE_UP["safety_tuned_llamas"])
    handler = partial(SimpleHTTPRequestHandler, directory=str(work))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        card = build("safety_tuned_llamas", f"{address}/rows.json", work / "out", "parts={train: 12}")
        capsys.readouterr()
        assert main(arguments("safety_tuned_llamas", f"{address}/row.json", work / "none")) == EXIT_USER_ERROR
        server.shutdown()
    assert card["source"]["path"] == f"{address}/rows.json" and card["counts"]["read"] == 12
    assert {row["chosen"] for row in rows_of(work / "out", "train")} == {f"I won't: {n}." for n in range(12)}
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert "row.json cannot be fetched" in line and "name a local copy: source.path=FILE" in line


def test_the_rejected_answer_is_the_most_unsafe_one_of_its_prompt(work: Path) -> None:
    rows = [
        safe_row("a", ("minor", False, 1), ("safe", True, 0), safer=1),
        safe_row(" A.", ("severe", False, 3), ("moderate", False, 2), safer=1),
        safe_row("a", ("moderate again", False, 2), ("safe too", True, 0), safer=1),
        # Of two that are equally severe, the less safe one.
        safe_row("b", ("worse", False, 2), ("better", False, 2), safer=1),
        safe_row("c", ("safe", True, 0), ("safe as well", True, 0)),
        safe_row("d", ("minor alone", False, 1), ("safe", True, 0), safer=1),
    ]
    source = write(work / "rows.jsonl", rows)
    card = build("safe_rlhf", source, work / "out", "parts.train=3")
    assert {row["rejected"] for row in rows_of(work / "out", "train")} == {"severe", "worse", "minor alone"}
    assert card["counts"]["dropped"] == {"prompt of another row": 2, "no unsafe answer of severity 1 or more": 1}
    build("safe_rlhf", source, work / "out", "parts.train=2", "min_severity=2", "harmful_answers=1")
    trained = rows_of(work / "out", "train")
    assert {row["rejected"] for row in trained} == {"severe", "worse"}
    exchanged = {"prompt": trained[0]["prompt"], "chosen": trained[0]["rejected"], "rejected": trained[0]["chosen"]}
    assert rows_of(work / "out", "harmful_answers") == [exchanged]


def test_ultrafeedback_pairs_the_highest_with_the_lowest_score(work: Path) -> None:
    rows = [
        feedback_row("a", (5.0, 2.0), (8.0, 3.0), (8.0, 4.5), (2.0, 3.0)),
        feedback_row("b", (5.0, 2.0), ("N/A", 5.0), (6.0, 1.0), (None, 1.0)),
        feedback_row("c", (5.0, 2.0), (5.0, 4.0)),
        feedback_row("d", (5.0, 2.0), ("N/A", 2.0)),
        feedback_row("e", (9.0, 2.0), (1.0, 4.0), source="truthful_qa"),
    ]
    source, out = write(work / "rows.jsonl", rows), work / "out"

    def pairs(count: int, *overrides: str) -> dict[str, tuple[str, str]]:
        card.update(build("ultrafeedback", source, out, f"parts={{reference: {count}}}", *overrides))
        return {row["prompt"]: (row["chosen"], row["rejected"]) for row in rows_of(out, "reference")}

    card: Row = {}
    ours = {"a": ("answer 2", "answer 3"), "b": ("answer 2", "answer 0"), "e": ("answer 0", "answer 1")}
    assert pairs(3) == ours
    assert card["counts"]["dropped"] == {"no distance between the scores": 1, "fewer than two scored answers": 1}
    assert pairs(2, "skip_sources=[truthful_qa]") == {"a": ours["a"], "b": ours["b"]}
    assert pairs(2, "min_gap=5") == {"a": ours["a"], "e": ours["e"]}
    assert card["counts"]["dropped"]["scores closer than 5"] == 1
    fine = pairs(4, "score=fine-grained_score")
    assert fine["e"] == ("answer 1", "answer 0") and fine["a"] == ("answer 2", "answer 0")


def test_other_forms_of_the_same_data_sets(work: Path) -> None:
    flat = [{"instruction": f"q{n}", "chosen": "good", "rejected": "bad"} for n in range(3)]
    # Rows of LLaMA-Factory differ in their input alone; what would have to stand before a prompt is left out.
    alpaca = [
        {"instruction": "Translate.", "input": word, "system": role, "chosen": "good", "rejected": "bad"}
        for word, role in (("cat", ""), ("dog", None), ("cow", "Be brief."))
    ]
    turns = [{"from": "human", "value": "q9"}, {"from": "gpt", "value": "a"}]
    shared = [
        {"conversations": turns[:count], "chosen": {"value": "good"}, "rejected": {"value": "bad"}} for count in (1, 2)
    ]
    general = [
        {"ID": str(n), "user_query": f"query {n}", "chatgpt_response": "reply", "hallucination": mark}
        for n, mark in enumerate(("no", "yes", "no"))
    ]
    cases: list[tuple[str, list[Row], int, set[str]]] = [
        ("ultrafeedback", flat, 3, {"q0", "q1", "q2"}),
        ("ultrafeedback", alpaca, 2, {"Translate.\n\ncat", "Translate.\n\ndog"}),
        ("ultrafeedback", shared, 1, {"q9"}),
        ("halueval", general, 2, {"query 0", "query 2"}),
    ]
    for name, rows, count, prompts in cases:
        build(name, write(work / "rows.jsonl", rows), work / "out", f"parts={{reference: {count}}}")
        assert {row["prompt"] for row in rows_of(work / "out", "reference")} == prompts


def test_a_list_with_a_test_part_is_no_source(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = work / "rows.json"
    source.write_text(json.dumps({"train": MADE_UP["gsm8k"][:6], "test": MADE_UP["gsm8k"][6:]}), encoding="utf-8")
    assert main(arguments("gsm8k", source, work / "out", "parts.reference=8")) == EXIT_USER_ERROR
    assert "source.path: " in (said := capsys.readouterr().err) and "holds the parts test, train" in said


def test_gsm8k_and_mmlu_as_answers(work: Path) -> None:
    source = write(work / "gsm8k.jsonl", MADE_UP["gsm8k"][:1])
    build("gsm8k", source, work / "out", "parts.reference=1")
    assert rows_of(work / "out", "reference") == [{"prompt": "What is 0 plus 1?", "chosen": "0+1 = 1\n#### 1"}]
    build("gsm8k", source, work / "out", "parts.reference=1", "calculator_annotations=true")
    assert rows_of(work / "out", "reference")[0]["chosen"] == "0+1 = <<0+1=1>>1\n#### 1"
    build("mmlu", write(work / "mmlu.jsonl", MADE_UP["mmlu"][:1]), work / "out", "parts.reference=1")
    [row] = rows_of(work / "out", "reference")
    assert row["prompt"].startswith("Which number follows 0?\nA. 3\nB. 1\nC. 2\nD. 5\n")
    assert row["chosen"] == "B. 1" and row["rejected"] in ("A. 3", "C. 2", "D. 5")
    assert row["question"] == "Which number follows 0?"


def test_parts_share_no_row_and_a_larger_one_keeps_a_smaller_one(work: Path) -> None:
    source = write(work / "rows.jsonl", MADE_UP["ultrafeedback"])
    build("ultrafeedback", source, work / "out", "parts={reference: 4, general: 5}")
    reference, general = (rows_of(work / "out", part) for part in ("reference", "general"))
    assert len({row["prompt"] for row in [*reference, *general]}) == 9
    again = {file.name: file.read_bytes() for file in (work / "out").glob("*.json*")}
    build("ultrafeedback", source, work / "out", "parts={reference: 4, general: 5}")
    assert {file.name: file.read_bytes() for file in (work / "out").glob("*.json*")} == again
    build("ultrafeedback", source, work / "larger", "parts={reference: 7}")
    assert rows_of(work / "larger", "reference")[:4] == reference
    build("ultrafeedback", source, work / "other", "parts={reference: 4}", "seed=1")
    assert rows_of(work / "other", "reference") != reference


def test_every_filter_is_counted(work: Path) -> None:
    rows = [
        {"question": "Kept?", "answer": "yes"},
        {"question": "kept", "answer": "again"},
        {"question": "  ", "answer": "no question"},
        {"question": "No answer?", "answer": ""},
        {"question": "Long?", "answer": "x" * 100},
        {"question": "In the benchmark, is it?", "answer": "a"},
        {"question": "Is this question nearly in the benchmark of ours?", "answer": "b"},
    ]
    benchmark = [
        {"prompt": "in the  benchmark, IS it", "id": "1", "target": ""},
        {"prompt": "Is this question nearly in the benchmark of yours?", "id": "2", "target": ""},
    ]
    (work / "benchmarks").mkdir()
    file = write(work / "benchmarks" / "ours.jsonl", benchmark)
    card = build(
        "gsm8k", write(work / "rows.jsonl", rows), work / "out", "parts.reference=1", "max_characters=60",
        f"exclude=[{file.parent}]",
    )  # fmt: skip
    assert card["counts"] == {
        "read": 7,
        "dropped": {
            "prompt of another row": 1, "empty prompt or answer": 2, "longer than 60 characters": 1,
            "prompt in an excluded file": 1, "prompt nearly in an excluded file": 1,
        },
        "eligible": 1,
        "drawn": 1,
        "written": 1,
    }  # fmt: skip
    assert card["excluded"] == {str(file): sha256(file.read_bytes()).hexdigest()}
    assert [row["prompt"] for row in rows_of(work / "out", "reference")] == ["Kept?"]


def rename(row: Row, **names: str) -> Row:
    return {names.get(key, key): value for key, value in row.items()}


@pytest.mark.parametrize(
    ("name", "row", "overrides", "said"),
    [
        ("safe_rlhf", rename(MADE_UP["safe_rlhf"][0], response_1="respons_1"), [],
         "no column 'response_1'|did you mean 'respons_1'?"),
        ("halueval", rename(MADE_UP["halueval"][0], right_answer="answer"), [],
         "no column 'right_answer'|did you mean 'answer'?"),
        ("mmlu", MADE_UP["gsm8k"][0], [], "no column 'choices'|columns found: question, answer"),
        ("mmlu", MADE_UP["mmlu"][0] | {"choices": ["one"]}, [], "row 1: not what mmlu publishes"),
        ("gsm8k", MADE_UP["gsm8k"][0] | {"question": 7}, [], "row 1: not what gsm8k publishes|prompt is int"),
        ("safe_rlhf", MADE_UP["safe_rlhf"][0] | {"is_response_0_safe": "perhaps"}, [], "neither true nor false"),
        ("gsm8k", MADE_UP["gsm8k"][0], [], "5000 rows wanted, but 1 of 1"),
        ("gsm8k", MADE_UP["gsm8k"][0], ["seeds=3"], "seeds: unknown key|did you mean 'seed'?"),
        ("gsm8k", MADE_UP["gsm8k"][0], ["parts.reference=0"], "parts.reference: found 0"),
        ("gsm8k", MADE_UP["gsm8k"][0], ["sources.path=x"], "sources: unknown key|did you mean 'source'?"),
        ("gsm8k", MADE_UP["gsm8k"][0], ["seed"], "'seed': expected KEY=VALUE"),
        ("gsm8k", MADE_UP["gsm8k"][0], ["exclude=[nowhere]"], "nowhere: no such file or folder"),
        ("ultrafeedback", MADE_UP["ultrafeedback"][0], ["score=overal_score"], "did you mean 'overall_score'?"),
        ("safe_rlhf", MADE_UP["safe_rlhf"][0], ["refusals.way=model"], "refusals.model.path: null"),
        ("safe_rlhf", MADE_UP["safe_rlhf"][0], ["refusals.way=endpoint"], "OPENAI_API_KEY holds no key"),
        ("safe_rlhf", MADE_UP["safe_rlhf"][0], ["refusals.way=template"], "did you mean 'templates'?"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_writes_nothing(
    name: str, row: Row, overrides: list[str], said: str, work: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    source = write(work / "rows.jsonl", [row])
    assert main(arguments(name, source, work / "out", *overrides)) == EXIT_USER_ERROR
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert all(part in line for part in said.split("|")), line
    assert not list(work.glob("out/*.json*"))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["build"], "name a data set: safe_rlhf"),
        (["build", "gsm8"], "did you mean 'gsm8k'?"),
        (["biuld", "gsm8k"], "did you mean 'build'?"),
        (["build", "gsm8k", "source.path=no/such/file.jsonl"], "no such file or folder"),
        (["build", "gsm8k"], "openai/gsm8k cannot be fetched"),
        (["check", "nowhere"], "nowhere: no such file or folder"),
        (["check", "nowhere", "--similarity", "2"], "--similarity: found 2"),
        (["check"], "folder"),
    ],
)
def test_a_mistake_in_the_command_is_one_line(
    given: list[str], said: str, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(given) == EXIT_USER_ERROR
    [line] = capsys.readouterr().err.splitlines()
    assert said in line


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_value_has_the_tag_of_its_source(name: str) -> None:
    load_settings(name)
    comment = ""
    for line in (FOLDER / f"{name}.yaml").read_text(encoding="utf-8").splitlines():
        key, _, value = line.strip().partition(":")
        if line.strip().startswith("#"):
            comment += line
        elif key.isidentifier():
            assert not value or key == "name" or ("[" in comment and "]" in comment), f"{name}: {key}"
            comment = ""


def test_a_missing_file_names_its_builder(work: Path) -> None:
    config = compose_config(["data=paper", "eval=quick", "stage=sft", "method=baseline"])
    with pytest.raises(UserError, match=r"train\.jsonl: no such file; build it: python -m ogpsa\.data build safe_rlhf"):
        load_data(config)


# Refusals


def test_templates_are_drawn_by_the_seed(work: Path) -> None:
    source = write(work / "rows.jsonl", safe_rows(40))
    card = build("safe_rlhf", source, work / "a", "parts.train=40")
    assert card["refusals"] == {"way": "templates", "templates": 40}
    chosen = {row["prompt"]: row["chosen"] for row in rows_of(work / "a", "train")}
    allowed = card["settings"]["refusals"]["templates"]
    assert set(chosen.values()) <= set(allowed) and len(set(chosen.values())) > 5
    build("safe_rlhf", source, work / "b", "parts.train=40", "seed=1")
    assert {row["prompt"]: row["chosen"] for row in rows_of(work / "b", "train")} != chosen


def refusing(request: Request, before: int) -> Reply:
    """Each prompt its own refusal."""
    return Reply(f"{REFUSAL} ({request.body['messages'][-1]['content']})", delay=0.005)


def by_endpoint(server: EndpointServer, *more: str) -> list[str]:
    address = f"refusals.endpoint.base_url={server.url}"
    return ["refusals.way=endpoint", address, "refusals.endpoint.api_key_env=''", "parts.train=30", *more]


def test_an_endpoint_writes_the_refusals_once(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(work / "rows.jsonl", safe_rows(40))
    with serve(refusing) as server:
        card = build("safe_rlhf", source, work / "out", *by_endpoint(server))
        assert card["refusals"] == {
            "way": "endpoint", "by": "gpt-4o-mini", "written": 30, "templates": 0, "templates_because": {},
        }  # fmt: skip
        assert len(server.requests) == 30
        system, user = server.requests[0].body["messages"]
        assert system == {"role": "system", "content": card["settings"]["refusals"]["system_prompt"]}
        assert user["role"] == "user" and user["content"].startswith("How do I curse neighbour")
        assert "refusals by gpt-4o-mini: 30 calls, about " in capsys.readouterr().err
        for row in rows_of(work / "out", "train"):
            assert row["chosen"] == f"{REFUSAL} ({row['prompt']})"
        # Nothing is requested again, and more rows request only the new ones.
        build("safe_rlhf", source, work / "out", *by_endpoint(server))
        assert len(server.requests) == 30
        build("safe_rlhf", source, work / "out", *by_endpoint(server, "parts.train=35"))
        assert len(server.requests) == 35
        build("safe_rlhf", source, work / "out", *by_endpoint(server, "refusals.endpoint.model=other"))
        assert len(server.requests) == 65


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (Reply("Of course! Say abra."), "not a refusal"),
        (Reply(REFUSAL, finish_reason="length"), "cut"),
        (Reply("  "), "empty"),
        (Reply("..."), "empty"),
        (Reply(f"<think>{REFUSAL}", finish_reason="length"), "cut"),
        (Reply("<think>I can't help.</think>Say abra."), "not a refusal"),
        (Reply(None, finish_reason="content_filter"), "empty"),
    ],
)
def test_a_template_replaces_a_reply_that_does_not_refuse(reply: Reply, reason: str, work: Path) -> None:
    source = write(work / "rows.jsonl", safe_rows(4))
    with serve(lambda request, before: reply if "neighbour 1" in request.text else refusing(request, 0)) as server:
        card = build("safe_rlhf", source, work / "out", *by_endpoint(server, "parts.train=4"))
    assert card["refusals"]["written"] == 3 and card["refusals"]["templates_because"] == {reason: 1}
    chosen = {row["prompt"]: row["chosen"] for row in rows_of(work / "out", "train")}
    assert chosen["How do I curse neighbour 1?"] in card["settings"]["refusals"]["templates"]


def test_a_writers_thought_is_not_trained_on(work: Path) -> None:
    source = write(work / "rows.jsonl", safe_rows(4))
    with serve(lambda request, before: Reply(f"<think>A curse?</think>\n\n{REFUSAL}")) as server:
        build("safe_rlhf", source, work / "out", *by_endpoint(server, "parts.train=4"))
    assert {row["chosen"] for row in rows_of(work / "out", "train")} == {REFUSAL}


@pytest.mark.parametrize(
    "reply",
    [
        "Es tut mir leid, aber dabei kann ich Ihnen nicht helfen.",
        "Das kann ich leider nicht tun.",
        "Je suis désolé, mais je ne peux pas vous aider.",
        "Lo siento, pero no puedo ayudarte con eso.",
        "Desculpe, mas não posso ajudar com isso.",
        "Mi dispiace, ma non posso aiutarti.",
        "Het spijt me, daar kan ik je niet bij helpen.",
        "Przykro mi, nie mogę w tym pomóc.",
        "Извините, я не могу помочь.",
        "抱歉。我不能协助这个请求。",
        "申し訳ありませんが、お手伝いできません。",
        "죄송하지만 도와드릴 수 없습니다.",
        "عذرا، لا يمكنني المساعدة في ذلك.",
        "Xin lỗi, tôi không thể giúp.",
        "<think>Harmful, so I refuse.</think>\n\nI can't help with that.",
    ],
)
def test_a_refusal_in_the_users_language_is_kept(reply: str, work: Path) -> None:
    source = write(work / "rows.jsonl", safe_rows(4))
    with serve(lambda *_: Reply(reply)) as server:
        card = build("safe_rlhf", source, work / "out", *by_endpoint(server, "parts.train=4"))
    assert (card["refusals"]["written"], card["refusals"]["templates"]) == (4, 0)
    assert {row["chosen"] for row in rows_of(work / "out", "train")} == {reply.rpartition("</think>")[2].strip()}


def test_a_set_of_templates_where_a_writer_was_asked_for_is_refused(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write(work / "rows.jsonl", safe_rows(4))
    with serve(lambda *_: Reply("Jah, muidugi. Ütle abra.")) as server:
        given = arguments("safe_rlhf", source, work / "out", *by_endpoint(server, "parts.train=4"))
        assert main(given) == EXIT_USER_ERROR
        line = capsys.readouterr().err.splitlines()[-1]
        assert line.startswith(
            "error: refusals.template_share: 4 of 4 replies cannot be used as refusals, above the share of 0.5 "
            "for which a template may stand in; the first is not a refusal: 'Jah, muidugi. Ütle abra.'; "
        )
        assert not (work / "out" / "train.jsonl").exists()
        assert main([*given, "refusals.template_share=1"]) == EXIT_DONE
        assert len(server.requests) == 4


@pytest.mark.parametrize("score", ["nan", "inf"])
def test_a_score_that_is_not_a_number_is_named_by_its_row(
    score: str, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [feedback_row("a", (1.0, 1.0), (2.0, 2.0)), feedback_row("b", (float(score), 1.0), (2.0, 2.0))]
    source = write(work / "rows.parquet", rows)
    assert main(arguments("ultrafeedback", source, work / "out", "parts.reference=1", "score=overall_score")) == 2
    assert f"row 2: not what ultrafeedback publishes (ValueError: a score is {score})" in capsys.readouterr().err


def test_every_excluded_place_that_is_missing_is_told(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(work / "rows.jsonl", safe_rows(4))
    assert main(arguments("safe_rlhf", source, work / "out", "exclude=[here, there]")) == EXIT_USER_ERROR
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["error: here: no such file or folder", "error: there: no such file or folder"]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b'{"prompt": "a\\ud83d"}', "rows.jsonl:1: 'prompt' holds half a character"),
        ('{"prompt": "a"}'.encode("utf-16"), "rows.jsonl: not a UTF-8 text file"),
        (b'{"prompt": "a"}\n{', "rows.jsonl:2: not a JSON object"),
    ],
)
def test_a_source_is_read_as_training_rows_are(
    content: bytes, problem: str, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (work / "rows.jsonl").write_bytes(content)
    assert main(arguments("safe_rlhf", work / "rows.jsonl", work / "out")) == EXIT_USER_ERROR
    assert problem in capsys.readouterr().err


def test_a_damaged_row_in_a_folder_laid_out_like_the_hubs_is_one_line(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (work / "copy").mkdir()
    (work / "copy" / "train.jsonl").write_text('{"question": "1 + 1?", "answer": "2"}\n{"question": ')
    assert main(arguments("gsm8k", work / "copy", work / "out", "source.config=null")) == EXIT_USER_ERROR
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert line.startswith(f"error: source.path: {work / 'copy'} cannot be fetched (")
    assert "JSON" in line


def test_rows_of_other_settings_are_not_replaced(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = write(work / "copy.jsonl", MADE_UP["gsm8k"]), work / "out"
    build("gsm8k", source, out, "parts={reference: 4}")
    before = (out / "reference.jsonl").read_bytes()
    assert main(arguments("gsm8k", source, out, "parts={reference: 4}", "max_characters=900")) == EXIT_USER_ERROR
    assert capsys.readouterr().err == (
        f"error: output: the rows in {out} were built with other settings (max_characters: 6000, now 900); name "
        f"another folder, or delete {out / 'card.json'} to replace them\n"
    )
    assert (out / "reference.jsonl").read_bytes() == before
    # More of the same rows hold those that were there; the same file has another name.
    again = work / "else" / ".." / "copy.jsonl"
    (work / "else").mkdir()
    assert main(arguments("gsm8k", again, out, "parts={reference: 8}")) == EXIT_DONE
    assert (out / "reference.jsonl").read_bytes().startswith(before)
    # More rows in a part would take those of the next.
    assert main(arguments("gsm8k", source, work / "two", "parts={reference: 3, general: 3}")) == EXIT_DONE
    capsys.readouterr()
    assert main(arguments("gsm8k", source, work / "two", "parts={reference: 5, general: 3}")) == EXIT_USER_ERROR
    assert "(parts.reference: 3, now 5)" in capsys.readouterr().err
    # So would a part that takes the rows of one that is gone, whose file stays.
    assert main(arguments("gsm8k", source, work / "two", "parts={general: 3}")) == EXIT_USER_ERROR
    assert "(parts.reference: 3, now left out)" in capsys.readouterr().err
    # A card that an earlier version wrote says nothing, and neither does a damaged one.
    for card in ("[]", "{", '{"settings": {"name": "gsm8k"}}'):
        (work / "two" / "card.json").write_text(card)
        assert main(arguments("gsm8k", source, work / "two", "parts={reference: 5, general: 3}")) == EXIT_DONE


@pytest.mark.parametrize("mark", [b"\xef\xbb\xbf", b""])
@pytest.mark.parametrize("ending", [b"\n\n", b"\r\n", b""])
def test_marks_and_empty_last_lines_of_a_source_are_not_rows(mark: bytes, ending: bytes, work: Path) -> None:
    source = write(work / "rows.jsonl", safe_rows(4))
    source.write_bytes(mark + source.read_bytes().rstrip() + ending)
    assert build("safe_rlhf", source, work / "out", "parts.train=4")["counts"]["read"] == 4


def test_the_cap_on_calls_keeps_what_was_paid(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(work / "rows.jsonl", safe_rows(40))
    with serve(refusing) as server:
        capped = arguments("safe_rlhf", source, work / "out", *by_endpoint(server, "refusals.endpoint.max_calls=10"))
        assert main(capped) == EXIT_USER_ERROR
        assert "(refusals.endpoint.max_calls) is reached" in capsys.readouterr().err.splitlines()[-1]
        assert not (work / "out" / "train.jsonl").exists()
        build("safe_rlhf", source, work / "out", *by_endpoint(server))
        assert len(server.requests) == 30


@pytest.mark.slow
def test_a_killed_build_resumes_where_it_was(work: Path) -> None:
    source = write(work / "rows.jsonl", safe_rows(200))
    with serve(refusing) as server:
        wanted = by_endpoint(server, "parts.train=200", "refusals.endpoint.concurrency=4")
        build("safe_rlhf", source, work / "whole", *wanted)
        asked = len(server.requests)
        with (work / "stderr").open("wb") as errors:
            process = subprocess.Popen(
                [sys.executable, "-m", "ogpsa.data", *arguments("safe_rlhf", source, work / "out", *wanted)],
                stdout=subprocess.DEVNULL, stderr=errors, env=os.environ | {"PYTHONPATH": str(ROOT)},
            )  # fmt: skip
        while len(server.requests) - asked < 90:
            assert process.poll() is None, (work / "stderr").read_text()
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (work / "out" / "train.jsonl").exists()
        build("safe_rlhf", source, work / "out", *wanted)
        # Only the requests in flight when the process was killed are repeated.
        assert 200 <= len(server.requests) - asked <= 200 + 4
    assert (work / "out" / "train.jsonl").read_bytes() == (work / "whole" / "train.jsonl").read_bytes()


def test_a_checkpoint_writes_the_same_replies_alone_and_resumed(work: Path) -> None:
    tokenizer = byte_tokenizer()
    torch.manual_seed(0)
    tiny_model(tokenizer, max_position_embeddings=512).save_pretrained(work / "model")
    tokenizer.save_pretrained(work / "model")
    source = write(work / "rows.jsonl", safe_rows(9))
    given = [
        "parts.train=9", "refusals.way=model", f"refusals.model.path={work / 'model'}", "refusals.model.batch_size=4",
        "refusals.max_tokens=6", "refusals.system_prompt=Decline.", "refusals.template_share=1",
    ]  # fmt: skip
    card = build("safe_rlhf", source, work / "out", *given)
    facts = card["refusals"]
    assert facts["written"] + facts["templates"] == 9
    journal = (work / "out" / "refusals.journal").read_text().splitlines()
    batches = [json.loads(line) for line in journal[1:]]
    assert [len(batch) for batch in batches] == [4, 4, 1]

    model, loaded = load_model(work / "model", torch.float32)
    expected = []
    for row in rows_of(work / "out", "train"):
        messages = [{"role": "system", "content": "Decline."}, {"role": "user", "content": row["prompt"]}]
        text = loaded.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        inputs: Any = loaded(text, return_tensors="pt", add_special_tokens=False)
        tokens = inputs["input_ids"]
        for _ in range(6):
            tokens = torch.cat([tokens, model(tokens).logits[:, -1:].argmax(-1)], dim=1)  # type: ignore[operator]
            if tokens[0, -1] == loaded.eos_token_id:
                break
        expected.append(loaded.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
    said = sorted(reply["text"] for batch in batches for reply in batch.values())
    assert said == sorted(map(str, expected))

    # As after a kill in the second batch.
    whole = (work / "out" / "train.jsonl").read_bytes()
    (work / "out" / "refusals.journal").write_text("\n".join(journal[:2]) + "\n" + journal[2][:50])
    build("safe_rlhf", source, work / "out", *given)
    assert (work / "out" / "refusals.journal").read_text().splitlines() == journal
    assert (work / "out" / "train.jsonl").read_bytes() == whole
    # More rows after fewer, whose replies are spread over the new batches.
    for count in (5, 9):
        build("safe_rlhf", source, work / "grown", *given, f"parts.train={count}")
    assert (work / "grown" / "train.jsonl").read_bytes() == whole


def test_an_instruction_and_its_input_are_one_prompt(work: Path) -> None:
    build("alpaca", write(work / "rows.json", MADE_UP["alpaca"]), work / "out", "parts={reference: 12}")
    assert {row["prompt"] for row in rows_of(work / "out", "reference")} == {
        f"Add one to {n}." + f"\n\nIt is {n}." * (n % 2) for n in range(12)
    }


@pytest.mark.parametrize("several", [True, False])
def test_two_conversations_become_a_pair_where_they_differ_in_the_answer_alone(work: Path, several: bool) -> None:
    def talk(*said: str) -> str:
        return "".join(f"\n\n{'Human' if n % 2 == 0 else 'Assistant'}: {text}" for n, text in enumerate(said))

    rows = [
        {"chosen": talk("a\n\nb Human: c", "no"), "rejected": talk("a\n\nb Human: c", "yes")},
        {"chosen": talk("a", "b", "c", "no"), "rejected": talk("a", "b", "c", "yes")},
        {"chosen": talk("a", "no"), "rejected": talk("b", "yes")},
        {"chosen": talk("a"), "rejected": talk("a", "yes")},
    ]
    (work / "rows.jsonl.gz").write_bytes(gzip.compress(write(work / "rows.jsonl", rows).read_bytes()))
    given = [f"parts.train={1 + several}", f"several_turns={several}"]
    card = build("hh_rlhf", work / "rows.jsonl.gz", work / "out", *given)
    roles = zip(("user", "assistant", "user"), "abc", strict=True)
    one = {"prompt": "a\n\nb Human: c", "chosen": "no", "rejected": "yes"}
    two = {"prompt": [{"role": role, "content": text} for role, text in roles], "chosen": "no", "rejected": "yes"}
    assert sorted(rows_of(work / "out", "train"), key=str) == [one, two][: 1 + several]
    assert card["counts"]["dropped"] == ({} if several else {"more than one turn": 1}) | {
        "conversations that differ before their last answers": 1, "turns out of order": 1
    }  # fmt: skip
    # They are trained on as they are, in turns, and one that is a benchmark's in any turn is left out.
    small = ["method=baseline", "stage.batch_size=1", "stage.micro_batch_size=1"]
    data = ["data=files", f"data.safety={work / 'out' / 'train.jsonl'}"]
    assert load_data(compose_config(["stage=dpo", *small, *data])).safety == rows_of(work / "out", "train")
    if several:
        (work / "test").mkdir()
        write(work / "test" / "held.jsonl", [{"prompt": "a"}])
        left = build("hh_rlhf", work / "rows.jsonl.gz", work / "less", "parts.train=1", f"exclude=[{work / 'test'}]")
        assert rows_of(work / "less", "train") == [one] and left["counts"]["dropped"]["prompt in an excluded file"] == 1


def test_the_untuned_model_writes_the_rejected_answers(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = byte_tokenizer()
    save_tiny(work / "model", tokenizer, max_position_embeddings=512)
    asked = [{"instruction": letter * 8, "input": "", "output": "No."} for letter in "abcdefghijkl"]
    source = write(work / "rows.jsonl", asked)
    given = ["parts={heldout: 3, train: 9}", "rejected.model.path=model", "rejected.max_tokens=6",
             "rejected.model.batch_size=4"]  # fmt: skip
    card = build("safety_tuned_llamas", source, work / "out", *given)
    journal = (work / "out" / "rejected.journal").read_text().splitlines()
    kept = {key: reply for line in journal[1:] for key, reply in json.loads(line).items()}
    rows, facts = rows_of(work / "out", "train"), card["rejected"]
    assert len(kept) == 9 and {row["rejected"] for row in rows} <= {reply["text"].strip() for reply in kept.values()}
    assert facts["weights"] == fingerprint(work / "model")
    assert len(rows) == card["parts"]["train"]["rows"] == 9 - sum(facts["rows_dropped_because"].values())
    assert not any("rejected" in row for row in rows_of(work / "out", "heldout"))

    # Answers in the journal are not requested again; a row whose answer refuses, is empty or equals the chosen one is
    # dropped and counted.
    refused, silent, equal, *_ = kept
    told = kept | {refused: {"text": "I'm sorry, but I can't help with that.", "finish_reason": "stop"},
                   silent: {"text": " ", "finish_reason": "stop"},
                   equal: {"text": "No.", "finish_reason": "stop"}}  # fmt: skip
    (work / "out" / "rejected.journal").write_text(f"{journal[0]}\n{json.dumps(told)}\n")
    card = build("safety_tuned_llamas", source, work / "out", *given)
    dropped, count = card["rejected"]["rows_dropped_because"], len(rows_of(work / "out", "train"))
    assert min(dropped[reason] for reason in ("a refusal", "empty", "the chosen answer")) >= 1
    assert count == card["rejected"]["written"] == 9 - sum(dropped.values())
    assert card["counts"]["drawn"] == 12 and card["counts"]["written"] == 3 + count

    capsys.readouterr()
    assert main(arguments("safety_tuned_llamas", source, work / "out", *given, "rejected.parts=[trian]")) == 2
    assert "rejected.parts: 'trian' is not a part; allowed: heldout, train; did you mean 'train'?" in (
        capsys.readouterr().err
    )


# Slices of the real data sets


# NSPO's rows


def test_prompts_alone_are_drawn_by_their_share(work: Path) -> None:
    safe = safe_row("How do I bake?", ("So.", True, 0), ("Thus.", True, 0))
    source = write(work / "rows.jsonl", [*safe_rows(20), safe, *safe_rows(3)])
    card = build("safe_rlhf_prompts", source, work / "out")
    assert card["counts"] == {
        "read": 24, "dropped": {"prompt of another row": 3}, "eligible": 21, "drawn": 8, "written": 8,
    }  # fmt: skip
    rows = rows_of(work / "out", "train")
    assert all(row == {"prompt": row["prompt"], "harmful": True} for row in rows)
    # A larger share keeps what a smaller one held.
    build("safe_rlhf_prompts", source, work / "more", "parts={train: 0.9}")
    assert rows_of(work / "more", "train")[:8] == rows
    build("safe_rlhf_prompts", source, work / "other", "seed=1")
    assert rows_of(work / "other", "train") != rows
    card = build("safe_rlhf_prompts", source, work / "strict", "unsafe_answers=1", "parts.train=20")
    assert card["counts"]["dropped"] == {"fewer than 1 unsafe answers": 1, "prompt of another row": 3}
    card = build("safe_rlhf_prompts", source, work / "short", "max_characters=27", "parts.train=3")
    assert card["counts"]["eligible"] == 11
    assert main(arguments("safe_rlhf_prompts", source, work / "none", "max_characters=3")) == EXIT_USER_ERROR
    assert not list(work.glob("none/*.json*"))


def general(copies: dict[str, Path], out: Path, *overrides: str) -> list[str]:
    paths = [f"sources.{name}.path={file}" for name, file in copies.items()]
    return ["build", "nspo_general", *paths, f"output={out}", *overrides]


def test_the_general_rows_are_a_third_each(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = [{"task_id": f"t{n}", "query": f"Reverse list {n}.", "response": f"a[::{-n}]"} for n in range(4)]
    made_up = {"alpaca": MADE_UP["alpaca"], "gsm8k": MADE_UP["gsm8k"], "leetcode": code}
    copies = {name: write(work / f"{name}.jsonl", rows) for name, rows in made_up.items()}
    assert main(general(copies, work / "out", "parts.reference=10")) == EXIT_DONE
    card, rows = read_json(work / "out" / "card.json"), rows_of(work / "out", "reference")
    assert card["counts"] == {"read": 28, "dropped": {}, "eligible": 28, "drawn": 10, "written": 10}
    drawn = {name: facts["rows"] for name, facts in card["source"].items()}
    assert drawn == {"alpaca": {"reference": 4}, "gsm8k": {"reference": 3}, "leetcode": {"reference": 3}}
    starts = [("Add" if row["prompt"].startswith("Add") else row["prompt"].split()[0]) for row in rows]
    assert sorted(starts) == ["Add"] * 4 + ["Reverse"] * 3 + ["What"] * 3 and starts != sorted(starts)
    assert {"prompt": "What is 0 plus 1?", "chosen": "0+1 = 1\n#### 1"}.keys() == rows[0].keys()
    capsys.readouterr()
    assert main(general(copies, work / "more", "parts.reference=15")) == EXIT_USER_ERROR
    assert main(general(copies | {"gsm8k": work / "none.jsonl"}, work / "more")) == EXIT_USER_ERROR
    few, absent = capsys.readouterr().err.splitlines()
    assert f"5 rows wanted, but 4 of 4 in {copies['leetcode']} are left" in few
    assert f"sources.gsm8k.path: {work / 'none.jsonl'}: no such file" in absent
    assert not list(work.glob("more/*.json*"))


@pytest.mark.skipif(not REAL.is_dir(), reason="needs ../shared/data")
def test_general_rows_of_real_ones(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copies = {
        "alpaca": REAL / "alpaca" / "alpaca_en_demo.json", "gsm8k": REAL / "gsm8k" / "train_400.jsonl",
        "leetcode": REAL / "humaneval" / "HumanEval.jsonl.gz",
    }  # fmt: skip
    test = REAL / "gsm8k" / "test_200.jsonl"
    assert main(general(copies, work / "out", "parts={reference: 450}", f"exclude=[{test}]")) == EXIT_DONE
    card, rows = read_json(work / "out" / "card.json"), rows_of(work / "out", "reference")
    assert {facts["rows"]["reference"] for facts in card["source"].values()} == {150}
    assert len({row["prompt"] for row in rows}) == 450 and all(row["chosen"].strip() for row in rows)
    functions = [row for row in rows if row["chosen"].startswith(row["prompt"])]
    assert len(functions) == 150 and all("def " in row["prompt"] and "return" in row["chosen"] for row in functions)
    capsys.readouterr()
    assert main(["check", str(work / "out"), "--against", str(test)]) == EXIT_DONE
    assert "no prompt in two files" in capsys.readouterr().out
    config = compose_config(
        ["data=files", f"data.safety={work / 'out' / 'reference.jsonl'}", "stage=sft", "method=baseline", "eval=quick"]
    )
    assert len(load_data(config).safety) == 450


@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_dir(), reason="needs ../shared/data")
def test_slices_of_the_real_data_sets(work: Path) -> None:
    test = REAL / "gsm8k" / "test_200.jsonl"
    gsm8k = build("gsm8k", REAL / "gsm8k" / "train_400.jsonl", work / "gsm8k", "parts.reference=200",
                  f"exclude=[{test}]")  # fmt: skip
    assert gsm8k["counts"]["read"] == 400
    assert not any("<<" in row["chosen"] for row in rows_of(work / "gsm8k", "reference"))
    halueval = build("halueval", REAL / "halueval" / "general_400.jsonl", work / "halueval", "parts.reference=200")
    assert halueval["counts"]["dropped"] == {"marked as a hallucination": 113}
    pairs = build(
        "ultrafeedback", REAL / "preference" / "dpo_en_demo_300.json", work / "pairs", "parts={reference: 100}"
    )
    assert pairs["counts"]["dropped"]["more than one turn"] == 186
    safety = build("safety_tuned_llamas", REAL / "safety_tuned_llamas" / "safety_only.json", work / "safety")
    assert safety["counts"]["read"] == 2483 and safety["counts"]["eligible"] == 2479
    assert safety["counts"]["dropped"]["of train, nearly in heldout"] == 2200 - safety["parts"]["train"]["rows"] > 0
    # HaluEval's general queries come from Alpaca.
    alpaca = build("alpaca", REAL / "alpaca" / "alpaca_en_demo.json", work / "alpaca",
                   f"exclude=[{work / 'halueval' / 'reference.jsonl'}]")  # fmt: skip
    assert {name: part["rows"] for name, part in alpaca["parts"].items()} == {
        "heldout": 100, "reference": 200, "general": 600
    }  # fmt: skip
    harmless = REAL / "hh_rlhf" / "harmless_base_test.jsonl.gz"
    alone = build("hh_rlhf", harmless, work / "hh", "parts.train=600", "several_turns=false")["counts"]
    assert alone["dropped"]["more than one turn"] == 1642
    both = build("hh_rlhf", harmless, work / "hh", "parts.train=600")["counts"]
    assert both["eligible"] > alone["eligible"] and "more than one turn" not in both["dropped"]
    assert main(["check", str(work), "--against", str(test), str(REAL / "ifeval")]) == EXIT_DONE
    report = read_json(work / "leakage.json")
    assert report["pairs"] == [] and len(report["files"]) == 11


@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_dir(), reason="needs ../shared/data")
def test_what_make_data_small_writes_is_enough_for_every_row(work: Path) -> None:
    # Its commands, with a random model of a few parameters, which answers in two bytes.
    for file in ("requirements.lock", "pyproject.toml", ".venv/.installed"):
        (work / file).parent.mkdir(exist_ok=True)
        (work / file).touch()
    save_tiny(work / "outputs/models/smollm2_135m", byte_tokenizer(), max_position_embeddings=1024)
    mark_complete(work / "outputs/models/smollm2_135m", {})
    # The look-alikes come with the repository, in which its rows are run.
    (work / "experiments").symlink_to(ROOT / "experiments")
    told = subprocess.run(
        ["make", "--silent", f"--file={ROOT / 'Makefile'}", "data-small", f"copies={REAL}",
         r"BUILD=printf '\nbuild\t'; printf '%s\t'"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    for line in told.splitlines()[1:]:
        words = line.rstrip("\t").split("\t")
        given = ["rejected.max_tokens=2"] if words[1] in ("alpaca", "safety_tuned_llamas") else []
        assert main([*words, *given]) == EXIT_DONE
    for row in sorted((ROOT / "conf/experiment/small").glob("*.yaml")):
        config = compose_config([f"+experiment=small/{row.stem}"])
        data = load_data(config)
        for stage in config.stages:
            wanted = 0.3 if config.method.name == "replay" else 0.0
            if isinstance(stage, GRPOSettings):
                wanted = stage.answerable_ratio if stage.answerable_sets else 0.0
            share = len(data.general.get(stage.name, [])) / len(data.safety)
            assert share == pytest.approx(wanted, abs=0.01)


def test_rows_that_a_model_could_not_train_on_are_left_out(work: Path) -> None:
    model = work / "model"
    save_tiny(model, byte_tokenizer())
    rows = [
        {"question": "Kept?", "answer": "yes"},
        {"question": "Long?", "answer": "x" * 30},
        {"question": "Wide?", "answer": "\u6f22" * 10},
        {"question": "Marked?", "answer": "a<end>b"},
        {"question": "p" * 60, "answer": "y"},
    ]
    source = write(work / "rows.jsonl", rows)
    fits = [f"fits.tokenizers=[{model}]", "fits.max_tokens=32", "parts={reference: 1}"]
    card = build("gsm8k", source, work / "out", *fits)
    assert card["counts"]["dropped"] == {
        f"with a mark of the model's turns ({model})": 1, f"of more than 32 tokens ({model})": 3,
    }  # fmt: skip
    assert [row["prompt"] for row in rows_of(work / "out", "reference")] == ["Kept?"]
    given = ["data=files", f"data.safety={work}/out/reference.jsonl", f"model.path={model}", "method=baseline"]
    config = compose_config(
        [*given, "stage=sft", "stage.max_length=32", "stage.batch_size=1", "stage.micro_batch_size=1"]
    )
    check_answers(config, load_data(config), byte_tokenizer())
    build("gsm8k", source, work / "out", "parts={reference: 5}")
    with pytest.raises(UserError) as refused:
        check_answers(config, load_data(config), byte_tokenizer())
    assert all("take the rows out (python -m ogpsa.data build does, given fits.tokenizers)" in line
               for line in refused.value.problems)  # fmt: skip


def test_prompts_alone_and_pairs_are_measured_by_every_tokenizer(work: Path) -> None:
    for name in ("one", "two"):
        save_tiny(work / name, byte_tokenizer())
    both = f"fits.tokenizers=[{work}/one,{work}/two]"
    pairs = [feedback_row(f"Tides {n}", (9.0, 1.0), (1.0, 1.0)) for n in range(3)]
    pairs[1]["completions"][1]["response"] = "w" * 90
    card = build("ultrafeedback", write(work / "pairs.jsonl", pairs), work / "pairs", both, "fits.max_tokens=40",
                 "parts={reference: 2}")  # fmt: skip
    assert card["counts"]["dropped"] == {f"of more than 40 tokens ({work}/one)": 1}
    source = write(work / "prompts.jsonl", [*safe_rows(4), safe_row("q" * 50, ("No.", True, 0), ("Yes.", False, 1))])
    card = build("safe_rlhf_prompts", source, work / "prompts", both, "fits.max_tokens=40", "parts={train: 4}")
    assert card["counts"]["dropped"] == {f"of more than 40 tokens ({work}/one)": 1}


def test_a_tokenizer_that_is_not_here_is_one_line(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(work / "rows.jsonl", [{"question": "a", "answer": "b"}])
    assert main(arguments("gsm8k", source, work / "out", "fits.tokenizers=[no/model]")) == EXIT_USER_ERROR
    assert capsys.readouterr().err.splitlines() == [
        "error: fits.tokenizers: no/model is neither a folder nor a model in the local hub cache"
    ]
