"""OGPSA on few reference rows, at close to the price of naive tuning (ours)."""

from ogpsa.methods.ogpsa import Ogpsa

METHOD = Ogpsa
