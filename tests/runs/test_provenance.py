"""What a run's provenance says of the code that made it."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from ogpsa.runs import provenance


@pytest.fixture
def git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Git in a new checkout, which is taken for the code's."""

    def git(*words: str) -> str:
        command = ["git", "-c", "safe.directory=*", "-c", "user.name=A", "-c", "user.email=a@b.c", *words]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.strip()

    git("init")
    git("commit", "--allow-empty", "--message=first")
    monkeypatch.setattr(provenance, "REPOSITORY", tmp_path)
    return git


def test_a_checkout_that_belongs_to_somebody_else_has_a_revision(git: Callable[..., str], tmp_path: Path) -> None:
    if os.getuid() == 0:
        os.chown(tmp_path, 12345, 12345)
        os.chown(tmp_path / ".git", 12345, 12345)
    assert provenance.git_state() == {"revision": git("rev-parse", "HEAD"), "dirty": False}


@pytest.mark.parametrize(
    ("name", "dirty"),
    [
        ("ogpsa/methods/mine.py", True),
        ("conf/method/mine.yaml", True),
        ("eval/benchmarks/tasks/mine/mine.yaml", True),
        ("experiments/definitions/mine.yaml", True),
        ("experiments/mine.py", True),
        ("ogpsa/methods/__pycache__/mine.cpython-312.pyc", False),
        ("slurm/sweeps/mine.txt", False),
        ("experiments/results/check/mine.json", False),
        ("outputs/run/metrics.json", False),
        ("mine/rows.jsonl", False),
    ],
)
def test_code_that_git_does_not_know_yet_counts(
    name: str, dirty: bool, git: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / ".gitignore").write_text("__pycache__/\n")
    git("add", ".gitignore")
    git("commit", "--message=second")
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).write_text("a")
    assert provenance.git_state() == {"revision": git("rev-parse", "HEAD"), "dirty": dirty}
