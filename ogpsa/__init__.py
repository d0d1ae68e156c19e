"""OGPSA: orthogonal gradient projection for safety alignment (arXiv 2602.07892).

Public names: the formula (``orthonormal_basis``, ``project``), a subspace over all parameters of a model
(``Subspace``), and a trainer that projects (``protect``, ``ProjectionSettings``). Each is imported on first use, since
most of the package runs before torch is loaded.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ogpsa.projection import orthonormal_basis, project
    from ogpsa.subspace.settings import ProjectionSettings
    from ogpsa.subspace.subspace import Subspace
    from ogpsa.training.seam import protect

__version__ = "0.2.0"
__all__ = ["ProjectionSettings", "Subspace", "__version__", "orthonormal_basis", "project", "protect"]

_DOORS = {
    "ProjectionSettings": "ogpsa.subspace.settings",
    "Subspace": "ogpsa.subspace.subspace",
    "orthonormal_basis": "ogpsa.projection",
    "project": "ogpsa.projection",
    "protect": "ogpsa.training.seam",
}


def __getattr__(name: str) -> Any:
    if name not in _DOORS:
        raise AttributeError(f"module 'ogpsa' has no attribute '{name}'")
    return vars(import_module(_DOORS[name]))[name]
