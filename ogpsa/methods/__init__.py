"""The methods under study, one file each; a file's name is the name in ``conf/method``.

A method of your own lies next to its YAML: ``--config-dir DIR`` with ``DIR/method/<name>.yaml`` and
``DIR/method/<name>.py``. A file declares ``METHOD``, a subclass of ``ogpsa.config.Method``.
"""

from collections.abc import Sequence
from pathlib import Path

from ogpsa.config import Method
from ogpsa.utils.by_name import class_named


def method_class(name: str, folders: Sequence[Path] = ()) -> type[Method]:
    """The method called ``name``, which may lie in one of ``folders``.

    Raises:
        UserError: no method has that name.
    """
    return class_named(name, "method.name", __name__, folders, "method", Method)
