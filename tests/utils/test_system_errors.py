"""What the system refuses, in one line whatever raised it."""

import errno
import os
import resource
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from ogpsa.app.compose import compose_config
from ogpsa.models.files import check_model
from ogpsa.utils.errors import UserError
from ogpsa.utils.files import read_json, read_jsonl, write_json
from ogpsa.utils.system_errors import refusal
from tests.program import PROGRAM, ROOT, run_here

WHERE = Path("outputs/run")
TORCH = "[enforce fail at inline_container.cc:858] . PytorchStreamWriter failed writing file data/3: file write failed"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "outputs/run: no space left on the disk"),
        (
            FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']"),
            "TMPDIR: no folder for temporary files can be written; make room",
        ),
        (NotImplementedError("FileSystem does not appear to support flock"), "outputs/run: no locks on this file sys"),
        (OSError(errno.ENOSPC, "No space left on device", "a.json"), "a.json: no space left on the disk"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "outputs/run: the quota of disk space is used up"),
        (OSError(errno.EFBIG, "File too large"), "outputs/run: a file larger than the system allows (ulimit -f)"),
        (
            SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
            "outputs/run: no space left on the disk",
        ),
        (SafetensorError("I/O error (os error 122)"), "outputs/run: the quota of disk space is used up"),
        (RuntimeError(TORCH), "outputs/run: no space left on the disk"),
        (sqlite3.OperationalError("database or disk is full"), "outputs/run: no space left on the disk"),
        (ExceptionGroup("two", [ValueError("x"), OSError(errno.ENOSPC, "full")]), "outputs/run: no space left"),
        (OSError(errno.EROFS, "Read-only file system", "/data/a"), "/data/a: on a file system that is mounted read-on"),
        (OSError(errno.ENOLCK, "No locks available", "l"), "l: no locks on this file system; choose another, or have "),
        (OSError(errno.EMFILE, "Too many open files", "l"), "l: more open files than the system allows; raise ulimit"),
        (
            PermissionError(errno.EACCES, "Permission denied", "/x/y"),
            "/x/y: no permission to read or write on /; choos",
        ),
    ],
)
def test_is_one_line_with_the_path(error: Exception, line: str) -> None:
    refused = refusal(error, WHERE)
    assert refused is not None and len(refused.problems) == 1
    assert refused.problems[0].startswith(line)


def test_is_found_behind_another_error() -> None:
    def fail() -> None:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as full:
            raise RuntimeError("the trainer could not save") from full

    with pytest.raises(RuntimeError) as raised:
        fail()
    assert str(refusal(raised.value, WHERE)).startswith("outputs/run: no space left on the disk; make room")


@pytest.mark.parametrize(
    "error",
    [
        ValueError("x"),
        FileNotFoundError(errno.ENOENT, "No such file", "nowhere"),
        ConnectionRefusedError(errno.ECONNREFUSED, "refused"),
        BrokenPipeError(errno.EPIPE, "Broken pipe"),
    ],
)
def test_other_failures_are_ours(error: Exception) -> None:
    assert refusal(error, WHERE) is None


def test_links_to_nothing_and_files_for_folders_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    (tmp_path / "link").symlink_to("gone")
    (tmp_path / "loop").symlink_to("loop")
    found = {}
    for place in ("file/a", "link/a", "loop/a", "link"):
        with pytest.raises(OSError) as raised:  # noqa: PT011  of several classes
            (tmp_path / place).read_text(encoding="utf-8")
        found[place] = str(refusal(raised.value)).removeprefix(f"{tmp_path}/")
    assert found["file/a"].startswith(f"file/a: lies below {tmp_path}/file, which is a file; expected a folder")
    assert found["link/a"].startswith(f"link/a: {tmp_path}/link is a link to gone, which is not there; mend the link")
    assert found["link"].startswith("link: a link to gone, which is not there; mend the link")
    assert found["loop/a"].startswith("loop/a: a link that leads back to itself")


def test_data_and_a_model_behind_a_link_to_nothing(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to("gone")
    said = f"{link}: a link to gone, which is not there; mend the link, or name another"
    for read in (read_json, read_jsonl):
        with pytest.raises(UserError) as raised:
            read(link)
        assert str(raised.value) == said
    with pytest.raises(UserError) as raised:
        check_model(compose_config([f"model.path={link}"]))
    assert str(raised.value) == f"model.path: {said}"


@pytest.fixture
def small_files() -> Iterator[None]:
    """Files of this process may hold 100,000 bytes, as on a disk that is almost full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("small_files")
def test_a_write_that_fails_names_its_file_and_leaves_no_other(tmp_path: Path) -> None:
    with pytest.raises(OSError) as raised:  # noqa: PT011
        write_json(tmp_path / "big.json", "x" * 200_000)
    assert str(refusal(raised.value)).startswith(f"{tmp_path / 'big.json'}: a file larger than the system allows")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("small_files")
def test_torchs_own_words_are_known(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.save(torch.zeros(100_000), tmp_path / "state.pt")
    assert refusal(raised.value, tmp_path) is not None


@pytest.mark.parametrize(
    "words",
    [["-m", "experiments", "list"], pytest.param([str(PROGRAM), "--help"], marks=pytest.mark.long)],
)
def test_a_screen_that_is_a_file_on_a_full_disk(words: list[str]) -> None:
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        done = subprocess.run([sys.executable, *words], cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (2, "error: no space left on the disk; make room and give the same "
                                              "command again\n")  # fmt: skip


@pytest.mark.slow
@pytest.mark.usefixtures("small_files")
def test_a_run_without_room_ends_with_a_line(small: list[str], tmp_path: Path) -> None:
    result = run_here(*small, "stage=sft", "stage.max_steps=2", "stage.save_every=1", "hydra.run.dir=run", cwd=tmp_path)
    assert (result.code, result.stderr.count("Traceback")) == (2, 0)
    assert result.stderr.splitlines()[-1].startswith(f"error: {tmp_path / 'run'}: a file larger than the system allows")
    assert os.path.lexists(tmp_path / "run" / "run.log")
