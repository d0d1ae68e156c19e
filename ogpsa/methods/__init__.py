"""The methods under study, one file each; a file's name is the name in ``conf/method``.

A method file declares ``Settings``, its keys. Nothing here imports torch: settings are validated
before it is loaded.
"""

from importlib import import_module
from pkgutil import iter_modules

from ogpsa.config import MethodSettings
from ogpsa.utils.errors import UserError, closest_match


def method_names() -> list[str]:
    return sorted(module.name for module in iter_modules(__path__))


def method_settings(name: str) -> type[MethodSettings]:
    """The settings class of the method called ``name``.

    Raises:
        UserError: no method has that name.
    """
    if name not in method_names():
        allowed = ", ".join(method_names())
        raise UserError(f"method.name: '{name}' is no method; allowed: {allowed}{closest_match(name, method_names())}")
    settings: type[MethodSettings] = import_module(f"{__name__}.{name}").Settings
    return settings
