"""A journal that cannot be written to keeps what it has."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ogpsa.utils.journal import Journal


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Writing beyond fails, after a part has been written, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_what_a_full_disk_cuts_short_leaves_no_trace(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "kept.jsonl", {"of": "replies"})
    journal.keep({"a": 1})
    whole = journal.path.read_bytes()
    with files_of_at_most(len(whole) + 3), pytest.raises(OSError, match="File too large"):
        journal.keep({"b": "too long"})
    assert journal.path.read_bytes() == whole and journal.pieces == {"a": 1}
    journal.keep({"c": 3})
    assert Journal(journal.path, {"of": "replies"}).pieces == {"a": 1, "c": 3}


def test_one_that_was_deleted_is_not_begun_without_its_stamp(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "kept.jsonl", {"of": "replies"})
    journal.keep({"a": 1})
    journal.path.unlink()
    with pytest.raises(FileNotFoundError):
        journal.keep({"b": 2})
    assert not journal.path.exists()
