"""Files that are found by name in our folder and in the user's."""

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

from ogpsa.utils.errors import UserError, closest_match, first_line


def named_files(pattern: str, ours: Path, own: str | None, key: str) -> dict[str, Path]:
    """The files at and below ``ours`` and ``own`` that match ``pattern``, by their names without the ending.

    Args:
        key: the setting that names ``own``.

    Raises:
        UserError: ``own`` is not a folder, or holds a name that is taken.
    """
    files = {file.stem: file for file in ours.rglob(pattern)}
    if own is not None:
        if not Path(own).is_dir():
            raise UserError(f"{key}: {own} is not a folder")
        theirs = {file.stem: file for file in Path(own).rglob(pattern)}
        if taken := sorted(files.keys() & theirs.keys()):
            raise UserError(*(f"{key}: {theirs[name]}: the name '{name}' is taken; rename the file" for name in taken))
        files |= theirs
    return dict(sorted(files.items()))


def defined_in(file: Path, name: str) -> Any:
    """The object called ``name`` of a Python file that is in no package.

    Raises:
        UserError: the file does not run, or does not define it.
    """
    # By its path: lm-eval's tasks each have a utils.py.
    spec = spec_from_file_location(f"{file.parent.name}.{file.stem}", file)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise UserError(f"{file}: does not run ({type(error).__name__}: {first_line(error)})") from error
    if name not in vars(module):
        raise UserError(f"{file}: defines no '{name}'{closest_match(name, vars(module))}")
    return vars(module)[name]
