"""Replay: which general rows are drawn, that training on them is training on such a safety set, what is refused."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file

import eval.evaluation
from ogpsa.app.compose import compose_config
from ogpsa.config import Config, SetUse
from ogpsa.data.rows import Data, load_data
from ogpsa.methods.replay import ReplayedAnswers
from ogpsa.models.load import load_model
from ogpsa.pipeline import run
from ogpsa.preflight.report import count, report
from ogpsa.testbed.cache import ensure_base
from ogpsa.training import answers
from ogpsa.training.trainer import build_trainer
from ogpsa.utils.errors import UserError
from ogpsa.utils.files import read_json, read_jsonl, write_jsonl
from tests.stage import train_alone

Configure = Callable[..., Config]
SHORT = ["stage.max_steps=3", "stage.batch_size=8", "stage.micro_batch_size=4"]


def mixed(name: str, rows: int) -> SetUse:
    return SetUse(name, rows, "ratio", trained_on=True)


@pytest.mark.parametrize(
    ("override", "sft", "dpo"),
    [
        ("seed=0", [("helpfulness", 15), ("truthfulness", 15)], [("preference", 30)]),
        ("method.ratio=0.25", [("helpfulness", 13), ("truthfulness", 12)], [("preference", 25)]),
        ("method.ratio=1", [("helpfulness", 50), ("truthfulness", 50)], [("preference", 100)]),
        ("method.ratio={sft: 0.3, dpo: 0.5}", [("helpfulness", 15), ("truthfulness", 15)], [("preference", 50)]),
        ("method.ratio=0", [("helpfulness", 0), ("truthfulness", 0)], [("preference", 0)]),
        ("method.general_sets=[preference]", [("preference", 30)], [("preference", 30)]),
    ],
)
def test_rows_wanted_of_each_set(override: str, sft: list[tuple[str, int]], dpo: list[tuple[str, int]]) -> None:
    method = compose_config(["method=replay", override]).method
    assert method.set_uses("sft", 100) == [mixed(*use) for use in sft]
    assert method.set_uses("dpo", 100) == [mixed(*use) for use in dpo]
    assert method.projection("sft") is None


def test_the_defaults_run_on_the_testbed() -> None:
    data = load_data(compose_config(["method=replay"]))
    assert {stage: len(rows) for stage, rows in data.general.items()} == {"sft": 374, "dpo": 374}


def test_rows_are_drawn_by_the_seed(small_config: Configure) -> None:
    made = {seed: load_data(small_config("method=replay", "method.ratio=0.5", f"seed={seed}")) for seed in (0, 1)}
    general = made[0].general
    for stage, sets in {"sft": ("helpfulness", "truthfulness"), "dpo": ("preference",)}.items():
        rows = general[stage]  # type: ignore[index]
        share = 32 // len(sets)
        for position, name in enumerate(sets):
            part = rows[position * share : (position + 1) * share]
            assert len({row["prompt"] for row in part}) == len(part) == share
            assert all(row in made[0].reference_sets[name] for row in part)
        assert rows != made[1].general[stage]  # type: ignore[index]
    assert general == load_data(small_config("method=replay", "method.ratio=0.5")).general
    # It differs from the baseline's by what is mixed in, and not at all if nothing is.
    baseline, nothing = (
        load_data(small_config("method=baseline")),
        load_data(small_config("method=replay", "method.ratio=0")),
    )
    assert baseline.general == {}
    assert made[0].safety == baseline.safety == baseline.training("sft") == nothing.training("sft")
    assert made[0].training("dpo") == baseline.safety + general["dpo"]


def weights(config: Config, data: Data, folder: Path) -> dict[str, torch.Tensor]:
    train_alone(config, data, ensure_base(config), folder)
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("stage", ["sft", pytest.param("dpo", marks=pytest.mark.long)])
def test_training_is_the_baselines_on_the_rows_together(stage: Any, small_config: Configure, tmp_path: Path) -> None:
    config, baseline = (small_config(f"stage={stage}", f"method={name}", *SHORT) for name in ("replay", "baseline"))
    data = load_data(config)
    ours = weights(config, data, tmp_path / "ours")
    together = replace(data, safety=data.training(stage), general={})
    theirs = weights(baseline, together, tmp_path / "theirs")
    alone = weights(baseline, load_data(baseline), tmp_path / "alone")
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert not all(torch.equal(ours[name], alone[name]) for name in ours)


@pytest.mark.parametrize("stage", ["sft", pytest.param("dpo", marks=pytest.mark.long)])
def test_preflight_counts_the_general_rows(stage: str, small_config: Configure, tmp_path: Path) -> None:
    config = small_config(f"stage={stage}", "method=replay", "method.ratio=0.4", *SHORT[1:], "stage.epochs=2")
    data = load_data(config)
    # 64 + 26 rows in batches of 8.
    found = count(config.stages[0], None, data, checkpointing=False)
    assert (found.steps, found.samples) == (24, 180)
    trainer = build_trainer(config, config.stages[0], *load_model(ensure_base(config), torch.float32), data, tmp_path)
    trainer.train()
    assert trainer.state.global_step == found.steps
    assert f"{stage}: 90 rows × 2 epochs in batches of 8: 24 steps, 180 rows" in report(config, data)


def files(place: Path, counts: dict[str, int], **columns: str) -> list[str]:
    """Overrides for a user's own rows, this many in each set."""
    for name, rows in counts.items():
        texts = [{key: f"{text} {name} {number}" for key, text in columns.items()} for number in range(rows)]
        write_jsonl(place / f"{name}.jsonl", texts)
    sets = ", ".join(f"{name}: {place / name}.jsonl" for name in counts if name != "safety")
    return [
        "data=files", f"data.safety={place / 'safety.jsonl'}", f"+data.reference_sets={{{sets}}}", "tracker=none",
        "model.path=none", "method=replay", "stage.batch_size=2", "stage.micro_batch_size=1",
    ]  # fmt: skip


def test_own_rows_are_read_from_the_sets_that_are_mixed_in(tmp_path: Path) -> None:
    counts = {"safety": 8, "helpfulness": 3, "truthfulness": 5, "chat": 9}
    given = [*files(tmp_path, counts, prompt="a", completion="b"), "stage=sft"]
    (tmp_path / "truthfulness.jsonl").unlink()
    data = load_data(compose_config([*given, "method.general_sets=[chat,helpfulness]", "method.ratio=0.75"]))
    assert data.reference_sets.keys() == {"chat", "helpfulness"}
    assert [row["prompt"].split()[1] for row in data.general["sft"]] == ["chat"] * 3 + ["helpfulness"] * 3
    with pytest.raises(UserError, match=r"data\.reference_sets\.truthfulness: .*truthfulness.jsonl: no such file"):
        load_data(compose_config(given))


REFUSED: dict[tuple[str, ...], str] = {
    ("method.ratio=2",): (
        "method.ratio: 8 rows wanted for sft, but reference set 'helpfulness' holds 3; lower method.ratio or add rows"
    ),
    ("method.general_sets=[chta]",): (
        "method.general_sets: 'chta' is not among data=files's sets for sft; allowed: helpfulness, truthfulness, chat; "
        "did you mean 'chat'?"
    ),
    ("method.general_sets=[chat,chat]",): "method.general_sets: a set is named twice for sft: give each once",
    ("method.ratio=-1",): (
        "method.ratio: found -1; allowed is greater than or equal to 0, or a mapping by stage"
    ),
}  # fmt: skip


@pytest.mark.parametrize("overrides", REFUSED, ids=" ".join)
def test_what_cannot_be_mixed_is_refused_by_name(overrides: tuple[str, ...], tmp_path: Path) -> None:
    counts = {"safety": 8, "helpfulness": 3, "truthfulness": 8, "chat": 9}
    given = files(tmp_path, counts, prompt="a", completion="b")
    with pytest.raises(UserError) as raised:
        load_data(compose_config([*given, "stage=sft", *overrides]))
    assert list(raised.value.problems) == [REFUSED[overrides]]


def test_grpo_takes_the_rows_of_its_sets_as_often_as_it_needs_them(small_config: Configure) -> None:
    config = small_config("stage=grpo", "method=replay", "method.ratio=9")
    assert load_data(config).general == {}


def test_dpo_needs_pairs_in_the_sets(tmp_path: Path) -> None:
    given = files(tmp_path, {"safety": 4, "preference": 4}, prompt="a", chosen="b", rejected="c")
    assert len(load_data(compose_config([*given, "stage=dpo"])).general["dpo"]) == 1
    write_jsonl(tmp_path / "preference.jsonl", [{"prompt": "a", "completion": "b"}])
    with pytest.raises(UserError, match=r"preference\.jsonl:1 has no text in column 'rejected'"):
        load_data(compose_config([*given, "stage=dpo"]))


@pytest.mark.slow
def test_a_run_says_what_was_mixed_in(small_config: Configure, tmp_path: Path) -> None:
    config = small_config("stage=sft_dpo", "method=replay", "method.ratio={sft: 0.5, dpo: 0.3}")
    run(config, tmp_path / "run", eval.evaluation.evaluate)
    assert read_json(tmp_path / "run" / "01-sft" / "COMPLETE.json")["steps"] == 18
    facts, data = read_json(tmp_path / "run" / "provenance.json")["data"], load_data(config)
    for stage, rows in {"sft": 32, "dpo": 19}.items():
        assert facts[f"general/{stage}"]["rows"] == rows
        kept = read_jsonl(tmp_path / "run" / "data" / "general" / f"{stage}.jsonl")
        assert kept == data.general[stage]  # type: ignore[index]
    assert facts["safety"]["rows"] == 64


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_general_rows_of_a_step_of_grpo_do_not_depend_on_the_processes(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[list[int]] = []

    def batch(_: object, rows: list[dict[str, int]]) -> dict[str, torch.Tensor]:
        return {"labels": torch.tensor([[row["number"]] for row in rows])}

    monkeypatch.setattr(answers, "answer_batch", batch)
    monkeypatch.setattr(
        answers, "answer_step", lambda _, __, given, items: passes.append([*given["labels"].flatten().tolist(), items])
    )
    taken = []
    for world in (1, 2, 4, 8):
        seen: list[int] = []
        numbers = set()
        for rank in range(world):
            settings = SimpleNamespace(
                per_device_train_batch_size=16 // world, gradient_accumulation_steps=1, world_size=world,
                num_generations=1, process_index=rank, device="cpu",
            )  # fmt: skip
            trainer = SimpleNamespace(
                eval_dataset={"general": [{"number": number} for number in range(40)]}, args=settings,
                processing_class=None, model_wrapped=None, state=SimpleNamespace(global_step=7),
            )  # fmt: skip
            passes.clear()
            ReplayedAnswers(cast(Any, trainer), 1.0, count / 16, 0).add()
            numbers.add(len(passes))
            seen += [row for *rows, items in passes for row in rows if row != answers.IGNORED]
            assert all(items == count for *_, items in passes)
        # Each backward pass is all processes'.
        assert len(numbers) == 1
        taken.append(sorted(seen))
    assert len(taken[0]) == count
    assert taken == [taken[0]] * 4
