"""What a run's provenance says of the code that made it."""

import os
import subprocess
from pathlib import Path

import pytest

from ogpsa.runs import provenance


def test_a_checkout_that_belongs_to_somebody_else_has_a_revision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*words: str) -> str:
        command = ["git", "-c", "safe.directory=*", "-c", "user.name=A", "-c", "user.email=a@b.c", *words]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.strip()

    git("init")
    git("commit", "--allow-empty", "--message=first")
    if os.getuid() == 0:
        os.chown(tmp_path, 12345, 12345)
        os.chown(tmp_path / ".git", 12345, 12345)
    monkeypatch.setattr(provenance, "REPOSITORY", tmp_path)
    assert provenance.git_state() == {"revision": git("rev-parse", "HEAD"), "dirty": False}
