"""Which prompts occur twice, against a slow search that compares every pair."""

import gzip
import json
import random
from itertools import product
from pathlib import Path

import pytest

from ogpsa.data.__main__ import main
from ogpsa.data.leakage import BLOCK, WIDTH, duplicates, normalised
from ogpsa.utils.errors import EXIT_DONE, EXIT_USER_ERROR
from ogpsa.utils.files import read_json, write_jsonl


def shingles(text: str) -> set[str]:
    text = normalised(text).ljust(WIDTH)
    return {text[start : start + WIDTH] for start in range(len(text) - WIDTH + 1)}


def every_pair(left: list[str], right: list[str], threshold: float) -> dict[tuple[int, int], float]:
    found = {}
    for (i, a), (j, b) in product(enumerate(left), enumerate(right)):
        ours, theirs = shingles(a), shingles(b)
        similarity = 1.0 if normalised(a) == normalised(b) else len(ours & theirs) / len(ours | theirs)
        if similarity >= threshold:
            found[i, j] = similarity
    return found


def texts(seed: int, count: int) -> list[str]:
    """Texts of few words, some of which differ from others in a letter, in case or in spaces."""
    source = random.Random(seed)
    words = ["tide", "moon", "harbour", "why", "does", "the", "rise", "in", "ten", "hours", "é", "of"]
    made = [" ".join(source.choices(words, k=source.randint(0, 14))) for _ in range(count)]
    shared = random.Random(99)
    base = [" ".join(shared.choices(words, k=12)) for _ in range(count // 2)]
    for text in base:
        place = source.randrange(len(text))
        made.append(source.choice([text, text.upper() + "?", f" {text}  ", text[:place] + "x" + text[place:]]))
    return made


@pytest.mark.parametrize("threshold", [0.3, 0.8, 1.0])
def test_every_similar_pair_is_found_and_no_other(threshold: float) -> None:
    left, right = texts(1, 60), texts(2, 60)
    found = {(pair.left, pair.right): pair.similarity for pair in duplicates(left, right, threshold)}
    assert found == pytest.approx(every_pair(left, right, threshold))
    assert len(found) > 20


def test_many_equal_texts_are_found_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert BLOCK > 30
    monkeypatch.setattr("ogpsa.data.leakage.BLOCK", 7)
    left, right = texts(1, 30), texts(2, 30)
    assert {(pair.left, pair.right) for pair in duplicates(left, right, 0.8)} == set(every_pair(left, right, 0.8))


def test_what_counts_as_equal() -> None:
    same = ["How high is it?", "how  HIGH is it", "\uff28ow high is it ?", "how high is it.\n"]
    assert all(pair.exact for pair in duplicates(same, same, 0.9)) and len(duplicates(same, same, 0.9)) == 16
    assert duplicates(["What is 2+2?"], ["What is 2-2?"], 1.0) == []
    assert duplicates([], ["a"], 0.5) == duplicates(["a"], [], 0.5) == []
    [pair] = duplicates(["\ud800 half a character"], ["\ud800 half a character"], 0.9)
    assert pair.exact


def write(file: Path, prompts: list[str], column: str = "prompt") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps({column: prompt}) + "\n" for prompt in prompts), encoding="utf-8")


def test_compressed_tables_in_a_folder_are_read_too(tmp_path: Path) -> None:
    write(tmp_path / "data" / "rows.jsonl", ["How do the tides work?"])
    row = json.dumps({"prompt": "how do the tides work"})
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "test.jsonl.gz").write_bytes(gzip.compress(row.encode()))
    assert main(["check", str(tmp_path / "data"), "--against", str(tmp_path / "benchmarks")]) == EXIT_DONE
    [pair] = read_json(tmp_path / "data" / "leakage.json")["pairs"]
    assert pair["rows"][0]["exact"]


def test_what_our_own_commands_write_beside_the_rows_is_no_table(tmp_path: Path) -> None:
    write(tmp_path / "data" / "rows.jsonl", ["How do the tides work?"])
    folder = tmp_path / "benchmarks"
    write(folder / "test.jsonl", ["How do the tides work?"])
    for name in ("strongreject_pair.attack.json", "prefetch.json", "card.json"):
        (folder / name).write_text('{"attack": "pair"}')
    for name in ("nltk_data/tokenizers/english/abbrev_types.txt", "prompts/judge.txt"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text("How do the tides work?\n")
    assert main(["check", str(tmp_path / "data"), "--against", str(folder)]) == EXIT_DONE
    [pair] = read_json(tmp_path / "data" / "leakage.json")["pairs"]
    assert pair["rows"][0]["exact"] and "test.jsonl" in str(pair)


def test_the_report_names_files_and_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    built, benchmarks = tmp_path / "data", tmp_path / "benchmarks"
    write(built / "safety" / "train.jsonl", ["How do the tides work?", "A prompt of its own", "How do the tides work"])
    write(built / "general" / "reference.jsonl", ["Something else entirely", "how do the tides WORK?"])
    write(benchmarks / "tides.jsonl", ["Why do the tides rise and fall at the harbour?"], "forbidden_prompt")
    write(built / "general" / "general.jsonl", ["Why do the tides rise and fall at that harbour?"])
    (built / "safety" / "card.json").write_text('{"name": "no table"}')
    for _ in range(2):
        # The second time, the report of the first is there.
        assert main(["check", str(built), "--against", str(benchmarks), str(built)]) == EXIT_DONE
        report = read_json(built / "leakage.json")
        assert len(report["files"]) == 4
        first, second = report["pairs"]
        assert (first["exact"], first["near"], second["exact"], second["near"]) == (0, 1, 2, 0)
        assert first["left"].endswith("general.jsonl") and first["right"].endswith("tides.jsonl")
        assert second["rows"] == [
            {"left": 2, "right": 1, "similarity": 1.0, "exact": True},
            {"left": 2, "right": 3, "similarity": 1.0, "exact": True},
        ]
    assert "2 equal,      0 near" in capsys.readouterr().out


def test_requests_in_one_list_and_lines_of_text_are_compared(tmp_path: Path) -> None:
    write(tmp_path / "data" / "train.jsonl", ["May I eat rice?", "The moon rose."])
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "safe.json").write_text('{"instructions": ["May I eat rice"]}')
    (tmp_path / "benchmarks" / "plain.txt").write_text("The moon rose\n")
    assert main(["check", str(tmp_path / "data"), "--against", str(tmp_path / "benchmarks")]) == EXIT_DONE
    found = read_json(tmp_path / "data" / "leakage.json")["pairs"]
    assert [Path(pair["right"]).name for pair in found if pair["exact"]] == ["safe.json", "plain.txt"]


def test_alpacas_form_is_compared_as_it_is_built(tmp_path: Path) -> None:
    write(tmp_path / "data" / "train.jsonl", ["Add the numbers.\n\n1 and 2", "Name a colour."])
    rows = [
        {"instruction": "Add the numbers.", "input": "1 and 2"},
        {"instruction": "Add the numbers.", "input": "three hundred and four"},
        {"instruction": "Name a colour.", "input": ""},
    ]
    write_jsonl(tmp_path / "alpaca.jsonl", rows)
    against = ["--against", str(tmp_path / "alpaca.jsonl")]
    assert main(["check", str(tmp_path / "data"), *against]) == EXIT_DONE
    [pair] = read_json(tmp_path / "data" / "leakage.json")["pairs"]
    assert [(row["left"], row["right"]) for row in pair["rows"]] == [(1, 1), (2, 3)]


def test_a_column_is_that_of_files_without_one_of_ours(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "data" / "train.jsonl", [{"prompt": "What is it?", "chosen": "A bird"}])
    human = [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "A cat"}]
    for row in ({"query": "What is it?"}, {"query": human}):
        write_jsonl(tmp_path / "own.jsonl", [row])
        command = ["check", str(tmp_path / "data"), "--against", str(tmp_path / "own.jsonl"), "--column", "query"]
        assert main(command) == EXIT_DONE
        [pair] = read_json(tmp_path / "data" / "leakage.json")["pairs"]
        assert pair["exact"] == 1


def test_a_file_without_prompts_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "a.jsonl", ["one"])
    write(tmp_path / "b.jsonl", ["two"], "promt")
    assert main(["check", str(tmp_path)]) == EXIT_USER_ERROR
    assert "b.jsonl: row 1 has no text in" in capsys.readouterr().err
    assert main(["check", str(tmp_path / "a.jsonl")]) == EXIT_USER_ERROR
    assert "name others with --against" in capsys.readouterr().err
    assert main(["check", str(tmp_path / "b.jsonl"), "--against", str(tmp_path / "a.jsonl"), "--column", "prompt"]) == 2
    assert "did you mean 'promt'?" in capsys.readouterr().err
