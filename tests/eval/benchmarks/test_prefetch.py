"""Fetching rows into a folder, from stand-ins for the hub: folders laid out like one, and a server on loopback."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from eval.benchmarks import listing
from eval.benchmarks.definition import TASKS, Benchmark, find_benchmarks
from eval.benchmarks.prefetch import RECORD, fetch_tokenizer, prefetch
from eval.benchmarks.sources import MissingData, data_hash, find_tokenizer, load_rows
from eval.judging.published import fetch_prompts, longest_text
from eval.prefetch import main
from ogpsa.data.readers import read_table
from ogpsa.utils.command_line import run_program
from ogpsa.utils.files import exclusive
from tests.eval.local_mirror import advglue, write_mirror, write_tokenizer

ROOT = Path(__file__).parents[3]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for data sets; what is loaded from there is cached beside it."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "hub"
    folder.mkdir()
    return folder


def published(name: str, hub: str, **changes: Any) -> Benchmark:
    """The benchmark, its rows published at ``hub``."""
    [benchmark] = find_benchmarks([name])
    assert benchmark.source is not None
    given = {"config": None, "revision": None, "count": None, "gated": None} | changes
    return replace(benchmark, source=replace(benchmark.source, hub=hub, **given))


def data_set(folder: Path, rows: dict[str, list[dict[str, Any]]], split: str) -> str:
    """A data set's folder with one configuration for each list of rows."""
    configs = ""
    for name, part in rows.items():
        (folder / name).mkdir(parents=True)
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(part), folder / name / f"{split}.parquet")
        configs += f"- config_name: {name}\n  data_files:\n  - split: {split}\n    path: {name}/{split}.parquet\n"
    (folder / "README.md").write_text(f"---\nconfigs:\n{configs}---\n", encoding="utf-8")
    return str(folder)


@pytest.mark.parametrize(
    "name",
    [
        "mmlu",
        "gsm8k",
        "hhh",
        "gpqa",
        "stereotype",
        "wildchat_toxic",
        "xstest_safe",
        "ifeval",
        "sorry_bench",
        "mmlu_pro",
    ],
)
def test_a_data_set_of_the_hub_becomes_a_file_of_our_rows(name: str, hub: Path, tmp_path: Path) -> None:
    mirror = write_mirror(tmp_path / "mirror")
    [benchmark] = find_benchmarks([name])
    raw = next(read_table(file) for file in mirror.glob(f"{name}.*"))
    assert benchmark.source is not None
    place = data_set(hub / name, {"main": raw}, benchmark.source.split)
    out = tmp_path / "out"
    write_tokenizer(out / "nltk_data")
    assert prefetch([published(name, place, config="main")], out) == []
    rows = read_table(out / f"{name}.jsonl")
    assert rows == load_rows(benchmark, mirror)
    record = json.loads((out / RECORD).read_text())[name]
    assert (record["hub"], record["rows"], record["data_hash"]) == (place, len(rows), data_hash(rows))


def test_all_benchmarks_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_mirror(tmp_path)
    assert listing.main([f"data_dir={tmp_path}"]) == 0
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    found = {line[0]: line[1:] for line in lines[2:]}
    assert list(found) == sorted(file.stem for file in TASKS.rglob("[!_]*.yaml"))
    assert found["wildjailbreak_benign"] == [
        "210", "ODC-BY", "gated", "refusal_rules", "allenai/wildjailbreak eval train", "wildjailbreak_benign.jsonl",
    ]  # fmt: skip
    assert found["advbench"][4] == "raw.githubusercontent.com/llm-attacks/llm-attacks"
    assert found["facts"][-1] == ""
    assert run_program(lambda: listing.main(["data-dir=x"])) == 2
    assert "did you mean 'data_dir'?" in capsys.readouterr().err


def test_a_table_of_the_hub_may_be_separated_by_tabs(hub: Path, tmp_path: Path) -> None:
    (hub / "README.md").write_text("---\nconfigs:\n- config_name: eval\n  data_files: eval/eval.tsv\n---\n")
    (hub / "eval").mkdir()
    table = 'adversarial\tlabel\tdata_type\nPolish, "please"\t1\tadversarial_harmful\nShine\t0\tadversarial_benign\n'
    (hub / "eval" / "eval.tsv").write_text(table)
    benchmarks = [published(f"wildjailbreak_{kind}", str(hub), config="eval") for kind in ("harmful", "benign")]
    assert prefetch(benchmarks, tmp_path) == []
    prompts = [[row["prompt"] for row in read_table(tmp_path / f"{found.rows}.jsonl")] for found in benchmarks]
    assert prompts == [['Polish, "please"'], ["Shine"]]


def test_the_parts_of_advglue_become_one_file(hub: Path, tmp_path: Path) -> None:
    names = {"sst2": "adv_sst2", "qqp": "adv_qqp", "mnli": "adv_mnli", "mnli-mm": "adv_mnli_mismatched"}
    parts = {names[part]: rows for part, rows in advglue(12).items() if part in names}
    benchmark = published("advglue", data_set(hub / "adv", parts, "validation"), config=", ".join(parts))
    assert prefetch([benchmark], tmp_path) == []
    assert Counter(row["part"] for row in read_table(tmp_path / "advglue.jsonl")) == dict.fromkeys(names, 2)


def test_unavailable_rows_are_reported_and_the_rest_is_fetched(hub: Path, tmp_path: Path) -> None:
    rows = [{"question": "q", "answer": "#### 3"}]
    place = data_set(hub / "gsm8k", {"main": rows}, "test")
    gated = "https://example.org/ask"
    missing = prefetch(
        [
            published("gpqa", "example/gated-set", gated=gated),
            published("hhh", str(hub / "absent")),
            published("mmlu", place, config="main"),
            published("simpleqa", place, config="another"),
            published("stereotype", place, config="main", split="nowhere"),
            published("gsm8k", place, config="main"),
            published("xstest_safe", "https://example.org/xstest.csv"),
        ],
        tmp_path,
    )
    assert [line.partition(":")[0] for line in missing] == [
        "gpqa", "hhh", "mmlu", "simpleqa", "stereotype", "xstest_safe",
    ]  # fmt: skip
    assert gated in missing[0]
    assert "no column subject, choices" in missing[2]
    assert all("\n" not in line for line in missing)
    assert [file.name for file in tmp_path.glob("*.jsonl")] == ["gsm8k.jsonl"]


def test_a_set_of_another_size_is_not_used(hub: Path, tmp_path: Path) -> None:
    place = data_set(hub / "gsm8k", {"main": [{"question": "q", "answer": "#### 3"}]}, "test")
    [line] = prefetch([published("gsm8k", place, config="main", count=1319)], tmp_path)
    assert "1 rows where the benchmark has 1319" in line
    assert not (tmp_path / "gsm8k.jsonl").exists()


def test_a_users_own_file_stays(tmp_path: Path) -> None:
    write_mirror(tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir() if file.is_file()}
    assert main(["eval=paper", f"data_dir={tmp_path}"]) == 0
    (tmp_path / ".prefetch.lock").unlink()
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir() if file.is_file()} == before


@contextmanager
def server(folder: Path, slow: str = "") -> Iterator[tuple[str, list[str]]]:
    """A web server of a folder's files, and the names it was asked for; ``slow`` is never sent in full."""
    asked: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(folder))

        def do_GET(self) -> None:
            asked.append(self.path.removeprefix("/"))
            if asked[-1] == slow and asked.count(slow) == 1:
                time.sleep(60)
                return
            super().do_GET()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    running.daemon_threads = True
    threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield f"http://127.0.0.1:{running.server_address[1]}", asked
    running.shutdown()


FETCH_BOTH = """
import sys
from pathlib import Path
from eval.benchmarks.prefetch import prefetch
from tests.eval.benchmarks.test_prefetch import published
names = {"simpleqa": "simpleqa.csv", "strongreject_none": "strongreject.csv", "xstest_safe": "xstest_safe.csv"}
print(prefetch([published(name, f"{sys.argv[1]}/{file}") for name, file in names.items()], Path(sys.argv[2])))
"""


@pytest.mark.slow
def test_a_killed_fetch_resumes(tmp_path: Path) -> None:
    mirror, out = write_mirror(tmp_path / "mirror"), tmp_path / "out"
    command = [sys.executable, "-c", FETCH_BOTH]
    environment = {**os.environ, "HF_HUB_OFFLINE": "0"}
    with server(mirror, slow="strongreject.csv") as (url, asked):
        first = subprocess.Popen([*command, url, str(out)], cwd=ROOT, env=environment)
        deadline = time.monotonic() + 60
        while "strongreject.csv" not in asked and time.monotonic() < deadline:
            time.sleep(0.05)
        first.send_signal(signal.SIGKILL)
        assert first.wait() == -signal.SIGKILL
        assert [file.name for file in out.glob("*.jsonl")] == ["simpleqa.jsonl"]
        for _ in range(2):
            subprocess.run([*command, url, str(out)], cwd=ROOT, env=environment, check=True)
    assert Counter(asked) == {"simpleqa.csv": 1, "strongreject.csv": 2, "xstest_safe.csv": 1}
    for name in ("simpleqa", "strongreject_none", "xstest_safe"):
        [benchmark] = find_benchmarks([name])
        assert load_rows(benchmark, out) == load_rows(benchmark, mirror)


def test_a_file_that_is_gone_or_damaged_or_of_another_source_is_fetched_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    mirror, file = write_mirror(tmp_path / "mirror"), tmp_path / "simpleqa.jsonl"
    with server(mirror) as (url, asked):
        benchmark = published("simpleqa", f"{url}/simpleqa.csv")
        assert prefetch([benchmark], tmp_path) == []
        whole = file.read_bytes()
        for times, damage in enumerate((file.unlink, lambda: file.write_bytes(whole[:50])), start=2):
            damage()
            assert prefetch([benchmark], tmp_path) == []
            assert file.read_bytes() == whole
            assert len(asked) == times
        digest = json.loads((tmp_path / RECORD).read_text())["simpleqa"]["revision"]
        assert prefetch([published("simpleqa", f"{url}/simpleqa.csv", revision=digest)], tmp_path) == []
        assert len(asked) == 4
        [line] = prefetch([published("simpleqa", f"{url}/simpleqa.csv", revision="0" * 64)], tmp_path)
        assert digest in line
        assert file.read_bytes() == whole


def test_without_a_network_nothing_is_asked_for(tmp_path: Path) -> None:
    with server(tmp_path) as (url, asked), pytest.raises(MissingData, match="HF_HUB_OFFLINE"):
        load_rows(published("simpleqa", f"{url}/simpleqa.csv"), tmp_path / "nothing")
    assert asked == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["benchmark=gsm8k"],
            "benchmark: unknown key; allowed: eval, benchmarks, data_dir, task_dir, prompts; did you mean",
        ),
        (["gsm8k"], "'gsm8k': expected KEY=VALUE"),
        (["benchmarks=gsm9k"], "unknown benchmark 'gsm9k'"),
        (["benchmarks="], "expected KEY=VALUE"),
        (["benchmarks=facts"], "nobody publishes the rows of facts"),
        (["eval=papr"], "'papr' is not an option"),
        (["prompts=yes"], "prompts: found 'yes'; allowed: true, false"),
        (["data_dir=/dev/null/x"], "data_dir: "),
        (["eval=testbed", "benchmarks=gsm8k"], "data_dir: eval=testbed names no folder"),
    ],
)
def test_mistakes_are_named(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_program(lambda: main(arguments)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error


def test_what_is_missing_at_the_end_is_the_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_mirror(tmp_path)
    (tmp_path / "gpqa.csv").unlink()
    (tmp_path / "strongreject_pair.jsonl").unlink()
    assert run_program(lambda: main([f"data_dir={tmp_path}"])) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[:2] for line in lines] == [["missing", "strongreject_pair"], ["missing", "gpqa"]]


def test_prompts_are_taken_from_texts_and_programs(tmp_path: Path) -> None:
    program = 'x = "short"\ndef ask(row):\n    return f"""Judge it.\n{row.prompt}\n{row["completion"]}\n{target}"""\n'
    (tmp_path / "grader.py").write_text(program, encoding="utf-8")
    (tmp_path / "rubric.txt").write_text("Grade {response}", encoding="utf-8")
    (tmp_path / "broken.py").write_text("def (", encoding="utf-8")
    prompts = {
        name.partition(".")[0]: f"file://{tmp_path / name}"
        for name in ("grader.py", "rubric.txt", "broken.py", "no.txt")
    }
    missing = fetch_prompts(tmp_path / "out", prompts)
    assert [line.partition(":")[0] for line in missing] == ["broken", "no"]
    assert (tmp_path / "out" / "grader.txt").read_text() == "Judge it.\n{prompt}\n{completion}\n{target}"
    assert (tmp_path / "out" / "rubric.txt").read_text() == "Grade {response}"
    (tmp_path / "out" / "rubric.txt").write_text("mine", encoding="utf-8")
    fetch_prompts(tmp_path / "out", prompts)
    assert (tmp_path / "out" / "rubric.txt").read_text() == "mine"


def test_a_download_that_is_cut_off_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import nltk

    monkeypatch.setattr(nltk.data, "path", [])
    monkeypatch.setenv("no_proxy", "*")

    def cut_off(listening: socket.socket) -> None:
        for _ in range(2):
            connection, _ = listening.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf")

    [benchmark] = find_benchmarks(["ifeval"])
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"http://127.0.0.1:{listening.getsockname()[1]}/rubric.txt"
        thread = threading.Thread(target=cut_off, args=(listening,), daemon=True)
        thread.start()
        [line] = fetch_prompts(tmp_path, {"rubric": address})
        with pytest.raises(MissingData, match="cannot be fetched"):
            fetch_tokenizer(benchmark, tmp_path, address)
        thread.join()
    assert line.startswith(f"rubric: {address} cannot be fetched (IncompleteRead")
    assert not any(tmp_path.iterdir())


def test_two_fetches_do_not_lose_each_others_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with exclusive(tmp_path / ".prefetch.lock", "busy"):
        assert run_program(lambda: main([f"data_dir={tmp_path}"])) == 2
    assert f"another process fetches into {tmp_path}" in capsys.readouterr().err


def test_the_longest_text_of_a_program_without_any() -> None:
    assert longest_text("x = 1") == ""


def test_the_tokenizer_is_taken_from_its_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import nltk

    monkeypatch.setattr(nltk.data, "path", [])
    [benchmark] = find_benchmarks(["ifeval"])
    archive, out = tmp_path / "punkt_tab.zip", tmp_path / "out"
    with pytest.raises(MissingData, match=r"^ifeval: NLTK's punkt_tab cannot be fetched"):
        fetch_tokenizer(benchmark, out, f"file://{archive}")
    archive.write_bytes(b"no archive")
    with pytest.raises(MissingData, match="cannot be fetched"):
        fetch_tokenizer(benchmark, out, f"file://{archive}")
    assert not find_tokenizer(out)
    write_tokenizer(tmp_path / "source")
    with zipfile.ZipFile(archive, "w") as packed:
        for file in (tmp_path / "source" / "tokenizers").rglob("*.*"):
            packed.write(file, file.relative_to(tmp_path / "source" / "tokenizers"))
    fetch_tokenizer(benchmark, out, f"file://{archive}")
    assert find_tokenizer(out)
    archive.unlink()
    fetch_tokenizer(benchmark, out, f"file://{archive}")
    write_mirror(tmp_path / "mirror")
    (out / "ifeval.jsonl").write_bytes((tmp_path / "mirror" / "ifeval.jsonl").read_bytes())
    assert len(load_rows(benchmark, out)) == 6
