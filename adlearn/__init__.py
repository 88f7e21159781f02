"""adlearn: deep visual anomaly detection, one readable file a method.

>>> from adlearn.methods import NearestNeighbors
>>> detector = NearestNeighbors().fit("good/").calibrate("more-good/")
>>> detector.predict("new/")                                     # one bool per image, in the order of their names

Submodules load on first use (``adlearn.metrics``, ``adlearn.data``, ...), so that ``import adlearn`` stays light.
"""

from __future__ import annotations

import importlib

__version__ = "0.1.0"

_MODULES = ("augment", "backbones", "cache", "checks", "data", "density", "detector", "film", "losses", "methods",
            "metrics", "neighbors", "nets", "plots", "projection", "results", "runtime", "training", "widgets")

__all__ = [*_MODULES, "load"]


def __getattr__(name: str):
    if name == "load":
        return importlib.import_module("adlearn.detector").load
    if name in _MODULES:
        return importlib.import_module(f"adlearn.{name}")
    raise AttributeError(f"module 'adlearn' has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *__all__])
