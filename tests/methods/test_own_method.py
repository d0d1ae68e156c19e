"""A user's own method, two files outside the repository: a run does with it all that it does with ours."""

import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from eval.pareto.command import main as pareto
from ogpsa.app.compose import Composer, validate
from ogpsa.utils.errors import EXIT_REQUEUE, UserError
from ogpsa.utils.files import COMPLETE_FILE
from tests.program import Result, options, run, run_here
from tests.training.test_resume import exists, send

CODE = '''
"""Naive tuning with gamma times the squared norm of the weights in its loss."""

from pydantic import Field

from ogpsa.config import ExtraMemory, Method


class Mine(Method):
    gamma: float = Field(ge=0)

    def trainer_class(self, base, stage):
        gamma = self.gamma

        class Shrinking(base):
            def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
                found = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
                penalty = gamma * sum(weight.square().sum() for weight in model.parameters())
                return (found[0] + penalty, found[1]) if return_outputs else found + penalty

        return Shrinking

    def memory(self, model, stage):
        return ExtraMemory(bytes_per_weight=4)


METHOD = Mine
'''
SHORT = [
    "stage=sft", "stage.batch_size=8", "stage.micro_batch_size=4", "stage.max_steps=12", "stage.save_every=2",
    "stage.log_every=1", "eval.limit=2",
]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the method's two files."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "method").mkdir()
    (folder / "method" / "mine.py").write_text(CODE)
    (folder / "method" / "mine.yaml").write_text("name: mine\nrecipe_rate: learning_rate\ngamma: 0.1\n")
    return folder


@pytest.fixture(scope="module")
def command(place: Path, small: list[str]) -> list[str]:
    return ["--config-dir", str(place), *small, *SHORT, f"stage_store={place / 'store'}"]


@pytest.fixture(scope="module")
def runs(place: Path, command: list[str]) -> dict[str, Path]:
    """Finished runs, made in this order with one store of stages."""
    given = {
        "baseline": ["method=baseline"],
        "none": ["method=mine", "method.gamma=0"],
        "weak": ["method=mine", "method.gamma=0.1"],
        "strong": ["method=mine", "method.gamma=0.2"],
        "again": ["method=mine"],
    }
    for name, overrides in given.items():
        result = run_here(*command, *overrides, f"hydra.run.dir=runs/{name}", cwd=place)
        assert result.code == 0, result.stderr
    return {name: place / "runs" / name for name in given}


def weights(directory: Path) -> dict[str, Tensor]:
    return load_file(directory / "01-sft" / "model.safetensors")


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


def norm(directory: Path) -> float:
    return float(torch.stack([weight.norm() for weight in weights(directory).values()]).norm())


@pytest.mark.slow
def test_it_trains_by_its_own_loss(runs: dict[str, Path]) -> None:
    assert same(weights(runs["none"]), weights(runs["baseline"]))
    assert norm(runs["baseline"]) > norm(runs["weak"]) > norm(runs["strong"])


@pytest.mark.slow
def test_it_is_cached_apart(runs: dict[str, Path], place: Path) -> None:
    assert len(list((place / "store").glob(f"*/{COMPLETE_FILE}"))) == 4
    ours, theirs = (runs[name] / "01-sft" / "model.safetensors" for name in ("again", "weak"))
    assert ours.samefile(theirs)


@pytest.mark.slow
def test_it_appears_in_the_table(runs: dict[str, Path], place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert pareto([str(place / "runs"), "--out", str(place / "tables")]) == 0
    rows = [[cell.strip() for cell in line.split("|")[1:4]] for line in capsys.readouterr().out.splitlines()]
    named = {row[1] for row in rows if row[:1] in (["SFT"], ["sft"])}
    assert named == {"baseline", "mine gamma=0.0", "mine gamma=0.1", "mine gamma=0.2"}


@pytest.mark.slow
def test_its_finished_run_says_that_its_file_has_changed(
    runs: dict[str, Path], command: list[str], place: Path, tmp_path: Path
) -> None:
    file = place / "method" / "mine.py"
    asked = [*command, "method=mine", f"hydra.run.dir={runs['weak']}"]
    before = run_here(*asked, cwd=tmp_path)
    file.write_text(f"{CODE}# changed\n")
    after = run_here(*asked, cwd=tmp_path)
    file.write_text(CODE)
    assert (before.code, after.code) == (0, 0) and before.stdout == after.stdout
    assert "other code" not in before.stderr
    assert f"these numbers were made with other code: {file} has changed since; choose another" in after.stderr


def memory(result: Result) -> float:
    """GB of weights on one device."""
    assert result.code == 0, result.stderr
    lines = [line.split() for line in result.stdout.splitlines()]
    [header], [single] = ([line for line in lines if line[:1] == [first]] for first in ("distributed", "single"))
    return float(single[header.index("weights")])


@pytest.mark.slow
def test_it_is_preflighted(command: list[str], place: Path) -> None:
    plain, ours = (
        run_here(*command, f"method={name}", "preflight=true", "hydra.run.dir=preflight", cwd=place)
        for name in ("baseline", "mine")
    )
    # The four bytes per weight of its own are as much again as the weights.
    assert memory(ours) == pytest.approx(2 * memory(plain), rel=0.01)


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_it_resumes(number: signal.Signals, command: list[str], runs: dict[str, Path], tmp_path: Path) -> None:
    ours = [*command, "method=mine", "stage_store=null", "hydra.run.dir=run"]
    reached = exists(tmp_path / "run" / "01-sft" / "checkpoints", f"checkpoint-2/{COMPLETE_FILE}")
    broken = send(number, reached, *ours, cwd=tmp_path)
    assert broken.code == (-signal.SIGKILL if number == signal.SIGKILL else EXIT_REQUEUE), broken.stderr
    final = run(*ours, cwd=tmp_path)
    assert final.code == 0, final.stderr
    assert "sft: resumes from checkpoint-" in final.stderr
    assert same(weights(tmp_path / "run"), weights(runs["weak"]))


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("method.gamma=-1", "method.gamma: found -1; allowed is greater than or equal to 0"),
        ("method.gama=1", "method.gama: unknown key; allowed: name, recipe_rate, gamma; did you mean 'gamma'?"),
        (
            "method=main",
            f"method: 'main' is not an option; allowed: {options('method', 'mine')}; did you mean 'mine'?",
        ),
    ],
)
def test_mistakes_are_named_as_in_our_own_methods(override: str, problem: str, place: Path) -> None:
    with pytest.raises(UserError) as raised:
        validate(Composer(extra=str(place)).compose(["method=mine", override]))
    assert list(raised.value.problems) == [problem]


@pytest.mark.parametrize("code", ["", "METHOD = 3", "class METHOD: pass"])
def test_a_file_without_a_method_is_refused(code: str, tmp_path: Path) -> None:
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "empty.py").write_text(code)
    (tmp_path / "method" / "empty.yaml").write_text("name: empty\nrecipe_rate: learning_rate\n")
    with pytest.raises(UserError, match=r"empty\.py: declares no METHOD, a subclass of ogpsa\.config\.Method"):
        validate(Composer(extra=str(tmp_path)).compose(["method=empty"]))
