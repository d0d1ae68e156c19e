"""The picture of what the projection logged."""

from pathlib import Path

import pytest

from eval.report.projection_curves import PANELS, draw, main, read_history
from ogpsa.utils.command_line import run_program
from ogpsa.utils.errors import EXIT_DONE, EXIT_USER_ERROR
from ogpsa.utils.files import write_jsonl


def row(step: int) -> dict[str, float]:
    numbers = {
        "norm_retained": 0.9, "body/norm_retained": 0.8, "cosine": 0.4, "body/cosine": 0.5, "cosine_after": 1e-9 * step,
        "step_share": 0.1, "reference_loss/facts": 2.0 - step / 10, "effective_rank": 2, "basis_age": step % 3,
        "refresh_seconds": 1.5, "projection_seconds": 0.01,
    }  # fmt: skip
    return {"step": step, "loss": 1.0} | {f"projection/{name}": value for name, value in numbers.items()}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    write_jsonl(tmp_path / "01-sft" / "history.jsonl", [row(step) for step in range(1, 6)])
    write_jsonl(tmp_path / "02-dpo" / "history.jsonl", [{"step": 1, "loss": 1.0}])
    return tmp_path


def test_every_number_is_drawn_against_the_step(run: Path) -> None:
    figure = draw(read_history(run))
    assert len(figure.axes) == len(PANELS)
    lines = {line.get_label(): line for axes in figure.axes for line in axes.lines}
    assert list(lines["facts"].get_xdata()) == [1, 2, 3, 4, 5]
    assert list(lines["facts"].get_ydata()) == [1.9, 1.8, 1.7, 1.6, 1.5]
    assert all(any(len(line.get_xdata()) for line in axes.lines) for axes in figure.axes)


@pytest.mark.slow
def test_the_picture_is_written_beside_the_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run)]) == EXIT_DONE
    assert (run / "diagnostics.png").stat().st_size > 10_000
    assert capsys.readouterr().out.splitlines() == [str(run / "diagnostics.png"), str(run / "diagnostics.pdf")]


def test_a_folder_without_projection_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "01-sft" / "history.jsonl").unlink()
    assert run_program(lambda: main([str(run)])) == EXIT_USER_ERROR
    assert "no projection in 02-dpo; give the directory of a finished run" in capsys.readouterr().err
    assert run_program(lambda: main([str(run / "absent")])) == EXIT_USER_ERROR
