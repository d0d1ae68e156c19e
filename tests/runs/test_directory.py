"""The run directory's lock, and what a run is called in W&B."""

from pathlib import Path

import pytest

from ogpsa.app.compose import compose_config
from ogpsa.runs.directory import LOCK_FILE, own
from ogpsa.runs.tracking import run_title
from ogpsa.utils.errors import EXIT_REQUEUE, UserError
from ogpsa.utils.files import exclusive


def test_a_directory_in_use_is_refused_at_once(tmp_path: Path) -> None:
    with (
        exclusive(tmp_path / LOCK_FILE, "in use"),
        pytest.raises(UserError, match="another process runs in"),
        own(tmp_path, compose_config([])),
    ):
        pass


def test_a_directory_in_use_is_waited_for_and_left_with_85(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (
        exclusive(tmp_path / LOCK_FILE, "in use"),
        pytest.raises(SystemExit) as left,
        own(tmp_path, compose_config(["lock_wait=1"])),
    ):
        pass
    assert left.value.code == EXIT_REQUEUE
    assert capsys.readouterr().err == f"another process still runs in {tmp_path} after 1 s\n"


def test_waiting_does_not_change_a_run() -> None:
    assert compose_config(["lock_wait=60"]).run_name() == compose_config([]).run_name()


@pytest.mark.parametrize(
    ("overrides", "title"),
    [
        (["method=ogpsa", "method.rank=4", "method.refresh_every=5"], "tiny-sft_dpo-ogpsa-r4-K5-seed0"),
        (
            ["method=ogpsa", "method.rank={sft: 2, dpo: 1}", "method.refresh_every={sft: 30, dpo: never}", "seed=3"],
            "tiny-sft_dpo-ogpsa-r2+1-K30+never-seed3",
        ),
        (["method=baseline", "stage=sft"], "tiny-sft-baseline-seed0"),
    ],
)
def test_a_runs_title_says_method_rank_k_and_seed(overrides: list[str], title: str) -> None:
    assert run_title(compose_config(overrides).identity()) == title


def test_a_process_that_waits_for_another_says_for_whom(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    seconds = 0

    def wait() -> None:
        nonlocal seconds
        seconds += 1
        if seconds == 4:
            raise InterruptedError

    with (
        exclusive(tmp_path / "key.lock", "another run makes the same stage"),
        pytest.raises(InterruptedError),
        exclusive(tmp_path / "key.lock", "another run makes the same stage", wait=wait),
    ):
        pass
    [said] = caplog.messages
    assert said.startswith("waiting: another run makes the same stage (host ")
