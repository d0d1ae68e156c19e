"""OGPSA, its weights then averaged with the untuned model's (ours)."""

from ogpsa.methods.merge import Merge
from ogpsa.methods.ogpsa import Ogpsa


class OgpsaMerge(Ogpsa, Merge):
    """The keys of both."""


METHOD = OgpsaMerge
