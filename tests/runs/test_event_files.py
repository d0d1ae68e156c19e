"""TensorBoard's event files, as TensorBoard itself reads them."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from ogpsa.app.compose import compose_config
from ogpsa.runs import tracking
from ogpsa.runs.event_files import FOLDER, EventFiles
from ogpsa.runs.tracking import check_tracker, training_values
from ogpsa.utils.errors import UserError
from ogpsa.utils.files import read_json, read_jsonl
from tests.program import run_here

if find_spec("tensorboard") is None:
    pytest.skip("TensorBoard is not installed", allow_module_level=True)


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder))
    read.Reload()
    assert "configuration/text_summary" in read.Tags()["tensors"]
    return {tag: [(event.step, event.value) for event in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


def log(directory: Path, losses: dict[int, float], stage: str = "sft") -> None:
    with EventFiles(directory, {}) as files:
        for step, loss in losses.items():
            files.log(training_values(stage, step, {"loss": loss, "projection/cosine": loss / 2}))


def test_a_resumed_stage_hides_what_was_logged_beyond_its_first_step(tmp_path: Path) -> None:
    log(tmp_path, {2: 5.0, 4: 4.0, 6: 3.0})
    log(tmp_path, {4: 4.5, 6: 3.5})
    log(tmp_path, {2: 9.0}, stage="dpo")
    found = scalars(tmp_path / FOLDER / "sft")
    assert found == {"loss": [(2, 5.0), (4, 4.5), (6, 3.5)], "projection/cosine": [(2, 2.5), (4, 2.25), (6, 1.75)]}
    assert scalars(tmp_path / FOLDER / "dpo")["loss"] == [(2, 9.0)]


@pytest.mark.slow
def test_a_run_is_mirrored(small: list[str], tmp_path: Path) -> None:
    overrides = ["tracker=tensorboard", "stage=sft", "stage.max_steps=4", "stage.log_every=2", "hydra.run.dir=run"]
    result = run_here(*small, *overrides, cwd=tmp_path)
    assert result.code == 0, result.stderr
    run, metrics = tmp_path / "run", read_json(tmp_path / "run" / "metrics.json")
    history = [entry for entry in read_jsonl(run / "01-sft" / "history.jsonl") if "loss" in entry]
    found = scalars(run / FOLDER / "sft")["loss"]
    assert found == [(entry["step"], pytest.approx(entry["loss"])) for entry in history]
    scores: list[dict[str, Any]] = [metrics["base"], metrics["stages"]["sft"]]
    wanted = [(step, pytest.approx(one["safety"])) for step, one in enumerate(scores)]
    assert scalars(run / FOLDER / "scores")["safety"] == wanted


def test_a_missing_package_is_named_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="tracker: tensorboard is not installed; type: make install-tensorboard"):
        check_tracker(compose_config(["tracker=tensorboard"]).tracker)
