"""Evaluation: artefacts, resume, judges, mistakes; on a random model that answers at once."""

import json
import math
import random
import re
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from lm_eval.api.instance import Instance
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedTokenizerFast,
)

from eval import __main__ as command
from eval.evaluation import evaluate
from eval.generation.generate import LocalModel
from eval.generation.isolation import isolated_and_silent
from eval.generation.likelihoods import SharingLM
from eval.generation.questions import Question
from ogpsa.app.compose import compose_config
from ogpsa.config import Evaluation
from ogpsa.utils.errors import EXIT_DONE, EXIT_USER_ERROR, UserError
from tests.program import KilledError, killed_after
from tests.tiny import byte_tokenizer, tiny_model

SPECIAL = ["<pad>", "<unk>", "<user>", "<assistant>", "<end>"]
# Half of the words open a refusal, so that a random model refuses now and then.
WORDS = [f"{stem}{number}" for number in range(20) for stem in ("word", "I_cannot-")]
TEMPLATE = (
    "{% for message in messages %}{{ '<' + message.role + '> ' + message.content + ' <end> ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant> ' }}{% endif %}"
)
BENCHMARKS = ["harmful_seen", "facts", "reverse", "look_alike"]
ROWS = 7


@cache
def default_settings() -> Evaluation:
    return compose_config([]).eval


def settings(**changes: Any) -> Evaluation:
    values = default_settings().model_dump() | {
        "name": "small",
        "safety": ["harmful_seen"],
        "utility": ["facts", "reverse"],
        "over_refusal": ["look_alike"],
        "batch_size": 4,
    }
    return Evaluation.model_validate(values | changes)


def save_checkpoint(folder: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    words = {word: index for index, word in enumerate([*SPECIAL, *WORDS])}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", unk_token="<unk>", eos_token="<end>", chat_template=TEMPLATE
    )
    model = tiny_model(
        tokenizer, seed, hidden_size=16, intermediate_size=32, num_attention_heads=2, num_key_value_heads=2,
        max_position_embeddings=64, initializer_range=0.8,
    )  # fmt: skip
    # None of this may leak into greedy decoding.
    model.generation_config.update(do_sample=True, temperature=3.0, repetition_penalty=9.0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def contents(folder: Path) -> dict[str, bytes]:
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: content for name, content in files.items() if name != ".lock"}


def identities(folder: Path) -> dict[str, tuple[int, int]]:
    """Which file each name stands for: rewriting a file atomically changes it."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.glob("*.jsonl")}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("models") / "model", seed=0)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    draw = random.Random(0)
    for name in BENCHMARKS:
        prompts = [" ".join(draw.choices(WORDS, k=draw.randint(1, 12))) for _ in range(ROWS)]
        target = {"facts": "word1", "reverse": "word2 word1"}.get(name, "")
        made = [{"id": f"{name}-{i}", "prompt": prompt, "target": target} for i, prompt in enumerate(prompts)]
        write_rows(folder / f"{name}.jsonl", made)
    return folder


@pytest.fixture(scope="module")
def finished(checkpoint: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("finished")
    evaluate(checkpoint, rows, output, settings())
    return output


@pytest.fixture
def output(finished: Path, tmp_path: Path) -> Path:
    """A copy of a finished evaluation."""
    return Path(shutil.copytree(finished, tmp_path / "evaluation"))


def test_artefacts_hold_every_row_and_what_it_rests_on(finished: Path, rows: Path) -> None:
    for name in BENCHMARKS:
        given = read_rows(rows / f"{name}.jsonl")
        generations = read_rows(finished / "generations" / f"{name}.jsonl")
        assert [{key: row[key] for key in ("id", "prompt", "target")} for row in generations] == given
        assert {row["benchmark"] for row in generations} == {name}
        for key in ("model_fingerprint", "data_hash", "task_hash"):
            assert len({row[key] for row in generations}) == 1
        verdicts = read_rows(finished / "verdicts" / f"{name}.jsonl")
        assert [row["id"] for row in verdicts] == [row["id"] for row in given]
        for verdict, row in zip(verdicts, generations, strict=True):
            assert verdict["refused"] == bool(re.match(r"(<\w+> )*I_cannot", row["response"]))
            assert verdict["finish_reason"] == row["finish_reason"]
            assert verdict["value"] in (0, 1)


def test_scores_follow_from_the_verdicts(finished: Path) -> None:
    scores = json.loads((finished / "scores.json").read_text())
    assert list(scores["benchmarks"]) == BENCHMARKS
    for name, entry in scores["benchmarks"].items():
        verdicts = read_rows(finished / "verdicts" / f"{name}.jsonl")
        values = np.array([row["value"] for row in verdicts])
        assert entry["value"] == pytest.approx(values.mean())
        assert entry["stderr"] == pytest.approx(values.std(ddof=1) / math.sqrt(ROWS))
        assert (entry["n"], entry["missing"]) == (ROWS, 0)
        assert entry["refused"] == pytest.approx(np.mean([row["refused"] for row in verdicts]))
    facts, reverse = scores["benchmarks"]["facts"], scores["benchmarks"]["reverse"]
    assert (facts["metric"], facts["group"]) == ("accuracy", "utility")
    assert scores["benchmarks"]["look_alike"]["metric"] == "refusal_rate"
    assert scores["utility"] == pytest.approx((facts["value"] + reverse["value"]) / 2)
    assert scores["safety"] == scores["benchmarks"]["harmful_seen"]["value"]
    assert scores["over_refusal"] == scores["benchmarks"]["look_alike"]["value"]
    # The words were chosen so that the judge has both kinds to tell apart.
    assert 0 < sum(entry["refused"] for entry in scores["benchmarks"].values()) < len(BENCHMARKS)


def test_responses_equal_greedy_decoding_of_each_prompt_alone(finished: Path, checkpoint: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id)
    for row in read_rows(finished / "generations" / "facts.jsonl"):
        prompt = tokenizer(f"<user> {row['prompt']} <end> <assistant>", return_tensors="pt")
        tokens = model.generate(**prompt, max_new_tokens=24, do_sample=False, pad_token_id=tokenizer.pad_token_id)
        answer = tokens[0, prompt["input_ids"].shape[1] :]
        assert row["response"] == tokenizer.decode(answer, skip_special_tokens=True)


def test_batches_of_fewer_tokens_say_the_same(finished: Path, checkpoint: Path, rows: Path, tmp_path: Path) -> None:
    batches: list[None] = []
    changed = settings(batch_tokens=1)
    assert changed.key() == settings().key()
    evaluate(checkpoint, rows, tmp_path, changed, lambda: batches.append(None), until="generations")
    assert len(batches) == ROWS * len(BENCHMARKS)
    made = contents(tmp_path)
    assert made and made.items() <= contents(finished).items()


def test_a_batch_holds_no_more_tokens_than_allowed() -> None:
    """Also where rows of fewer characters hold more of them."""
    tokenizer = byte_tokenizer()
    with isolated_and_silent():
        lm = SharingLM(tiny_model(tokenizer), tokenizer, 4)
    batches: list[list[int]] = []

    def replies(prompts: list[str], max_tokens: int, stop: list[str], in_thought: bool) -> list[dict[str, str]]:
        batches.append([len(tokenizer.encode(prompt)) for prompt in prompts])
        return [{"text": "", "finish_reason": "stop"} for _ in prompts]

    prompts = ["a" * 40, "a" * 39, "é" * 38, "好" * 20, "a" * 12, "a" * 11, "a" * 10, "a" * 9, "a" * 8, "a" * 7]
    settings = {"max_gen_toks": 10, "until": []}
    questions = [
        Question(str(number), [Instance("generate_until", {}, (prompt, settings), 0)])
        for number, prompt in enumerate(prompts)
    ]
    LocalModel(lm, 4, 150, replies).answer(questions, lambda _: None, lambda: None)
    # Ten tokens of a reply each; at most four rows.
    assert batches == [[40, 39], [76], [60, 12], [11, 10, 9, 8], [7]]


def test_targets_equal_to_the_responses_score_one(finished: Path, checkpoint: Path, rows: Path, tmp_path: Path) -> None:
    answered = Path(shutil.copytree(rows, tmp_path / "rows"))
    for name in ("facts", "reverse"):
        generations = read_rows(finished / "generations" / f"{name}.jsonl")
        write_rows(
            answered / f"{name}.jsonl",
            [{"id": row["id"], "prompt": row["prompt"], "target": row["response"]} for row in generations],
        )
    scores = evaluate(checkpoint, answered, tmp_path / "output", settings(over_refusal=[]))
    assert scores["utility"] == 1.0
    assert scores["benchmarks"]["facts"]["stderr"] == 0.0
    assert scores["over_refusal"] is None


def test_the_callers_random_state_is_left_alone(checkpoint: Path, rows: Path, tmp_path: Path) -> None:
    random.seed(5)
    np.random.seed(6)
    torch.manual_seed(7)
    expected = (random.random(), np.random.rand(), torch.rand(1).item())
    random.seed(5)
    np.random.seed(6)
    torch.manual_seed(7)
    evaluate(checkpoint, rows, tmp_path, settings())
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == expected


def test_a_second_call_keeps_every_artefact(checkpoint: Path, rows: Path, output: Path) -> None:
    before = {kind: identities(output / kind) for kind in ("generations", "verdicts")}
    stored = (output / "scores.json").read_bytes()
    evaluate(checkpoint, rows, output, settings(), safe_point=killed_after(0))
    assert {kind: identities(output / kind) for kind in before} == before
    assert (output / "scores.json").read_bytes() == stored


def test_a_killed_evaluation_resumes_where_it_stopped(
    checkpoint: Path, rows: Path, finished: Path, tmp_path: Path
) -> None:
    # Two batches a benchmark: two benchmarks are whole, and of the third a batch is kept.
    with pytest.raises(KilledError):
        evaluate(checkpoint, rows, tmp_path, settings(), safe_point=killed_after(5))
    kept = identities(tmp_path / "generations")
    assert sorted(kept) == ["facts.jsonl", "harmful_seen.jsonl"]
    assert (tmp_path / "generations" / ".reverse.journal").is_file()
    assert not (tmp_path / "scores.json").exists()
    batches = iter(range(100))
    evaluate(checkpoint, rows, tmp_path, settings(), safe_point=lambda: next(batches, None), until="generations")
    assert next(batches) == 3
    assert kept.items() <= identities(tmp_path / "generations").items()
    evaluate(checkpoint, rows, tmp_path, settings())
    assert contents(tmp_path) == contents(finished)


def test_other_weights_make_every_response_again(rows: Path, output: Path, tmp_path: Path) -> None:
    before = identities(output / "generations")
    other = save_checkpoint(tmp_path / "model", seed=1)
    evaluate(other, rows, output, settings())
    after = identities(output / "generations")
    assert all(after[name] != before[name] for name in before)


@pytest.mark.parametrize("others", [True, False])
def test_a_changed_row_makes_that_benchmark_alone_again(
    checkpoint: Path, rows: Path, output: Path, tmp_path: Path, others: bool
) -> None:
    """The rows of the others are the run's own where the folder has no file of them."""
    before = identities(output / "generations")
    changed = tmp_path / "rows"
    shutil.copytree(rows, changed) if others else changed.mkdir()
    facts = read_rows(rows / "facts.jsonl")
    write_rows(changed / "facts.jsonl", [facts[0] | {"target": "word3"}, *facts[1:]])
    evaluate(checkpoint, rows, output, settings(data_dir=str(changed)))
    after = identities(output / "generations")
    assert {name for name in before if after[name] != before[name]} == {"facts.jsonl"}


def test_limit_takes_the_first_rows(checkpoint: Path, rows: Path, output: Path) -> None:
    scores = evaluate(checkpoint, rows, output, settings(limit=3))
    assert {entry["n"] for entry in scores["benchmarks"].values()} == {3}
    assert [row["id"] for row in read_rows(output / "generations" / "facts.jsonl")] == ["facts-0", "facts-1", "facts-2"]


def test_an_edited_verdict_is_no_longer_kept_once_its_generations_change(
    checkpoint: Path, rows: Path, output: Path, finished: Path
) -> None:
    path = output / "generations" / "facts.jsonl"
    generations = read_rows(path)
    write_rows(path, [generations[0] | {"response": generations[0]["target"]}, *generations[1:]])
    scores = evaluate(checkpoint, rows, output, settings(), safe_point=killed_after(0))
    before = json.loads((finished / "scores.json").read_text())["benchmarks"]["facts"]["value"]
    assert scores["benchmarks"]["facts"]["value"] == pytest.approx(before + 1 / ROWS)


@pytest.mark.parametrize(
    ("rows_text", "message"),
    [
        (None, "facts.jsonl: no such file"),
        ("", "facts.jsonl: no rows"),
        ('{"id": "a", "prompt": "word1"}\n', "facts.jsonl:1: target: found None"),
        ('{"id": "a", "prompt": 3, "target": ""}\n', "facts.jsonl:1: prompt: found 3"),
        ('{"id": "a", "prompt": "word1", "target": ""}\n' * 2, "facts.jsonl:2: id: 'a' occurs twice"),
        ("word1\n", "facts.jsonl:1: not a JSON object"),
        (json.dumps({"id": "a", "prompt": "word1 " * 60, "target": ""}), "row 'a': a prompt of 63 tokens"),
    ],
)
def test_bad_rows_are_named(checkpoint: Path, rows: Path, tmp_path: Path, rows_text: str | None, message: str) -> None:
    folder = Path(shutil.copytree(rows, tmp_path / "rows"))
    if rows_text is None:
        (folder / "facts.jsonl").unlink()
    else:
        (folder / "facts.jsonl").write_text(rows_text)
    with pytest.raises(UserError) as caught:
        evaluate(checkpoint, folder, tmp_path / "output", settings())
    assert message in str(caught.value)
    assert not (tmp_path / "output" / "scores.json").exists()


def test_an_unknown_benchmark_is_named_with_its_closest_match(checkpoint: Path, rows: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unknown benchmark 'fcats' .*; did you mean 'facts'\?"):
        evaluate(checkpoint, rows, tmp_path, settings(utility=["fcats"]))
    with pytest.raises(UserError, match="'facts' is listed twice"):
        evaluate(checkpoint, rows, tmp_path, settings(utility=["facts"], safety=["facts"]))


def test_every_benchmark_of_the_testbed_is_known(checkpoint: Path, rows: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(rows, tmp_path / "rows"))
    testbed = compose_config([]).eval
    for name in testbed.benchmarks:
        write_rows(folder / f"{name}.jsonl", [{"id": "0", "prompt": "word1", "target": ""}])
    scores = evaluate(checkpoint, folder, tmp_path / "output", testbed)
    assert list(scores["benchmarks"]) == testbed.benchmarks
    refusals = [name for name, entry in scores["benchmarks"].items() if entry["metric"] == "refusal_rate"]
    assert refusals == [*testbed.safety, *testbed.over_refusal]


def _cut_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])


def _deepen(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))


def _garble_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type":')


def _drop_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def _drop_template(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_cut_weights, "not loadable as a model"),
        (_deepen, "9 weights are missing or misshapen"),
        (_garble_config, "not loadable as a model"),
        (_drop_tokenizer, "is not a checkpoint: tokenizer.json missing"),
        (_drop_template, "no chat template"),
        (shutil.rmtree, "is neither a folder nor a model in the local hub cache; did you mean 'model2'?"),
    ],
)
def test_a_damaged_checkpoint_ends_in_one_line_and_exit_code_2(
    checkpoint: Path,
    rows: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], None],
    message: str,
) -> None:
    (tmp_path / "models" / "model2").mkdir(parents=True)
    copy = Path(shutil.copytree(checkpoint, tmp_path / "models" / "model"))
    damage(copy)
    code = command.main([f"checkpoint={copy}", f"eval.data_dir={rows}", "eval.safety=[harmful_seen]",
                         "eval.utility=[facts]", "eval.over_refusal=[]", f"output={tmp_path / 'output'}"])  # fmt: skip
    captured = capsys.readouterr()
    assert code == EXIT_USER_ERROR
    assert message in captured.err
    assert len(captured.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["output=x"], "checkpoint: no value given"),
        (["checkpoint"], "'checkpoint': neither KEY=VALUE nor a command; commands: benchmarks, prefetch, judge"),
        (["jugde"], "did you mean 'judge'?"),
        (["checkpoint=x", "output"], "'output': expected KEY=VALUE"),
        (["checkpiont=x"], "checkpiont: unknown key"),
        (["checkpoint=x"], "eval.data_dir: x lies in no run directory"),
        (["checkpoint=x", "eval=testbad"], "did you mean 'testbed'?"),
        (["checkpoint=x", "eval.limit=0"], "eval.limit: found 0"),
    ],
)
def test_bad_arguments_are_named(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(arguments) == EXIT_USER_ERROR
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_a_checkpoint_in_a_run_directory_brings_its_rows_and_settings(
    checkpoint: Path,
    rows: Path,
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    stage = shutil.copytree(checkpoint, run / "02-dpo")
    shutil.copytree(rows, run / "data" / "evaluation")
    config = compose_config([]).model_copy(update={"eval": settings()})
    (run / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    monkeypatch.chdir(tmp_path)

    assert command.main([f"checkpoint={stage}"]) == EXIT_DONE
    assert contents(run / "eval" / "02-dpo") == contents(finished)
    assert "| facts (accuracy)" in capsys.readouterr().out

    # Other settings than the run's leave the run's own results alone.
    assert command.main([f"checkpoint={stage}", "eval.limit=2"]) == EXIT_DONE
    assert contents(run / "eval" / "02-dpo") == contents(finished)
    [scores] = (tmp_path / "outputs" / "eval").glob("02-dpo-*/scores.json")
    assert json.loads(scores.read_text())["benchmarks"]["facts"]["n"] == 2


def test_an_evaluation_removes_nothing_of_others(tmp_path: Path) -> None:
    output = tmp_path / "results"
    left = output / "generations" / ".facts.jsonl.123"
    others = [output / ".notes.7", output / "mine" / ".cache.12" / "file"]
    for path in (left, *others):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("text")
    arguments = [f"checkpoint={tmp_path}", f"output={output}", "eval=quick", f"eval.data_dir={tmp_path}"]
    assert command.main(arguments) == EXIT_USER_ERROR
    assert not left.exists()
    assert all(path.is_file() for path in others)
