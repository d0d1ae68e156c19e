"""The benchmarks as lm-eval's tasks: what they ask of real and made-up rows, and the verdicts of their metrics."""

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eval.benchmarks.definition import TASKS, Benchmark, find_benchmarks
from eval.benchmarks.sources import load_rows
from eval.benchmarks.tasks.functions import ifeval_results
from eval.generation.questions import Questions
from eval.scores.groups import check_groups
from ogpsa.app.compose import compose_config
from tests.eval.local_mirror import write_mirror, write_tokenizer

SHARED = Path(__file__).parents[4] / "shared" / "data"
GENERAL = sorted(file.stem for file in (TASKS / "general").glob("[!_]*.yaml"))
SAFETY = sorted(file.stem for file in (TASKS / "safety").glob("[!_]*.yaml"))
Make = Callable[[str], tuple[list[dict[str, Any]], Questions]]


def benchmark(name: str) -> Benchmark:
    [found] = find_benchmarks([name])
    return found


def template(messages: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
    text = "".join(f"<{message['role']}>{message['content']}" for message in messages)
    return text + "<assistant>" * add_generation_prompt


@pytest.fixture
def mirrored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    monkeypatch.setenv("HF_ALLOW_CODE_EVAL", "1")
    folder = write_mirror(tmp_path)

    def make(name: str) -> tuple[list[dict[str, Any]], Questions]:
        rows = load_rows(benchmark(name), folder)
        return rows, Questions(benchmark(name), rows, template)

    return make


def real(name: str, file: str, tmp_path: Path) -> tuple[list[dict[str, Any]], Questions]:
    source = SHARED / file
    if not source.is_file():
        pytest.skip(f"no {file} in {SHARED}")
    content = source.read_bytes()
    packed = source.suffix == ".gz"
    ending = ".jsonl" if packed else source.suffix
    (tmp_path / f"{name}{ending}").write_bytes(gzip.decompress(content) if packed else content)
    write_tokenizer(tmp_path / "nltk_data")
    rows = load_rows(benchmark(name), tmp_path)
    return rows, Questions(benchmark(name), rows, template)


@pytest.mark.parametrize("name", [*GENERAL, *SAFETY])
def test_every_row_is_asked_in_full(name: str, mirrored: Make) -> None:
    rows, questions = mirrored(name)
    assert [question.row_id for question in questions.all] == [row["id"] for row in rows]
    choice = benchmark(name).task["output_type"] == "multiple_choice"
    for row, question in zip(rows, questions.all, strict=True):
        assert all(row["prompt"].split("\n")[0] in "".join(map(str, request.args)) for request in question.requests)
        assert choice == (len(question.requests) > 1)
    assert len({question.key for question in questions.all}) == len(rows)


@pytest.mark.parametrize("name", [*GENERAL, *SAFETY])
def test_settings_are_pinned(name: str) -> None:
    task = benchmark(name).task
    assert task["num_fewshot"] == 0
    if benchmark(name).generates:
        assert task["generation_kwargs"]["do_sample"] is False
        assert task["generation_kwargs"]["max_gen_toks"] >= 256
        assert "until" in task["generation_kwargs"]


@pytest.mark.parametrize("name", SAFETY)
def test_a_request_is_the_whole_prompt(name: str, mirrored: Make) -> None:
    rows, questions = mirrored(name)
    assert [question.requests[0].args[0] for question in questions.all] == [
        f"<user>{row['prompt']}<assistant>" for row in rows
    ]


UNLISTED = {"humaneval", "malicious_instructions", "physical_safety_unsafe"}


def test_the_lists_hold_every_benchmark_but_three() -> None:
    names = ("paper", "quick", "small", "broad")
    paper, quick, small, broad = (compose_config([f"eval={name}"]).eval for name in names)
    assert {*quick.benchmarks} < {*paper.benchmarks}
    assert {*paper.benchmarks, *small.benchmarks, *broad.benchmarks} == {*GENERAL, *SAFETY} - UNLISTED
    assert {found.judge for found in check_groups(small) if found.generates} == {"refusal_rules"}
    # Nothing but responses, which a server of chat completions gives, and no judge that asks somebody.
    assert all(found.generates for found in check_groups(broad))
    assert {found.judge for found in check_groups(broad)} == {"refusal_rules", "lm_eval"}
    judges = {found.name: found.judge for found in check_groups(paper)}
    paper_safety = [name for name in SAFETY if name in judges]
    assert {judges[name] for name in paper_safety} == {"strongreject_rubric", "xstest_rubric"}
    assert judges["simpleqa"] == "simpleqa_grader"
    offline = {found.name: found.judge for found in check_groups(quick)}
    assert {offline[name] for name in paper_safety if name in offline} == {"refusal_rules"}
    # A new user has what it takes: no licence to accept, no key, no attacks to make.
    assert all(found.source and not found.source.gated for found in check_groups(quick))
    assert offline["simpleqa"] == "answer_match"
    assert (quick.limit, quick.sample_seed, paper.limit) == (100, 0, None)


CHOICES = [name for name in GENERAL if benchmark(name).task["output_type"] == "multiple_choice"]


@pytest.mark.parametrize("name", CHOICES)
def test_the_likeliest_option_is_the_answer(name: str, mirrored: Make) -> None:
    rows, questions = mirrored(name)
    metric = benchmark(name).metric
    assert metric is not None
    right: dict[str, Any] = {}
    wrong: dict[str, Any] = {}
    for row, question in zip(rows, questions.all, strict=True):
        options = [str(request.args[1]).strip() for request in question.requests]
        place = options.index(row["target"])
        chosen = [0.0 if index == place else -9.0 for index in range(len(options))]
        right[row["id"]] = {"options": chosen, "greedy": [False] * len(options)}
        wrong[row["id"]] = {"options": [-value for value in chosen], "greedy": [False] * len(options)}
    assert [found[metric] for found in questions.metrics(right)] == [1.0] * len(rows)
    assert [found[metric] for found in questions.metrics(wrong)] == [0.0] * len(rows)


def test_mmlu_says_the_subject(mirrored: Make) -> None:
    _, questions = mirrored("mmlu")
    asked = str(questions.all[1].requests[0].args[0])
    assert asked.startswith("<system>The following are multiple choice questions (with answers) about world religions.")
    assert asked.endswith("\nD. white thing\nAnswer:<assistant>".replace("white", "brown"))
    assert [request.args[1] for request in questions.all[1].requests] == ["A", "B", "C", "D"]


@pytest.mark.slow
def test_advglue_asks_each_part_in_its_own_words(tmp_path: Path) -> None:
    rows, questions = real("advglue", "adv_glue/dev.json", tmp_path)
    asked = {row["part"]: str(question.requests[0].args[0]) for row, question in zip(rows, questions.all, strict=True)}
    lines = {
        part: text.removesuffix("\nAnswer with one word.<assistant>").splitlines()[-1] for part, text in asked.items()
    }
    assert len(asked) == 6
    for part, line in lines.items():
        assert all(choice in line for choice in next(row["choices"] for row in rows if row["part"] == part))
    for row, question in zip(rows, questions.all, strict=True):
        assert row["first"] in str(question.requests[0].args[0])
        assert row["second"] in str(question.requests[0].args[0])


def test_gsm8k_reads_the_last_number(tmp_path: Path) -> None:
    rows, questions = real("gsm8k", "gsm8k/test_200.jsonl", tmp_path)
    metric = "exact_match,flexible-extract"

    def scores(response: Callable[[dict[str, Any]], str]) -> list[float]:
        answers = {row["id"]: {"response": response(row)} for row in rows}
        return [found[metric] for found in questions.metrics(answers)]

    assert set(scores(lambda row: f"First 12, then 3. So she has ${row['target']}.")) == {1.0}
    assert set(scores(lambda row: row["answer"])) == {1.0}
    assert set(scores(lambda row: f"It is {row['target']}. No, it is 987654321.")) == {0.0}
    assert set(scores(lambda row: "I cannot say.")) == {0.0}


def test_ifeval_checks_the_instructions(tmp_path: Path) -> None:
    rows, _ = real("ifeval", "ifeval/input_data.jsonl", tmp_path)
    rows = rows[:200]
    questions = Questions(benchmark("ifeval"), rows, template)

    def found(response: str) -> dict[str, dict[str, float]]:
        metrics = questions.metrics({row["id"]: {"response": response} for row in rows})
        return {row["id"]: found for row, found in zip(rows, metrics, strict=True)}

    no_comma = [row["id"] for row in rows if row["instruction_id_list"] == ["punctuation:no_comma"]]
    quoted = [row["id"] for row in rows if row["instruction_id_list"] == ["startend:quotation"]]
    assert no_comma and quoted
    strict, loose = "prompt_level_strict_acc,none", "prompt_level_loose_acc,none"
    right, wrong = found('"A lamp stands here."'), found("A lamp, green, stands here.\nA lamp.")
    assert {right[name][strict] for name in [*no_comma, *quoted]} == {1.0}
    assert {wrong[name][strict] for name in [*no_comma, *quoted]} == {0.0}
    # The loose reading may drop the first line.
    assert {wrong[name][loose] for name in no_comma} == {1.0}
    assert {wrong[name][loose] for name in quoted} == {0.0}
    for row in rows:
        assert right[row["id"]]["instructions,none"] == len(row["instruction_id_list"])
        followed = right[row["id"]]["followed_strict,none"] == len(row["instruction_id_list"])
        assert right[row["id"]][strict] == float(followed)


def test_the_language_of_a_short_response_is_not_left_to_chance() -> None:
    document = {
        "key": 1, "prompt": "Answer in Italian.", "instruction_id_list": ["language:response_language"],
        "kwargs": [{"language": "it"}],
    }  # fmt: skip
    found = [ifeval_results(document, ["do re mi lamp"])["followed_strict"] for _ in range(40)]
    assert len(set(found)) == 1


@pytest.mark.slow
def test_humaneval_runs_the_tests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ALLOW_CODE_EVAL", "1")
    rows, _ = real("humaneval", "humaneval/HumanEval.jsonl.gz", tmp_path)
    rows = rows[:6]
    questions = Questions(benchmark("humaneval"), rows, template)
    asked = str(questions.all[0].requests[0].args[0])
    assert asked.count(rows[0]["prompt"]) == 2 and not asked.endswith("<assistant>")

    def passed(response: Callable[[dict[str, Any]], str]) -> list[float]:
        answers = {row["id"]: {"response": response(row)} for row in rows}
        return [found["pass_at_1,none"] for found in questions.metrics(answers)]

    assert passed(lambda row: f"{row['target']}```\nThat is all.") == [1.0] * 6
    assert passed(lambda row: "    return None\n```") == [0.0] * 6
    broken = [
        "    while True: pass\n",
        "    import os; os._exit(1)\n",
        "    return (\n",
        "",
        "    raise SystemExit",
        "    open('x', 'w').write('1')\n",
    ]
    assert passed(lambda row: broken[int(row["id"].rpartition("/")[2])]) == [0.0] * 6
