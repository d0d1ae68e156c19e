"""What the user may not read or write, whose home cannot be used, and Ctrl-C."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from eval.__main__ import main as evaluate_main
from ogpsa.utils import libraries
from ogpsa.utils.command_line import run_program
from ogpsa.utils.files import mark_complete
from tests.program import run_here

ROOT_MAY_ALL = pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write everything")


@pytest.fixture
def closed(tmp_path: Path) -> Iterator[Path]:
    """A folder that may be read alone, with a file that may not."""
    folder = tmp_path / "closed"
    folder.mkdir()
    (folder / "rows.jsonl").write_text('{"prompt": "p", "chosen": "c", "rejected": "r"}\n', encoding="utf-8")
    (folder / "rows.jsonl").chmod(0)
    folder.chmod(0o555)
    yield folder
    folder.chmod(0o755)


@ROOT_MAY_ALL
def test_an_evaluation_into_a_folder_that_cannot_be_written(closed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = (f"checkpoint={closed}", f"eval.data_dir={closed}", f"output={closed / 'here'}")
    assert evaluate_main(words) == 2
    said = f"error: output: {closed / 'here'} cannot be written: no permission on {closed}; choose another directory\n"
    assert capsys.readouterr().err == said


@ROOT_MAY_ALL
def test_a_data_file_that_cannot_be_read(closed: Path, tmp_path: Path) -> None:
    file = closed / "rows.jsonl"
    words = ("data=files", f"data.safety={file}", "method=baseline", f"model.path={closed}", "tracker=none")
    result = run_here(*words, cwd=tmp_path)
    said = f"error: {file}: no permission to read it; have it opened to you (chmod a+r), or name another\n"
    assert (result.code, result.stderr) == (2, said)


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600), (0o002, 0o664)])
def test_others_may_read_what_the_umask_lets_them(umask: int, mode: int, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch(mode=0o600)
    before = os.umask(umask)
    try:
        mark_complete(tmp_path, {})
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "model.safetensors").stat().st_mode) == mode


@pytest.mark.parametrize("home", ["/proc/none", "/dev/null"])
def test_a_home_that_cannot_be_written_is_replaced(home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", home)
    monkeypatch.setenv("USER", "me")
    monkeypatch.setattr(libraries.tempfile, "gettempdir", lambda: str(tmp_path))
    libraries.quiet_libraries()
    replaced = Path(os.environ["HOME"])
    assert replaced.parent == tmp_path
    assert os.access(replaced, os.W_OK)


def test_ctrl_c_is_a_line(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> int:
        raise KeyboardInterrupt

    said = "\ninterrupted; the same command resumes with what is finished\n"
    assert run_program(interrupt) == 130
    assert capsys.readouterr().err == said
    monkeypatch.setattr("ogpsa.pipeline.run", interrupt)
    result = run_here("tracker=none", "hydra.run.dir=run", cwd=tmp_path)
    assert (result.code, result.stderr) == (130, said)
