"""OGPSA with few estimates of the subspace, at close to the price of naive tuning (ours)."""

from ogpsa.methods.ogpsa import Ogpsa

METHOD = Ogpsa
