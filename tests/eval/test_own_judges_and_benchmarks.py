"""Judges and benchmarks of one's own: files in folders that the settings name, and nothing else."""

import csv
import json
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from eval.__main__ import main
from eval.benchmarks.definition import find_benchmarks
from eval.benchmarks.sources import load_rows
from eval.generation.questions import Questions
from eval.validate import check_evaluation, check_run
from ogpsa.app.compose import compose_config
from ogpsa.data.rows import load_data
from ogpsa.utils.errors import EXIT_DONE, EXIT_USER_ERROR, UserError
from ogpsa.utils.json_text import parse_json
from tests.endpoint_server import Reply, Request, serve
from tests.program import ROOT
from tests.tiny import byte_tokenizer, tiny_model

RULE = '''"""Whether the response has an even number of characters."""

from eval.judging.judge import Item, RuleJudge, Verdict


def rule(item: Item) -> Verdict:
    even = len(item.response) % 2 == 0
    return Verdict("even" if even else "odd", float(even), detail={"target": item.target})


JUDGE = RuleJudge(metric="accuracy", rule=rule, needs_target=True)
'''
PROMPTED = '''"""Whether a model finds the response friendly."""

from eval.judging.judge import PromptJudge, Verdict, missing


def parse(reply: str) -> Verdict:
    return Verdict(reply, float(reply == "friendly")) if reply in ("friendly", "curt") else missing("unparsed")


JUDGE = PromptJudge(metric="accuracy", parse=parse, max_tokens=8)
'''
TASK = """
task: capitals
test_split: test
output_type: generate_until
num_fewshot: 0
doc_to_text: prompt
doc_to_target: target
generation_kwargs: {do_sample: false, until: [], max_gen_toks: 8}
metric_list:
  - {metric: bypass, aggregation: bypass, higher_is_better: true}
metadata: {version: 1.0, judge: evenness, rows: capitals, category: half}
"""
CONVERSION = """
from eval.benchmarks.converters import Conversion


def convert(published):
    for row in published:
        yield {"id": row["land"], "prompt": f"The capital of {row['land']}?", "target": row["city"]}


cities = Conversion(columns=("land", "city"), extra=(), rows=convert)
"""
CAPITALS = {"France": "Paris", "Japan": "Tokyo", "Chile": "Santiago", "Kenya": "Nairobi"}
HALVES = {"France": "north", "Japan": "north", "Chile": "south", "Kenya": "south"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own") / "model"
    tokenizer = byte_tokenizer()
    tiny_model(tokenizer, seed=4, initializer_range=0.3).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def own(tmp_path: Path) -> Path:
    for name, text in {
        "judges/evenness.py": RULE,
        "judges/friendliness.py": PROMPTED,
        "judges/friendliness.txt": "Is this friendly?\n{prompt}\n{response}\n",
        "tasks/capitals.yaml": TASK,
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    rows = [
        {"id": land, "prompt": f"The capital of {land}?", "target": city, "half": HALVES[land]}
        for land, city in CAPITALS.items()
    ]
    (tmp_path / "capitals.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return tmp_path


def evaluate(own: Path, checkpoint: Path, *more: str) -> int:
    return main(
        [
            f"checkpoint={checkpoint}", f"output={own / 'out'}", "eval=quick", f"eval.task_dir={own / 'tasks'}",
            f"eval.judge.dir={own / 'judges'}", f"eval.data_dir={own}", "eval.utility=[capitals]", "eval.safety=[]",
            "eval.over_refusal=[]", "eval.reported=[]", *more,
        ]
    )  # fmt: skip


def read(own: Path, kind: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (own / "out" / kind / "capitals.jsonl").read_text().splitlines()]


def test_a_benchmark_is_evaluated_with_a_rule_and_with_a_prompt(
    own: Path,
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert evaluate(own, checkpoint) == EXIT_DONE
    generations, verdicts = read(own, "generations"), read(own, "verdicts")
    assert [row["id"] for row in verdicts] == list(CAPITALS)
    assert [row["detail"]["target"] for row in verdicts] == list(CAPITALS.values())
    assert [row["value"] for row in verdicts] == [float(len(row["response"]) % 2 == 0) for row in generations]
    scores = json.loads((own / "out" / "scores.json").read_text())
    assert scores["utility"] == sum(row["value"] for row in verdicts) / len(verdicts)
    capitals = scores["benchmarks"]["capitals"]
    assert capitals["judge"] == "evenness"
    north, south = ([row["value"] for row in half] for half in (verdicts[:2], verdicts[2:]))
    assert [row["category"] for row in generations] == ["north", "north", "south", "south"]
    assert capitals["categories"] == {
        name: {"value": sum(half) / 2, "n": 2, "missing": 0} for name, half in (("north", north), ("south", south))
    }
    # Two halves, each as far from the mean of all: √(2 (half's sum less its share)²) / 4.
    assert capitals["clustered_stderr"] == pytest.approx(2**0.5 * abs(sum(north) - sum(south)) / 2 / 4)
    assert "capitals" in capsys.readouterr().out

    monkeypatch.setenv("OPENAI_API_KEY", "a-key")
    with serve(lambda request, before: Reply("friendly" if "France" in request.text else "curt")) as server:
        by_prompt = ["eval.judges.capitals=friendliness", f"eval.judge.base_url={server.url}"]
        assert evaluate(own, checkpoint, *by_prompt) == EXIT_DONE
        assert len(server.requests) == len(CAPITALS)
        assert all(request.text.startswith("Is this friendly?\nThe capital of ") for request in server.requests)
        judged = read(own, "verdicts")
        assert [row["value"] for row in judged] == [1.0, 0.0, 0.0, 0.0]
        assert read(own, "generations") == generations
        # The prompt is part of the judge: with another one it judges again.
        prompt = own / "judges" / "friendliness.txt"
        prompt.write_text("Friendly? {response} to {prompt}", encoding="utf-8")
        assert evaluate(own, checkpoint, *by_prompt) == EXIT_DONE
        assert len(server.requests) == 2 * len(CAPITALS)
        assert server.requests[-1].text.startswith("Friendly? ")
    # Where one half alone has values there is no spread over the halves.
    prompt.write_text("Is it friendly? {response} to {prompt}", encoding="utf-8")
    north_alone = list(CAPITALS)[:2]
    with serve(
        lambda request, before: Reply("curt" if any(land in request.text for land in north_alone) else "Hm.")
    ) as server:
        assert evaluate(own, checkpoint, by_prompt[0], f"eval.judge.base_url={server.url}") == EXIT_DONE
    assert f"many verdicts cannot be read: 2 of 4; see {own / 'out' / 'verdicts' / 'capitals.jsonl'}" in caplog.text
    capitals = json.loads((own / "out" / "scores.json").read_text())["benchmarks"]["capitals"]
    assert capitals["categories"]["south"] == {"value": None, "n": 0, "missing": 2}
    assert capitals["clustered_stderr"] is None
    again = read(own, "verdicts")
    assert {row["judge_hash"] for row in again}.isdisjoint(row["judge_hash"] for row in judged)
    assert {row["prompt_hash"] for row in again}.isdisjoint(row["prompt_hash"] for row in judged)


def test_published_rows_are_converted_by_a_file_beside_the_benchmark(own: Path, checkpoint: Path) -> None:
    source = "source: {hub: nobody/capitals, split: test, licence: MIT, convert: published.cities}"
    (own / "tasks" / "capitals.yaml").write_text(TASK.replace("rows: capitals,", f"rows: capitals, {source},"))
    (own / "tasks" / "published.py").write_text(CONVERSION, encoding="utf-8")
    (own / "capitals.jsonl").unlink()
    published = "".join(f"{land},{city}\n" for land, city in CAPITALS.items())
    (own / "capitals.csv").write_text(f"land,city\n{published}", encoding="utf-8")
    assert evaluate(own, checkpoint, "until=generations") == EXIT_DONE
    assert [(row["id"], row["target"]) for row in read(own, "generations")] == list(CAPITALS.items())


def test_answers_in_a_file_are_judged_by_an_own_judge(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (own / "answers.csv").write_text("prompt,completion,target\na,bb,c\na,bbb,c\n", encoding="utf-8")
    files = ["--in", str(own / "answers.csv"), "--out", str(own / "verdicts.csv")]
    assert main(["judge", "--judge", "evenness", "--dir", str(own / "judges"), *files]) == EXIT_DONE
    with (own / "verdicts.csv").open(encoding="utf-8") as lines:
        assert [row["score"] for row in csv.DictReader(lines)] == ["1.0", "0.0"]
    # The value, whatever the judge keeps beside it: a published score is StrongREJECT's alone.
    for score in ("'high'", "7.0"):
        rule = RULE.replace('"target": item.target', f'"score": {score}')
        (own / "judges" / "evenness.py").write_text(rule, encoding="utf-8")
        assert main(["judge", "--judge", "evenness", "--dir", str(own / "judges"), *files]) == EXIT_DONE
        with (own / "verdicts.csv").open(encoding="utf-8") as lines:
            assert [row["score"] for row in csv.DictReader(lines)] == ["1.0", "0.0"]
    capsys.readouterr()
    assert main(["judge", "--judge", "evenness", "--dir", str(own / "nowhere"), *files]) == EXIT_USER_ERROR
    assert capsys.readouterr().err == f"error: --dir: {own / 'nowhere'} is not a folder\n"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        pytest.param(
            "eval.judge.weights.wildgard=x",
            "error: eval.judge.weights.wildgard: 'wildgard' is not a judge with local weights; "
            "allowed: harmbench, llama_guard_weights, strongreject_finetuned, wildguard; did you mean 'wildguard'?\n",
            marks=pytest.mark.long,
        ),
        pytest.param(
            "eval.judge.prompt_file.friendlines=x",
            "error: eval.judge.prompt_file.friendlines: 'friendlines' is not a judge with a prompt to an endpoint; "
            "allowed: friendliness, helpfulness_pair, llama_guard, simpleqa_grader, strongreject_rubric, "
            "xstest_rubric; did you mean 'friendliness'?\n",
            marks=pytest.mark.long,
        ),
        pytest.param("eval.judges.capitals=evennes", "did you mean 'evenness'?\n", marks=pytest.mark.slow),
        pytest.param("eval.utility=[capital]", "did you mean 'capitals'?\n", marks=pytest.mark.long),
    ],
)
def test_names_are_checked_before_torch_is_imported(own: Path, override: str, message: str) -> None:
    code = f"""
import sys
from eval.__main__ import main
code = main([
    "checkpoint=unread", "eval=quick", "eval.task_dir={own / "tasks"}", "eval.judge.dir={own / "judges"}",
    "eval.data_dir={own}", "eval.utility=[capitals]", "eval.safety=[]", "eval.over_refusal=[]", "eval.reported=[]",
    "output={own / "out"}", {override!r},
])
print(code, "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert done.stderr.endswith(message)
    assert done.stdout == f"{EXIT_USER_ERROR} False\n"


def test_a_run_is_refused_before_it_trains(tmp_path: Path) -> None:
    config = compose_config(["+eval.judge.weights.wildgard=x"])
    with pytest.raises(UserError, match=r"eval\.judge\.weights\.wildgard: .*; did you mean 'wildguard'\?"):
        check_run(config, tmp_path / "run")


def test_a_benchmark_of_ones_own_stands_beside_the_testbeds(own: Path) -> None:
    def hashes(*folder: str) -> dict[str, str]:
        config = compose_config([*beside, *folder])
        return check_evaluation(config, load_data(config).evaluation)

    beside = [f"eval.task_dir={own / 'tasks'}", f"eval.judge.dir={own / 'judges'}", "eval.reported=[capitals]"]
    with pytest.raises(UserError, match=r"data=testbed brings no rows for capitals; .* holds capitals\.jsonl$"):
        hashes()
    beside.append(f"eval.data_dir={own}")
    testbed = compose_config([])
    brought = check_evaluation(testbed, load_data(testbed).evaluation)
    both = hashes()
    assert brought.items() < both.items() and both.keys() - brought == {"capitals"}
    # A file in the folder wins.
    (own / "facts.jsonl").write_text('{"id": "1", "prompt": "p", "target": "t"}\n', encoding="utf-8")
    assert {name for name, found in hashes().items() if found != both[name]} == {"facts"}
    with pytest.raises(UserError) as caught:
        check_run(compose_config([*beside, f"model.path={own / 'nowhere'}"]), own / "run")
    assert len(caught.value.problems) == 1 and "model.path" in str(caught.value)


def test_a_rule_that_returns_no_verdict_is_named(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = "from eval.judging.judge import RuleJudge\nJUDGE = RuleJudge('accuracy', lambda item: True)\n"
    (own / "judges" / "boolj.py").write_text(code, encoding="utf-8")
    (own / "answers.csv").write_text("prompt,completion\na,b\n", encoding="utf-8")
    files = ["--in", str(own / "answers.csv"), "--out", str(own / "verdicts.csv")]
    assert main(["judge", "--judge", "boolj", "--dir", str(own / "judges"), *files]) == EXIT_USER_ERROR
    assert capsys.readouterr().err == "error: judge boolj: returned True; expected a Verdict\n"


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("judges/wildguard.py", RULE, "the name 'wildguard' is taken"),
        ("judges/evenness.py", '"""Nothing."""\n', "defines no 'JUDGE'"),
        ("tasks/mmlu.yaml", TASK, "the name 'mmlu' is taken"),
        ("tasks/capitals.yaml", TASK.replace("judge: evenness", "judge: evennes"), "did you mean 'evenness'?"),
        (
            "tasks/capitals.yaml",
            TASK.replace("capitals,", "capitals, source: {hub: a/b, split: test, licence: MIT, convert: gsm9k},"),
            "metadata.source.convert: found 'gsm9k'; allowed: ",
        ),
        (
            "tasks/capitals.yaml",
            TASK.replace("generate_until", "generate"),
            "output_type: found 'generate'; allowed: generate_until, multiple_choice, loglikelihood; did you mean",
        ),
        (
            "tasks/capitals.yaml",
            TASK.replace("metadata: {", "metadata: 3 #"),
            "metadata: found a number (3); expected keys",
        ),
        ("tasks/capitals.yaml", TASK.replace("until: []", "until: 3"), "generation_kwargs.until: found a number (3)"),
        ("tasks/capitals.yaml", f"include: [3]\n{TASK}", "include: found a list of 1; expected a text or a list of"),
        (
            "tasks/capitals.yaml",
            TASK.replace(", max_gen_toks: 8", "").replace("output_type: generate_until\n", ""),
            "generation_kwargs.max_gen_toks: not given",
        ),
        *(
            (
                "tasks/capitals.yaml",
                TASK.replace("max_gen_toks: 8", f"max_gen_toks: {most}"),
                f"generation_kwargs.max_gen_toks: found {found}; say how many",
            )
            for most, found in (("0", "0"), ("-1", "-1"), ("true", "True"), ("'8'", "'8'"))
        ),
        (
            "tasks/capitals.yaml",
            TASK.replace("category: half", "tokenized: {half: 3}"),
            "metadata.tokenized.half: found a number (3); expected a text or a list of texts",
        ),
        *(
            (
                "tasks/capitals.yaml",
                f"include: {name}\n{TASK}",
                f"include: '{name}' includes this file; a task cannot include itself",
            )
            for name in ("capitals.yaml", "../tasks/capitals.yaml")
        ),
    ],
)
def test_mistakes_in_own_files_are_named(
    own: Path, file: str, content: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (own / file).write_text(content, encoding="utf-8")
    assert evaluate(own, own / "unread") == EXIT_USER_ERROR
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and str(own / file) in line and message in line


MEASURE = "!function measure.points"
OWN = TASK.replace("judge: evenness", "judge: lm_eval, metric: 'points,none'").replace(
    "metric_list:", f"process_results: {MEASURE}\nmetric_list:"
)


def questions(own: Path, template: Callable[..., str] = lambda messages, **_: str(messages)) -> Questions:
    [benchmark] = find_benchmarks(["capitals"], folder=str(own / "tasks"))
    return Questions(benchmark, load_rows(benchmark, own), template)


@pytest.mark.parametrize("text", ["'{{ \"Why?\" }}'", "Say something.", "'2'", "''"])
def test_a_fixed_text_is_asked_as_it_is(own: Path, text: str) -> None:
    scored_by(own, "1.0", OWN.replace("doc_to_text: prompt", f"doc_to_text: {text}"))
    expected = text.strip("'").removeprefix('{{ "').removesuffix('" }}')
    assert all(f"'content': {expected!r}" in str(question.requests[0].args) for question in questions(own).all)


def measured(own: Path) -> list[dict[str, float]]:
    asked = questions(own)
    return asked.metrics({question.row_id: {"response": "Paris"} for question in asked.all})


def scored_by(own: Path, points: str, task: str = OWN) -> None:
    """Have the benchmark give ``points`` for an answer, an expression in ``row`` and ``answers``."""
    (own / "tasks" / "capitals.yaml").write_text(task, encoding="utf-8")
    imports = "from ogpsa.utils.json_text import parse_json\nCITIES = ['Paris']\n"
    code = f"{imports}def points(row, answers):\n    return {{'points': {points}}}\n"
    (own / "tasks" / "measure.py").write_text(code, encoding="utf-8")


@pytest.mark.parametrize(
    ("task", "points", "message"),
    [
        (OWN, "37.0", "points,none: an empty answer: the value is 37.0; allowed: a number between 0 and 1"),
        (OWN, "[0.5]", "points,none: an empty answer: the value is [0.5]; allowed: a number between 0 and 1"),
        (
            OWN.replace("points,none", "point,none"),
            "1.0",
            "metadata.metric: 'point,none' is not measured; found points,none; did you mean 'points,none'?",
        ),
        (
            OWN.replace("doc_to_text: prompt", 'doc_to_text: "{{question}}"'),
            "1.0",
            "lm-eval makes no questions of the rows (",
        ),
        (
            TASK.replace("doc_to_text: prompt", "doc_to_text: question"),
            "1.0",
            "doc_to_text: 'question' is no column of the rows (id, prompt, target, half); a fixed text is written as "
            '{{ "text" }}',
        ),
        (
            TASK.replace("doc_to_target: target", "doc_to_target: taget"),
            "1.0",
            "doc_to_target: 'taget' is no column of the rows (id, prompt, target, half); did you mean 'target'?; a ",
        ),
        (
            OWN.replace("generate_until", "multiple_choice").replace(
                "doc_to_text", "doc_to_choice: choices\ndoc_to_text"
            ),
            "1.0",
            "lm-eval makes no questions of the rows (",
        ),
        (
            OWN.replace("generate_until", "multiple_choice").replace("doc_to_text", "doc_to_choice: half\ndoc_to_text"),
            "1.0",
            "row 'France': doc_to_choice: found a text; expected a list of several texts",
        ),
        *(
            (
                OWN.replace("generate_until", "multiple_choice")
                .replace("doc_to_text", "doc_to_choice: [Paris, Tokyo, Santiago]\ndoc_to_text")
                .replace("doc_to_target: target", f"doc_to_target: {target}"),
                "1.0",
                f"row '{row}': doc_to_target: found {found}; expected one of its 3 options, or its number from 0",
            )
            for target, row, found in (("target", "Kenya", "'Nairobi'"), ("'{{1 + id.find(\"i\")}}'", "Chile", "3"))
        ),
    ],
)
def test_a_task_that_cannot_be_scored_is_refused_before_anything_is_generated(
    own: Path, checkpoint: Path, task: str, points: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    scored_by(own, points, task)
    assert evaluate(own, checkpoint) == EXIT_USER_ERROR
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"error: {own / 'tasks' / 'capitals.yaml'}: ") and message in said
    assert not (own / "out" / "generations").exists()


OWN_ACCURACY = OWN.replace(f"process_results: {MEASURE}\n", "").replace("points,none", "accuracy,none")


@pytest.mark.parametrize(
    ("task", "points", "message"),
    [
        (
            OWN.replace("doc_to_text: prompt", 'doc_to_text: "{{prompt"'),
            "1.0",
            "(TemplateSyntaxError: unexpected end of",
        ),
        (
            OWN.replace("doc_to_text: prompt", 'doc_to_text: "{{prompt + 1}}"'),
            "1.0",
            "(TypeError: can only concatenate",
        ),
        (
            OWN.replace("doc_to_text: prompt", "doc_to_text: 2026-01-02"),
            "1.0",
            "lm-eval makes no questions of the rows (",
        ),
        (f"{OWN}filter_list: [x]\n", "1.0", "lm-eval makes no questions of the rows (TypeError"),
        (OWN.replace(MEASURE, "!function measure.point"), "1.0", "measure.py: defines no 'point'"),
        (
            OWN.replace(MEASURE, "!function measure.CITIES"),
            "1.0",
            "'measure.CITIES' is a list of 1; expected a function",
        ),
        *(
            (
                OWN.replace(MEASURE, f"!function {path}"),
                "1.0",
                f"'!function {path}' names no Python file beside the YAML",
            )
            for path in ("points", "sys.exit", "nowhere.points", "eval.benchmarks.tasks.nowhere.points")
        ),
        (
            OWN.replace(MEASURE, "!function eval.benchmarks.tasks.functions.humanevl_results"),
            "1.0",
            "functions.py: defines no 'humanevl_results'; did you mean 'humaneval_results'?",
        ),
        (OWN, "(", "measure.py: does not run (SyntaxError: closing parenthesis '}' does not match"),
        (OWN, "answers[1]", "capitals.yaml: 'measure.points' fails on row 'France' (IndexError: list index out of"),
        (OWN, "parse_json(row['half'])", "'measure.points' fails on row 'France' (JSONDecodeError: Expecting value"),
        (OWN, "row['hlaf']", "'measure.points' fails on row 'France' (KeyError: 'hlaf')"),
        (OWN, "exit(0)", "'measure.points' fails on row 'France' (SystemExit: 0)"),
        (
            OWN,
            "1.0}.keys() or {3",
            "'measure.points': row 'France': returns a dict_keys; process_results takes an object",
        ),
        (
            OWN.replace("doc_to_text: prompt", "doc_to_text: !function measure.points"),
            "1.0",
            "'measure.points' fails on row 'France' (TypeError: points() missing 1 required positional argument",
        ),
        (
            OWN_ACCURACY.replace("metric: bypass", "metric: accuracy"),
            "1.0",
            "row 'France': its answer is not measured (",
        ),
    ],
)
def test_a_task_is_its_authors_program_whose_failures_are_one_line(
    own: Path, task: str, points: str, message: str
) -> None:
    scored_by(own, points, task)
    with pytest.raises(UserError) as caught:
        measured(own)
    [said] = caught.value.problems
    assert said.startswith(str(own / "tasks")) and message in said and "\n" not in said


@pytest.mark.parametrize("values", [("a", 1), (1, "a"), (1, [1]), (0, 2**70)])
def test_a_column_that_makes_no_table_is_named(own: Path, values: tuple[object, object]) -> None:
    scored_by(own, "1.0")
    rows = [{"id": str(value), "prompt": "p", "target": "", "note": value} for value in values]
    (own / "capitals.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with pytest.raises(UserError, match=r"capitals\.yaml: its rows, 'capitals': note: .*; allowed: values of one kind"):
        questions(own)


def test_what_fails_in_our_own_code_keeps_its_traceback(own: Path) -> None:
    scored_by(own, "1.0")
    with pytest.raises(AttributeError, match="'list' object has no attribute 'strip'"):
        questions(own, lambda messages, **_: parse_json(messages))


@pytest.mark.parametrize("error", [KeyError("here"), KeyError("test"), TypeError("here")])
def test_what_fails_in_a_function_of_ours_on_good_rows_keeps_its_traceback(
    own: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def faulty(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("eval.benchmarks.tasks.functions.deaf_children", faulty)
    scored_by(own, "1.0", OURS)
    write_rows(own, [{"test": "def check(f): ...", "entry_point": "f"}] * len(CAPITALS))
    with pytest.raises(type(error)):
        measured(own)


OURS = OWN.replace("measure.points", "eval.benchmarks.tasks.functions.humaneval_results")
IFEVAL = OURS.replace("humaneval", "ifeval")


def write_rows(own: Path, more: Sequence[Mapping[str, object]]) -> None:
    """Give each row further columns."""
    rows = [
        {"id": land, "prompt": "p", "target": city, **columns}
        for (land, city), columns in zip(CAPITALS.items(), more, strict=True)
    ]
    (own / "capitals.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.mark.parametrize(
    ("task", "rows", "message"),
    [
        (OURS, [{}] * 4, "row 'France' has no column 'test', which that function reads; the rows' columns: id, prompt"),
        (OURS, [{"test": "1"}] * 4, "row 'France' has no column 'entry_point', which"),
        (OURS, [{"test": None, "entry_point": "f"}] * 4, "row 'France' has no column 'test', which"),
        (OURS, [*[{"test": "1", "entry_point": "f"}] * 2, {}, {}], "row 'Chile' has no column 'test', which"),
        (IFEVAL, [{}] * 4, "row 'France' has no column 'kwargs', which"),
        (IFEVAL, [{"kwargs": [{}], "key": 1}] * 4, "row 'France' has no column 'instruction_id_list', which"),
    ],
)
def test_a_function_of_ours_names_the_column_that_a_row_lacks(
    own: Path, task: str, rows: list[dict[str, object]], message: str
) -> None:
    scored_by(own, "1.0", task)
    write_rows(own, rows)
    with pytest.raises(UserError) as caught:
        measured(own)
    [said] = caught.value.problems
    path = re.search(r"!function (\S+)", task)
    assert path is not None and said.startswith(f"{own / 'tasks' / 'capitals.yaml'}: '{path[1]}': {message}")


TEXT = OWN_ACCURACY.replace("metric: bypass", "metric: exact_match").replace("accuracy,none", "exact_match,none")
LOSS = TEXT.replace("generate_until", "loglikelihood").replace("exact_match,none", "loss,none")
CHOICE = TEXT.replace("doc_to_text:", "doc_to_choice: [a, b]\ndoc_to_text:")


@pytest.mark.parametrize(
    ("task", "value", "message"),
    [
        # In one row alone, which is not the first.
        (
            TEXT.replace("doc_to_text: prompt", 'doc_to_text: "{{note}}?"'),
            "a",
            "doc_to_text: it would say 'None' for a",
        ),
        (TEXT.replace("doc_to_text: prompt", 'doc_to_text: "{{note[0]}}"'), ["a"], "doc_to_text: it would say 'None'"),
        (
            TEXT.replace("doc_to_target: target", 'doc_to_target: "{{note}}."'),
            "a",
            "doc_to_target: it would say 'None'",
        ),
        (TEXT.replace("doc_to_target: target", "doc_to_target: note"), "a", "doc_to_target: found null; expected what"),
        (LOSS.replace("doc_to_target: target", "doc_to_target: note"), "a", "doc_to_target: found null; expected the"),
        (CHOICE.replace("doc_to_target: target", "doc_to_target: note"), 1, "doc_to_target: found None; expected one"),
        *(
            (
                OWN.replace(f"{key}: {column}", f"{key}: !function measure.wrong"),
                "a",
                f"'measure.wrong': row 'Chile': returns null; {key} takes {takes}",
            )
            for key, column, takes in (
                ("doc_to_text", "prompt", "a text"),
                ("process_results", MEASURE, "an object of"),
            )
        ),
        (
            CHOICE.replace("generate_until", "multiple_choice")
            .replace("[a, b]", "!function measure.wrong")
            .replace("doc_to_target: target", "doc_to_target: 0"),
            ["a", "b"],
            "'measure.wrong': row 'Chile': returns null; doc_to_choice takes a list of texts",
        ),
    ],
)
@pytest.mark.parametrize("row", [2, 0])
def test_a_value_that_one_row_lacks_is_told_with_the_row(
    own: Path, task: str, value: object, message: str, row: int
) -> None:
    scored_by(own, "1.0", task)
    with (own / "tasks" / "measure.py").open("a") as code:
        code.write(
            "\ndef wrong(row, *answers):\n    return row['note'] and ({'points': 1.0} if answers else row['note'])\n"
        )
    empty = [None] if isinstance(value, list) and "note[0]" in task else None
    write_rows(own, [{"note": empty if place == row else value} for place in range(len(CAPITALS))])
    with pytest.raises(UserError) as caught:
        measured(own)
    [said] = caught.value.problems
    assert said.startswith(str(own / "tasks" / "capitals.yaml")) and "\n" not in said
    assert message.replace("Chile", [*CAPITALS][row]) in said and f"row '{[*CAPITALS][row]}'" in said


def test_a_column_that_the_first_row_lacks_is_one(own: Path) -> None:
    scored_by(own, "float(row['note'] == 'x' or row['id'] == 'France')")
    write_rows(own, [{}, *[{"note": "x"}] * 3])
    assert [found["points,none"] for found in measured(own)] == [1.0] * len(CAPITALS)


@pytest.mark.parametrize("text", ["{{note or prompt}}", "{% if note %}{{note}}{% endif %}{{prompt}}"])
def test_a_template_may_ask_whether_a_value_is_null(own: Path, text: str) -> None:
    scored_by(own, "1.0", OWN.replace("doc_to_text: prompt", f'doc_to_text: "{text}"'))
    write_rows(own, [{}, *[{"note": "x"}] * 3])
    assert len(measured(own)) == len(CAPITALS)


def test_a_column_that_a_function_of_ours_lacks_is_told_before_anything_is_generated(
    own: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scored_by(own, "1.0", OURS)
    assert evaluate(own, checkpoint) == EXIT_USER_ERROR
    assert "row 'France' has no column 'test'" in capsys.readouterr().err.splitlines()[-1]
    assert not (own / "out" / "generations").exists()


@pytest.mark.parametrize(
    ("file", "code", "told"),
    [
        ("measure.py", "import nothing_here", "ModuleNotFoundError: No module named 'nothing_here'"),
        ("measure.py", "from json import nothing", "ImportError: cannot import name 'nothing' from 'json'"),
        ("measure.py", "exit(3)", "SystemExit: 3"),
        ("measures/points.py", "import nothing_here", "ModuleNotFoundError: No module named 'nothing_here'"),
        ("measures/points.py", "def (", "SyntaxError: invalid syntax (points.py, line 1)"),
        ("measures/points.py", "exit(3)", "SystemExit: 3"),
        ("measures/points.py", "1 / 0", "ZeroDivisionError: division by zero"),
        ("measures/__init__.py", "import nothing_here", "ModuleNotFoundError: No module named 'nothing_here'"),
        ("measures/__init__.py", "def (", "SyntaxError: invalid syntax (__init__.py, line 1)"),
    ],
)
def test_a_module_that_does_not_run_is_named_with_its_error(
    own: Path, monkeypatch: pytest.MonkeyPatch, file: str, code: str, told: str
) -> None:
    """Beside the task, or anywhere in Python's path."""
    path = "measure.points" if file == "measure.py" else "measures.points.points"
    scored_by(own, "1.0", OWN.replace("measure.points", path))
    written = own / "tasks" / file if file == "measure.py" else own / "path" / file
    written.parent.mkdir(parents=True, exist_ok=True)
    for name in ("__init__.py", "points.py") if file != "measure.py" else ():
        (written.parent / name).touch()
    written.write_text(f"{code}\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(own / "path"))
    monkeypatch.delitem(sys.modules, "measures", raising=False)
    with pytest.raises(UserError) as caught:
        measured(own)
    [said] = caught.value.problems
    assert said.startswith(f"{own / 'tasks' / 'capitals.yaml'}: '{path}': ")
    assert "does not run (" in said and told in said and "\n" not in said


def test_a_task_that_cannot_score_likelihoods_is_refused_before_any_are_made(
    own: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = OWN.replace("generate_until", "multiple_choice").replace("doc_to_text", "doc_to_choice: [a, b]\ndoc_to_text")
    scored_by(own, "answers[7]", task.replace("doc_to_target: target", "doc_to_target: 0"))
    assert evaluate(own, checkpoint) == EXIT_USER_ERROR
    assert "'measure.points' fails on row 'France' (IndexError: " in capsys.readouterr().err
    assert not (own / "out" / "generations").exists()


@pytest.mark.parametrize("points", ["None", "1 / len(answers[0])"])
def test_a_task_may_have_no_score_for_an_empty_answer(own: Path, checkpoint: Path, points: str) -> None:
    scored_by(own, points)
    assert evaluate(own, checkpoint) == EXIT_DONE
    expected = [None if points == "None" else 1 / len(row["response"]) for row in read(own, "generations")]
    assert [row["value"] for row in read(own, "verdicts")] == pytest.approx(expected)


def test_a_task_is_given_the_rows_as_they_were_asked(own: Path, checkpoint: Path) -> None:
    """Their own columns stay theirs, no answer is among them, and a second call finds what was asked."""
    scored_by(own, "float(row['options'] == 'mine' and 'response' not in row)")
    file = own / "capitals.jsonl"
    file.write_text(file.read_text().replace("}", ', "options": "mine"}'), encoding="utf-8")
    assert evaluate(own, checkpoint) == EXIT_DONE
    assert [row["value"] for row in read(own, "verdicts")] == [1.0] * len(CAPITALS)
    generations = own / "out" / "generations" / "capitals.jsonl"
    asked = generations.stat().st_mtime_ns
    assert evaluate(own, checkpoint) == EXIT_DONE
    assert generations.stat().st_mtime_ns == asked


DRAWN = "rows.map(lambda row: {'prompt': f'{row[\"prompt\"]} {__import__(\"random\").random()}'})"


def processed_by(own: Path, documents: str) -> None:
    """Have the benchmark's ``process_docs`` return ``documents``, an expression in ``rows``."""
    task = OWN.replace("doc_to_text:", "process_docs: !function documents.process\ndoc_to_text:")
    scored_by(own, "float(answers[0] == row['prompt'])", task)
    code = f"def process(rows):\n    return {documents}\n"
    (own / "tasks" / "documents.py").write_text(code, encoding="utf-8")


@pytest.mark.parametrize(
    "documents", ["rows", "rows.select([3, 1, 0, 2])", "rows.sort('target')", "rows.shuffle()", DRAWN]
)
def test_an_answer_is_its_rows_in_whatever_order_the_task_puts_them(own: Path, documents: str) -> None:
    """A server that gives back what it is asked is right about each row."""
    processed_by(own, documents)
    backend = ["eval.backend.name=server", "eval.backend.model=m"]
    with serve(lambda request, before: Reply(request.text)) as server:
        assert evaluate(own, own / "unread", *backend, f"eval.backend.base_url={server.url}") == EXIT_DONE
    assert all(row["response"].startswith(row["prompt"]) for row in read(own, "generations"))
    assert [row["value"] for row in read(own, "verdicts")] == [1.0] * len(CAPITALS)


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        ("rows.select([0, 2])", "2 documents hold 2 of 4 rows' ids"),
        ("rows.select([0, 1, 2, 2])", "4 documents hold 3 of 4 rows' ids"),
        ("rows.remove_columns('id')", "4 documents hold 0 of 4 rows' ids"),
    ],
)
def test_a_task_that_leaves_out_or_repeats_rows_is_refused(
    own: Path, checkpoint: Path, documents: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    processed_by(own, documents)
    assert evaluate(own, checkpoint) == EXIT_USER_ERROR
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"error: {own / 'tasks' / 'capitals.yaml'}: process_docs: {message}; allowed: each row once")
    assert not (own / "out" / "generations").exists()


def test_a_metric_measures_only_rows_that_have_an_answer(own: Path) -> None:
    """An empty answer is wrong, a withheld or unfinished one has no verdict, and the metric sees none of them."""
    scored_by(own, "float(answers[0].split()[0] == row['target'])")
    replies = {
        "France": Reply("<think>Lyon?</think>Paris it is"),
        "Japan": Reply(""),
        "Chile": Reply("Arica", finish_reason="content_filter"),
        "Kenya": Reply("<think>Nairobi"),
    }

    def answer(request: Request, before: int) -> Reply:
        return next(reply for land, reply in replies.items() if land in request.text)

    for sees in ([*replies], ["Japan", "Chile", "Kenya"]):
        rows = [{"id": land, "prompt": f"The capital of {land}?", "target": CAPITALS[land]} for land in sees]
        (own / "capitals.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        with serve(answer) as server:
            backend = ["eval.backend.name=server", "eval.backend.model=m", f"eval.backend.base_url={server.url}"]
            assert evaluate(own, own / "unread", *backend) == EXIT_DONE
        found = [(row["value"], row["parse_status"]) for row in read(own, "verdicts")]
        rest = [(0.0, "parsed"), (None, "withheld"), (None, "unfinished")]
        assert found == ([(1.0, "parsed"), *rest] if "France" in sees else rest)
