"""Merge: the average is plain to the bit, its files are the checkpoint's, and a kill leaves nothing half there."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaForCausalLM

import eval.evaluation
from ogpsa.app.compose import compose_config
from ogpsa.config import Config, Method, StageName
from ogpsa.models.load import load_model
from ogpsa.pipeline import run
from ogpsa.runs.run import Run
from ogpsa.testbed.cache import ensure_base
from ogpsa.training.merging import merge
from ogpsa.utils.errors import UserError
from ogpsa.utils.files import is_complete, mark_complete, read_json
from tests.program import ROOT, contents, run_here
from tests.tiny import byte_tokenizer, tiny_model

Configure = Callable[..., Config]
Pair = tuple[LlamaForCausalLM, LlamaForCausalLM]


def tensors(folder: Path) -> dict[str, Tensor]:
    """All that the folder's files hold."""
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def same_bits(ours: Tensor, theirs: Tensor) -> bool:
    return ours.dtype == theirs.dtype and bytes(ours.view(torch.uint8).numpy()) == bytes(
        theirs.view(torch.uint8).numpy()
    )


def pair(dtype: torch.dtype, tied: bool = False) -> Pair:
    """Two models of different weights, zeros of both signs among them."""
    tokenizer = byte_tokenizer()
    before, after = (tiny_model(tokenizer, seed, tie_word_embeddings=tied) for seed in (0, 1))
    with torch.no_grad():
        for model, zero in ((before, 0.0), (after, -0.0)):
            model.model.norm.weight[:8] = zero
            for parameter in model.parameters():
                parameter.data = parameter.to(dtype)
    return before, after


def save(models: Pair, place: Path, sizes: tuple[str, str] = ("1GB", "1GB")) -> tuple[Path, Path]:
    """Folders of the untuned and the tuned model, in files of at most these sizes."""
    for model, name, size in zip(models, ("base", "01-sft"), sizes, strict=True):
        model.save_pretrained(place / name, max_shard_size=size)
        byte_tokenizer().save_pretrained(place / name)
    (place / "01-sft" / "history.jsonl").write_text("{}\n")
    mark_complete(place / "01-sft", {"stage": "sft"})
    return place / "base", place / "01-sft"


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("weight", [0.0, 0.3, 0.5, 1.0])
def test_plain_average_to_the_bit(weight: float, dtype: torch.dtype, tied: bool, tmp_path: Path) -> None:
    before, after = pair(dtype, tied)
    base, tuned = save((before, after), tmp_path, ("100KB", "60KB"))
    merge(base, tuned, tmp_path / "merged", weight)
    found, theirs = tensors(tmp_path / "merged"), before.state_dict()
    assert found.keys() == tensors(tuned).keys()
    assert ("lm_head.weight" in found) is not tied
    for name, tensor in after.state_dict().items():
        if name in found:
            mean = (weight * tensor.float() + (1 - weight) * theirs[name].float()).to(dtype)
            assert same_bits(found[name], {0.0: theirs[name], 1.0: tensor}.get(weight, mean))


def test_dtype_is_that_of_the_tuned_weights(tmp_path: Path) -> None:
    before, after = pair(torch.float32)
    for parameter in before.parameters():
        parameter.data = parameter.bfloat16()
    base, tuned = save((before, after), tmp_path)
    merge(base, tuned, tmp_path / "merged", 0.25)
    theirs = before.state_dict()
    for name, tensor in tensors(tmp_path / "merged").items():
        assert same_bits(tensor, 0.25 * after.state_dict()[name] + 0.75 * theirs[name].float())


def test_the_checkpoint_is_the_stages_but_for_the_weights(tmp_path: Path) -> None:
    base, tuned = save(pair(torch.float32), tmp_path, ("1GB", "60KB"))
    (base / "config.json").write_text((base / "config.json").read_text().replace("128", "127"))
    merge(base, tuned, tmp_path / "merged", 0.5)
    ours, theirs = contents(tmp_path / "merged"), contents(tuned)
    assert len([name for name in ours if name.endswith(".safetensors")]) > 2
    assert theirs.keys() - ours.keys() == {"history.jsonl"}
    assert {"config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja"} <= ours.keys()
    for name in ours:
        assert name.endswith((".safetensors", "COMPLETE.json")) or ours[name] == theirs[name]
    for file in tuned.glob("*.safetensors"):
        with safe_open(file, "pt") as stored, safe_open(tmp_path / "merged" / file.name, "pt") as written:
            assert written.metadata() == stored.metadata()
            assert written.offset_keys() == stored.offset_keys()
    complete = read_json(tmp_path / "merged" / "COMPLETE.json")
    assert complete.pop("files").keys() == ours.keys() - {"COMPLETE.json"}
    assert complete == {"merged": "01-sft", "weight": 0.5}
    load_model(tmp_path / "merged", torch.float32)


@pytest.mark.parametrize("kept", [("lm_head.weight",), ("lm_head.weight", "model.embed_tokens.weight")])
def test_tied_weights_of_the_base_under_either_name(kept: tuple[str, ...], tmp_path: Path) -> None:
    before, after = pair(torch.float32, tied=True)
    base, tuned = save((before, after), tmp_path)
    stored = load_file(base / "model.safetensors")
    embedding = stored.pop("model.embed_tokens.weight")
    named = {name: embedding.clone() for name in kept}
    save_file(stored | named, base / "model.safetensors", {"format": "pt"})
    merge(base, tuned, tmp_path / "merged", 0.5)
    found = tensors(tmp_path / "merged")
    assert found.keys() == tensors(tuned).keys()
    assert same_bits(found["model.embed_tokens.weight"], 0.5 * after.model.embed_tokens.weight + 0.5 * embedding)
    assert [path.name for path in (tmp_path / "merged").iterdir() if path.is_dir()] == []


def test_broken_off_merge_leaves_nothing_and_is_made_again(tmp_path: Path) -> None:
    base, tuned = save(pair(torch.float32), tmp_path, ("1GB", "60KB"))
    merge(base, tuned, tmp_path / "unbroken", 0.5)
    before = contents(tuned)
    calls: Iterator[int] = iter(range(9))

    def leave_at_the_tenth() -> None:
        if next(calls, None) is None:
            raise SystemExit(85)

    with pytest.raises(SystemExit):
        merge(base, tuned, tmp_path / "merged", 0.5, leave_at_the_tenth)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["01-sft", "base", "unbroken"]
    merge(base, tuned, tmp_path / "merged", 0.5)
    assert contents(tmp_path / "merged") == contents(tmp_path / "unbroken")
    assert contents(tuned) == before
    # What is complete is left as it is.
    merge(base, tuned, tmp_path / "merged", 0.1)
    assert contents(tmp_path / "merged") == contents(tmp_path / "unbroken")


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("method.weight=1.5", "method.weight: found 1.5; allowed is less than or equal to 1"),
        (
            "method.merge_after=stages",
            "method.merge_after: found 'stages'; allowed is 'pipeline' or 'stage'; did you mean 'stage'?",
        ),
    ],
)
def test_mistakes(override: str, problem: str) -> None:
    with pytest.raises(UserError) as raised:
        compose_config(["method=merge", override])
    assert list(raised.value.problems) == [problem]


@pytest.fixture(scope="module")
def merged_run(small: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path]:
    """A finished run's overrides and its working directory."""
    place = tmp_path_factory.mktemp("merged")
    command = [*small, "stage=sft_dpo", "method=merge", "stage.sft.max_steps=4", "hydra.run.dir=run"]
    result = run_here(*command, cwd=place)
    assert result.code == 0, result.stderr
    assert "| after SFT | after DPO | after DPO-merged |" in " ".join(result.stdout.split())
    return command, place


@pytest.mark.slow
def test_once_at_the_end_of_the_pipeline(merged_run: tuple[list[str], Path], small_config: Configure) -> None:
    directory = merged_run[1] / "run"
    folders = ["01-sft", "02-dpo", "02-dpo-merged"]
    assert sorted(path.name for path in directory.glob("0*")) == folders
    assert sorted(path.name for path in (directory / "eval").iterdir()) == [*folders, "base"]
    base, dpo, merged = map(tensors, (ensure_base(small_config()), directory / "02-dpo", directory / "02-dpo-merged"))
    assert all(same_bits(merged[name], 0.5 * dpo[name] + 0.5 * base[name]) for name in dpo)
    metrics = read_json(directory / "metrics.json")
    assert list(metrics["stages"]) == ["sft", "dpo", "dpo-merged"]
    for group in ("safety", "utility", "over_refusal"):
        assert metrics[group] == metrics["stages"]["dpo-merged"][group]
    assert metrics["stages"]["dpo-merged"] == read_json(directory / "eval" / "02-dpo-merged" / "scores.json")


@pytest.mark.long
def test_after_each_stage_the_next_starts_from_the_average(small_config: Configure, tmp_path: Path) -> None:
    # With nothing of the tuned weights, DPO starts from the untuned model.
    short = ["stage.dpo.max_steps=2", "stage.sft.max_steps=2"]
    config = small_config("stage=sft_dpo", "method=merge", "method.weight=0", "method.merge_after=stage", *short)
    run(config, tmp_path / "both", eval.evaluation.evaluate)
    run(small_config("stage=dpo", "method=baseline", "stage.max_steps=2"), tmp_path / "dpo", eval.evaluation.evaluate)
    folders = ["01-sft", "01-sft-merged", "02-dpo", "02-dpo-merged"]
    assert sorted(path.name for path in (tmp_path / "both").glob("0*")) == folders
    assert list(read_json(tmp_path / "both" / "metrics.json")["stages"]) == ["sft", "sft-merged", "dpo", "dpo-merged"]
    base = tensors(ensure_base(config))
    ours, theirs = tensors(tmp_path / "both" / "02-dpo"), tensors(tmp_path / "dpo" / "01-dpo")
    for name in base:
        assert same_bits(tensors(tmp_path / "both" / "02-dpo-merged")[name], base[name])
        assert same_bits(ours[name], theirs[name])
    assert not all(same_bits(ours[name], base[name]) for name in base)


class Forgetting(Method):
    """Gives the untuned model back after each stage, as a checkpoint of its own."""

    def after_stage(self, stage: StageName, base: Path, checkpoint: Path, run: Run) -> Path:
        target = checkpoint.with_name(f"{checkpoint.name}-forgotten")
        run.on_main_process(lambda: shutil.copytree(base, target))
        return target


@pytest.mark.slow
def test_what_a_method_makes_after_a_stage_is_evaluated_and_starts_the_next(
    small_config: Configure, tmp_path: Path
) -> None:
    naive = small_config("stage=sft_dpo", "method=baseline", "stage.sft.max_steps=2", "stage.dpo.max_steps=2")
    config = naive.model_copy(update={"method": Forgetting(name="forgetting")})
    run(config, tmp_path / "both", eval.evaluation.evaluate)
    run(small_config("stage=dpo", "method=baseline", "stage.max_steps=2"), tmp_path / "dpo", eval.evaluation.evaluate)
    ours, theirs = tensors(tmp_path / "both" / "02-dpo"), tensors(tmp_path / "dpo" / "01-dpo")
    assert all(same_bits(ours[name], theirs[name]) for name in theirs)
    metrics = read_json(tmp_path / "both" / "metrics.json")
    assert list(metrics["stages"]) == ["sft", "sft-forgotten", "dpo", "dpo-forgotten"]
    for name in ("sft-forgotten", "dpo-forgotten"):
        assert metrics["stages"][name]["benchmarks"] == metrics["base"]["benchmarks"]
    assert {group: metrics[group] for group in ("safety", "utility", "over_refusal")} == {
        group: metrics["base"][group] for group in ("safety", "utility", "over_refusal")
    }


# The merge of a run, slow enough to be killed in the middle.
SLOWLY = """
import sys, time
from pathlib import Path
from ogpsa.training.merging import merge
base, tuned, target = map(Path, sys.argv[1:])
merge(base, tuned, target, 0.5, lambda: time.sleep(0.1))
"""


@pytest.mark.long
def test_killed_in_the_middle(merged_run: tuple[list[str], Path], small_config: Configure) -> None:
    command, place = merged_run
    directory = place / "run"
    target = directory / "02-dpo-merged"
    unbroken, tuned = contents(directory), contents(directory / "02-dpo")
    for folder in (target, directory / "eval" / target.name):
        shutil.rmtree(folder)
    (directory / "metrics.json").unlink()
    arguments = [str(ensure_base(small_config())), str(directory / "02-dpo"), str(target)]
    process = subprocess.Popen(
        [sys.executable, "-c", SLOWLY, *arguments], env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE
    )
    try:
        while not (half := list(directory.glob(".02-dpo-merged.*/model.safetensors"))):
            assert process.poll() is None, "ended before it was killed"
            time.sleep(0.01)
        time.sleep(0.3)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    finally:
        process.kill()
    assert half[0].exists() and not target.exists()
    assert is_complete(directory / "02-dpo") and contents(directory / "02-dpo") == tuned
    result = run_here(*command, cwd=place)
    assert result.code == 0, result.stderr
    after = contents(directory)
    assert after.keys() == unbroken.keys()
    own = {"run.log", "run.lock", "provenance.json"}
    assert [name for name in after if after[name] != unbroken[name] and name not in own] == []


@pytest.mark.long
def test_ogpsa_is_trained_and_then_averaged(small_config: Configure, tmp_path: Path) -> None:
    short = ["stage=sft", "stage.max_steps=2", "method.samples=8"]
    config = small_config("method=ogpsa_merge", *short)
    run(config, tmp_path / "merged", eval.evaluation.evaluate)
    run(small_config("method=ogpsa", *short), tmp_path / "ogpsa", eval.evaluation.evaluate)
    tuned, base = tensors(tmp_path / "ogpsa" / "01-sft"), tensors(ensure_base(config))
    merged = tensors(tmp_path / "merged" / "01-sft-merged")
    assert all(same_bits(merged[name], 0.5 * tuned[name] + 0.5 * base[name]) for name in base)
