"""Fingerprints of a run's inputs: recorded when it begins, compared whenever it is started again.

``provenance.json`` holds the digests: of the rows as ``data``; of the model's files, of code and libraries as
``rests_on``. Benchmarks and judges are compared by ``eval/validate.py``: an evaluation's files record their inputs.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from importlib.metadata import version
from inspect import getfile
from pathlib import Path
from typing import Any, NoReturn

from ogpsa.config import Method, Reward
from ogpsa.data.rows import Data, Row
from ogpsa.models.files import file_hashes
from ogpsa.runs.directory import PROVENANCE_FILE
from ogpsa.utils.errors import UserError, first_few
from ogpsa.utils.files import hash_file, read_json, read_jsonl, write_json

log = logging.getLogger(__name__)
PACKAGE = Path(__file__).resolve().parents[1]
# Packages whose code cannot change a result.
NEUTRAL = {"ogpsa/app", "ogpsa/preflight", "eval/pareto", "eval/report"}
LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "lm_eval")
# Kinds of inputs that ``accept_changed`` may name.
KINDS = ("code", "libraries")


def model_digests(folder: Path) -> dict[str, str]:
    """The untuned model, file by file."""
    return {f"model/{name}": digest for name, digest in file_hashes(folder).items()}


def code_digests(*given: Method | Reward) -> dict[str, str]:
    """The code that decides a result by package, own files of methods and rewards, and the libraries' versions."""
    return package_digests() | own_digests(*given)


def own_digests(*given: Method | Reward) -> dict[str, str]:
    """The files that declare the methods and rewards, file by file; outside this package also those beside them."""
    ours = [file for file in _files(*given) if file.parent in (PACKAGE / "methods", PACKAGE / "rewards")]
    named = {path.relative_to(PACKAGE.parent).as_posix(): path for path in sorted(ours)}
    named |= {str(path): path for path in code_outside(*given)}
    return {f"code/{name}": hash_file(path)[:16] for name, path in named.items()}


def package_digests() -> dict[str, str]:
    """Our own code, package by package, with its prompts, tasks and templates, and the libraries' versions."""
    files: dict[str, list[Path]] = {}
    for package in (PACKAGE, PACKAGE.with_name("eval")):
        for path in sorted(filter(Path.is_file, package.rglob("*"))):
            parts = path.relative_to(package.parent).parts
            # Except files that editors and Python leave next to the code.
            if not any(part.startswith((".", "__pycache__")) or part.endswith("~") for part in parts):
                files.setdefault("/".join(parts[:2]), []).append(path)
    packages = {f"code/{name}": _digest(paths) for name, paths in files.items() if name not in NEUTRAL}
    return packages | {f"libraries/{name}": version(name) for name in LIBRARIES}


def code_outside(*given: Method | Reward) -> list[Path]:
    """The Python files outside this package, in the folders of the methods, the rewards and their base classes."""
    files = [file for file in _files(*given) if not file.is_relative_to(PACKAGE)]
    return sorted({beside for file in files for beside in file.parent.glob("*.py")})


def _files(*given: Method | Reward) -> set[Path]:
    """The files of the methods, the rewards, nested ones too, and their base classes."""
    files: set[Path] = set()
    pending = list(given)
    while pending:
        one = pending.pop()
        files |= {Path(getfile(kind)).resolve() for kind in type(one).mro() if issubclass(kind, Method | Reward)}
        pending += one.nested().values() if isinstance(one, Reward) else ()
    return files


def _digest(paths: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path.relative_to(PACKAGE.parent)}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def record_inputs(directory: Path, digests: Mapping[str, str]) -> None:
    """Record the run's inputs in its provenance unless they are there; record in its session those that changed."""
    facts = read_json(directory / PROVENANCE_FILE)
    noted = facts.get("rests_on", {})
    facts["rests_on"] = {**digests, **noted}
    changed = {name: digest for name, digest in digests.items() if noted.get(name, digest) != digest}
    if changed:
        facts["sessions"][-1]["changed"] = changed
    write_json(directory / PROVENANCE_FILE, facts)


def untuned_digest(directory: Path) -> str | None:
    """Digest of the untuned model that the run began with; None if none is recorded."""
    rests_on: dict[str, str] = _provenance(directory).get("rests_on", {})
    noted = {name: digest for name, digest in rests_on.items() if _kind(name) == "model"}
    return digest_of(sorted(noted.items())) if noted else None


def folder_digest(folder: Path) -> str:
    """``untuned_digest`` of a run that would begin with the model in ``folder``."""
    return digest_of(sorted(model_digests(folder).items()))


def digest_of(facts: Any) -> str:
    """Sixteen hexadecimal digits over facts that JSON can hold."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def check_rows(directory: Path, data: Data) -> None:
    """Refuse to resume a run, or to show its result, with other rows than it began with.

    Raises:
        UserError: names the part of the data and the first row that differs.
    """
    noted = _provenance(directory).get("data")
    if noted is None:
        return
    present = data.facts()
    changed = [name for name in sorted(noted.keys() | present.keys()) if noted.get(name) != present.get(name)]
    if changed:
        rows = dict(data.parts())
        _refuse(directory, [_changed_rows(directory, name, rows.get(name, [])) for name in changed])


def check_unchanged(directory: Path, digests: Callable[[], Mapping[str, str]], accepted: Collection[str] = ()) -> None:
    """Refuse to resume a run on another model, code or libraries than it began with.

    Args:
        digests: gives the present ones, where there is something to compare; kinds that it leaves out are not compared.
        accepted: kinds whose changes are logged instead.

    Raises:
        UserError: names what differs.
    """
    noted: dict[str, str] = _provenance(directory).get("rests_on", {})
    if not noted:
        return
    present = digests()
    kinds = {_kind(name) for name in present} & {_kind(name) for name in noted}
    compared = {name for name in noted.keys() | present.keys() if _kind(name) in kinds}
    changed = sorted(name for name in compared if noted.get(name) != present.get(name))
    refused = [name for name in changed if _kind(name) not in accepted]
    if refused:
        acceptable = sorted({_kind(name) for name in refused})
        way_out = f", accept it (accept_changed=[{','.join(acceptable)}])," if {*acceptable} <= {*KINDS} else ""
        _refuse(directory, [_changed(name, noted, present) for name in refused], way_out)
    if changed:
        log.warning("changed since the run began, and accepted: %s", ", ".join(changed))


def made_with_other_code(directory: Path, way_out: str, *given: Method | Reward) -> str | None:
    """A line for the user if the own files of the method or the reward have changed since the run's last session.

    The result is no worse for a changed comment: it is shown, and nothing is refused. Files that the run has not noted,
    as those inside this package in earlier revisions, are not compared.

    Args:
        way_out: what to choose to run again.
    """
    facts = _provenance(directory)
    if "rests_on" not in facts:
        return None
    noted = facts["rests_on"] | (facts.get("sessions") or [{}])[-1].get("changed", {})
    changed = [name for name, digest in own_digests(*given).items() if noted.get(name, digest) != digest]
    if not changed:
        return None
    files = ", ".join(name.removeprefix("code/") for name in changed)
    return (
        f"these numbers were made with other code: {files} {'have' if len(changed) > 1 else 'has'} changed since; "
        f"choose another {way_out} to run again"
    )


def _provenance(directory: Path) -> dict[str, Any]:
    file = directory / PROVENANCE_FILE
    facts: dict[str, Any] = read_json(file) if file.is_file() else {}
    return facts


def _refuse(directory: Path, changed: Sequence[str], way_out: str = "") -> NoReturn:
    raise UserError(
        f"hydra.run.dir: the run in {directory} began with other inputs; changed since then: {first_few(changed)}; "
        f"restore them{way_out} or choose another directory"
    )


def _changed_rows(directory: Path, name: str, present: Sequence[Row]) -> str:
    kept = directory / "data" / f"{name}.jsonl"
    before = read_jsonl(kept) if kept.is_file() else []
    if len(before) != len(present):
        return f"data/{name} ({len(before)} rows then, {len(present)} now)"
    row = next((number for number, pair in enumerate(zip(before, present, strict=True), 1) if pair[0] != pair[1]), None)
    return f"data/{name} (row {row} of {len(present)})" if row else f"data/{name} ({kept} was edited)"


def _changed(name: str, noted: Mapping[str, str], present: Mapping[str, str]) -> str:
    if name not in present:
        return f"{name} (gone)"
    if name not in noted:
        return f"{name} (new)"
    return f"{name} ({noted[name]} then, {present[name]} now)" if _kind(name) == "libraries" else name


def _kind(name: str) -> str:
    return name.partition("/")[0]
