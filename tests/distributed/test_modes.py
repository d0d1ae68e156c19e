"""Every mode on two processes against one process, and against itself after a break."""

import math
import shutil
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import get_args

import pytest
from safetensors.torch import load_file

from ogpsa.utils.files import read_jsonl
from tests.distributed.cases import RESIZED, Case, Matrix, broken, cases, measured, resized
from tests.distributed.launch import PROCESSES, exit_codes, python, torchrun
from tests.program import ROOT

pytestmark = pytest.mark.slow

WORKER = str(Path(__file__).with_name("worker.py"))
MODES = ["ddp", "fsdp2", "zero2", "zero3"]
WITHOUT_DEEPSPEED = pytest.mark.skipif(
    find_spec("deepspeed") is None, reason="DeepSpeed is not installed (make install-deepspeed)"
)
Results = Callable[[str, Matrix], Path]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """``results(mode, matrix)``: the folder of the mode's finished cases; one torchrun trains, one resumes."""
    made: dict[tuple[str, Matrix], Path] = {}

    def get(mode: str, matrix: Matrix) -> Path:
        if (mode, matrix) not in made:
            place = made[mode, matrix] = tmp_path_factory.mktemp(f"{mode}-{matrix}")
            _work(mode, matrix, "train", place)
            for task in RESIZED:
                if resized(matrix, mode, task):
                    shutil.copytree(place / "broken", place / task)
                    _work(mode, matrix, task, place)
            if broken(matrix, mode):
                _work(mode, matrix, "resume", place)
        return made[mode, matrix]

    return get


def _work(mode: str, matrix: Matrix, task: str, place: Path) -> None:
    arguments = (WORKER, mode, matrix, task, str(place))
    count = RESIZED.get(task, PROCESSES)
    process = python(*arguments, cwd=ROOT) if mode == "single" else torchrun(*arguments, cwd=ROOT, processes=count)
    _, stderr = process.communicate()
    killed = task == "train" and any(case.breaks == "kill" for case in broken(matrix, mode))
    if killed:
        assert -9 in exit_codes(stderr), stderr
    else:
        assert process.returncode == 0, stderr


def each_mode(wanted: Callable[[Matrix, str], list[Case]]) -> pytest.MarkDecorator:
    """Parametrize over the cases of every mode, mode by mode."""
    return pytest.mark.parametrize(
        ("mode", "matrix", "case"),
        [
            pytest.param(
                mode,
                matrix,
                case,
                marks=[
                    *[pytest.mark.long] * (matrix == "long" or mode == "zero2"),
                    *[WITHOUT_DEEPSPEED] * mode.startswith("zero"),
                ],
                id=f"{matrix}-{mode}-{case.name}",
            )
            for matrix in get_args(Matrix)
            for mode in MODES
            for case in wanted(matrix, mode)
        ],
    )


def steps(folder: Path) -> list[dict[str, float]]:
    """What was logged at each step, without wall-clock measurements."""
    rows = [row for row in read_jsonl(folder / "history.jsonl") if "loss" in row]
    return [{key: value for key, value in row.items() if not key.endswith(("_seconds", "step_time"))} for row in rows]


@each_mode(lambda matrix, mode: [case for case in cases(matrix, mode) if case.tolerance is not None])
def test_equals_one_process(mode: str, matrix: Matrix, case: Case, results: Results) -> None:
    assert case.tolerance is not None
    one, several = (results(name, matrix) / case.name for name in ("single", mode))
    start = load_file(results("single", matrix) / case.model / "model.safetensors")
    wanted, found = (load_file(folder / "model.safetensors") for folder in (one, several))
    assert found.keys() == wanted.keys()
    moved = max(float((wanted[name] - start[name]).abs().max()) for name in wanted)
    apart = max(float((wanted[name] - found[name]).abs().max()) for name in wanted)
    assert moved > 100 * case.tolerance or case.tolerance > 1e-5
    assert apart <= case.tolerance
    assert {path.name for path in several.iterdir()} == {path.name for path in one.iterdir()}


@each_mode(measured)
def test_held_out_losses_are_those_of_one_process(mode: str, matrix: Matrix, case: Case, results: Results) -> None:
    one, several = (
        [
            {name: value for name, value in row.items() if name.endswith("_loss")}
            for row in read_jsonl(results(task, matrix) / case.name / "history.jsonl")
            if "eval_held_out_safety_loss" in row
        ]
        for task in ("single", mode)
    )
    assert len(one) >= 3 and several == [pytest.approx(row, abs=1e-6) for row in one]


@each_mode(lambda matrix, mode: cases(matrix, mode))
def test_losses_are_finite_and_written_once(mode: str, matrix: Matrix, case: Case, results: Results) -> None:
    rows = steps(results(mode, matrix) / case.name)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6, 7]
    assert all(math.isfinite(row["loss"]) and math.isfinite(row["grad_norm"]) for row in rows)


@each_mode(lambda matrix, mode: [case for case in cases(matrix, mode) if case.same_as])
def test_rank_0_with_its_passes_is_the_baseline(mode: str, matrix: Matrix, case: Case, results: Results) -> None:
    assert case.same_as is not None
    ours, plain = (results(mode, matrix) / name / "model.safetensors" for name in (case.name, case.same_as))
    assert ours.read_bytes() == plain.read_bytes()


@each_mode(broken)
def test_resumed_equals_unbroken(mode: str, matrix: Matrix, case: Case, results: Results) -> None:
    unbroken, resumed = (results(mode, matrix) / part / case.name for part in ("", "broken"))
    assert (resumed / "model.safetensors").read_bytes() == (unbroken / "model.safetensors").read_bytes()
    assert steps(resumed) == steps(unbroken)


def equals_one_process(mode: str, matrix: Matrix, case: Case, results: Results, task: str) -> None:
    assert case.tolerance is not None
    one, several = results("single", matrix) / case.name, results(mode, matrix) / task / case.name
    wanted, found = (load_file(folder / "model.safetensors") for folder in (one, several))
    assert max(float((wanted[name] - found[name]).abs().max()) for name in wanted) <= case.tolerance
    kept, resumed = steps(results(mode, matrix) / case.name), steps(several)
    assert [row["step"] for row in resumed] == [row["step"] for row in kept]
    for before, after in zip(kept, resumed, strict=True):
        assert after["loss"] == pytest.approx(before["loss"], abs=1e-4)


@each_mode(partial(resized, task="doubled"))
def test_resumed_by_twice_the_processes_equals_one_process(
    mode: str, matrix: Matrix, case: Case, results: Results
) -> None:
    """Shards of weights, moments, subspace and average are re-sharded; the declared batch stays."""
    equals_one_process(mode, matrix, case, results, "doubled")


@each_mode(partial(resized, task="alone"))
def test_resumed_by_one_process_equals_one_process(mode: str, matrix: Matrix, case: Case, results: Results) -> None:
    equals_one_process(mode, matrix, case, results, "alone")
