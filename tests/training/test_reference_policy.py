"""DPO's reference log-probabilities: a signal is heard between batches, and a resume computes none of them again."""

import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from trl import DPOTrainer

from ogpsa.config import Config
from ogpsa.data.rows import load_data
from ogpsa.testbed.cache import ensure_base
from ogpsa.utils.progress import Progress
from ogpsa.utils.signals import Interruption
from tests.stage import train_alone

OVERRIDES = ["stage=dpo", "method=ogpsa", "method.samples=8", "stage.max_steps=2", "stage.micro_batch_size=16"]


class Counted:
    """TRL's passes, counted; the third asks for an interruption where there is one."""

    def __init__(self, interruption: Interruption | None = None) -> None:
        self.count = 0
        self._interruption = interruption
        self._own: Callable[..., Any] = DPOTrainer.compute_ref_log_probs

    def method(self) -> Callable[..., Any]:
        def compute_ref_log_probs(trainer: Any, model: Any, inputs: Any) -> Any:
            self.count += 1
            if self.count == 3 and self._interruption is not None:
                self._interruption.requested = True
            return self._own(trainer, model, inputs)

        return compute_ref_log_probs


@pytest.mark.slow
def test_an_interrupted_stage_resumes_with_what_it_has(
    small_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(*OVERRIDES)
    data, start = load_data(config), ensure_base(config)

    def train(folder: Path, interruption: Interruption | None = None) -> int:
        counted = Counted(interruption)
        with monkeypatch.context() as patch:
            patch.setattr(DPOTrainer, "compute_ref_log_probs", counted.method())
            with pytest.raises(SystemExit, match="85") if interruption else nullcontext():
                train_alone(config, data, start, folder, interruption)
        return counted.count

    every = train(tmp_path / "unbroken" / "01-dpo")
    broken = tmp_path / "broken" / "01-dpo"
    assert train(broken, Interruption()) == 3 < every
    assert train(broken) == every - 3
    weights = [(place / "model.safetensors").read_bytes() for place in (tmp_path / "unbroken" / "01-dpo", broken)]
    assert weights[0] == weights[1]
    assert not (broken / "checkpoints").exists()


def test_work_without_a_step_says_so_once_an_interval(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(4, "base", interval=0.1):
        time.sleep(1.3)
    assert "base: 0/4, 1 s, no estimate yet" in capsys.readouterr().err
