"""GPM (gradient projection memory, arXiv 2103.09762), whose second task is NSPO's paper variant with the energy rule.

The memory M of a layer is the fewest leading directions of its inputs on the earlier task's rows that hold the share
ε of their energy, and its gradients become ``G (I − M Mᵀ)``: with ε = 1 − ``threshold`` the projection of ``nspo.py``.
"""

from typing import Literal

from ogpsa.methods.nspo import Nspo


class Gpm(Nspo):
    """NSPO with the two keys that make it GPM."""

    variant: Literal["paper"]
    rule: Literal["energy"]


METHOD = Gpm
