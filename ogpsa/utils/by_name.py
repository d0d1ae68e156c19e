"""Classes found by name, one file each: in one of our packages, or next to the YAML of a user's own."""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, TypeVar

from ogpsa.utils.errors import UserError, closest_match

T = TypeVar("T")


def names_in(package: str, folders: Sequence[Path] = ()) -> list[str]:
    """The names of the files in a package and in ``folders``."""
    return sorted({module.name for module in iter_modules([*import_module(package).__path__, *map(str, folders)])})


def class_named(name: str, key: str, package: str, folders: Sequence[Path], kind: str, base: type[T]) -> type[T]:
    """The class that ``<name>.py`` declares: a file of ``package``, or of one of ``folders``, which come first.

    Args:
        key: the setting that gives the name, for messages.
        kind: what such a class is, ``method``; a file declares it as ``METHOD``.

    Raises:
        UserError: there is no such file, or a file of the user's declares no subclass of ``base``.
    """
    files = [file for folder in folders if (file := folder / f"{name}.py").is_file()]
    if not files and name not in names_in(package):
        known = names_in(package, folders)
        raise UserError(f"{key}: unknown {kind} '{name}'; allowed: {', '.join(known)}{closest_match(name, known)}")
    module = _from_file(files[0], package, kind) if files else import_module(f"{package}.{name}")
    found = vars(module).get(kind.upper())
    if not (isinstance(found, type) and issubclass(found, base)):
        raise UserError(f"{module.__file__}: declares no {kind.upper()}, a subclass of ogpsa.config.{base.__name__}")
    return found


def _from_file(file: Path, package: str, kind: str) -> Any:
    """The module of a file outside the package, executed once."""
    name = f"{package}.{file.stem}"
    known = sys.modules.get(name)
    if known is None or known.__file__ != str(file):
        spec = spec_from_file_location(name, file)
        if spec is None or spec.loader is None:
            raise UserError(f"{file}: cannot be imported as a {kind}")
        known = sys.modules[name] = module_from_spec(spec)
        spec.loader.exec_module(known)
    return known
