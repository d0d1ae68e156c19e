"""The methods under study, one file each; a file's name is the name in ``conf/method``.

A method of your own is found beside its YAML: ``--config-dir DIR`` with ``DIR/method/<name>.yaml`` and
``DIR/method/<name>.py``. A file declares ``METHOD``, a subclass of ``ogpsa.config.Method``.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from pkgutil import iter_modules

from ogpsa.config import Method
from ogpsa.utils.errors import UserError, closest_match


def method_names(folders: Sequence[Path] = ()) -> list[str]:
    """The names of the methods here and in ``folders``."""
    return sorted({module.name for module in iter_modules([*__path__, *map(str, folders)])})


def method_class(name: str, folders: Sequence[Path] = ()) -> type[Method]:
    """The method called ``name``, which may stand in one of ``folders``.

    Raises:
        UserError: no method has that name.
    """
    files = [file for folder in folders if (file := folder / f"{name}.py").is_file()]
    if files:
        return _from_file(files[0])
    if name not in method_names():
        known = method_names(folders)
        raise UserError(
            f"method.name: unknown method '{name}'; allowed: {', '.join(known)}{closest_match(name, known)}"
        )
    found: type[Method] = import_module(f"{__name__}.{name}").METHOD
    return found


def _from_file(file: Path) -> type[Method]:
    """The method that a file outside this package declares.

    Raises:
        UserError: the file declares none.
    """
    name = f"{__name__}.{file.stem}"
    known = sys.modules.get(name)
    if known is None or known.__file__ != str(file):
        spec = spec_from_file_location(name, file)
        if spec is None or spec.loader is None:
            raise UserError(f"{file}: cannot be imported as a method")
        known = sys.modules[name] = module_from_spec(spec)
        spec.loader.exec_module(known)
    found = vars(known).get("METHOD")
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise UserError(f"{file}: declares no METHOD, a subclass of ogpsa.config.Method")
    return found
