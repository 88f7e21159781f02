"""Early refusal of bad input: each check names the argument, the value it got and the cure.

Every check returns its input as a tensor, so that a function's first line can be
``images = checks.images(images)``. All of them raise ``ValueError``.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def images(value, name: str = "images") -> Tensor:
    """A batch of images: (B, C, H, W), C of 1 or 3, floating point, finite, in [0, 1], B at least 1."""
    value = _tensor(value, name)
    if value.ndim != 4 or value.shape[1] not in (1, 3):
        raise ValueError(
            f"{name} must have shape (B, C, H, W) with C of 1 or 3, got {tuple(value.shape)}: "
            f"add the missing axes with {name}[:, None] or {name}[None]"
        )
    _not_empty(value, name)
    unit_range(value, name)
    return value


def unit_range(value: Tensor, name: str) -> None:
    """Floating point numbers in [0, 1], none of them NaN."""
    if not value.is_floating_point():
        raise ValueError(f"{name} must be floating point in [0, 1], got {value.dtype}: divide bytes by 255")
    low, high = value.aminmax()                 # NaN and infinity reach both ends, so one pass checks all three
    if not torch.isfinite(low + high):
        raise ValueError(f"{name} must be finite, got NaN or infinity: repair or drop those values")
    if low < 0 or high > 1:
        raise ValueError(
            f"{name} must lie in [0, 1], got values from {low.item():.4g} to {high.item():.4g}: "
            "rescale them; normalisation with a mean and a deviation is the backbone's work"
        )


def rows(value, name: str = "rows", width: int | None = None) -> Tensor:
    """Vectors, one a row: (N, D), floating point and finite, N and D at least 1."""
    value = _tensor(value, name)
    if value.ndim != 2:
        raise ValueError(f"{name} must have shape (N, D), got {tuple(value.shape)}: flatten with {name}.flatten(1)")
    _not_empty(value, name)
    finite(value, name)
    if width is not None and value.shape[1] != width:
        raise ValueError(f"{name} must have {width} columns as the fitted data had, got {value.shape[1]}")
    return value


def finite(value: Tensor, name: str) -> None:
    """Floating point without NaN or infinity."""
    if not value.is_floating_point():
        raise ValueError(f"{name} must be floating point, got {value.dtype}: call {name}.float()")
    if not torch.isfinite(sum(value.aminmax())):       # as above: one pass, and no copy of a large bank
        raise ValueError(f"{name} must be finite, got NaN or infinity: repair or drop those values")


def scores(value, name: str = "scores") -> Tensor:
    """Anomaly scores: (N,), floating point and finite, N at least 1."""
    value = _tensor(value, name)
    if value.ndim != 1:
        raise ValueError(f"{name} must have shape (N,), got {tuple(value.shape)}: one score an image")
    _not_empty(value, name)
    finite(value, name)
    return value


def labels(value, count: int, name: str = "labels") -> Tensor:
    """Ground truth, (N,) of 0 (normal) and 1 (anomalous) with both present, as bool."""
    value = _tensor(value, name)
    if value.shape != (count,):
        raise ValueError(f"{name} must have shape ({count},), one a score, got {tuple(value.shape)}")
    value = binary(value, name)
    if value.all() or not value.any():
        raise ValueError(
            f"{name} must hold both 0 (normal) and 1 (anomalous), got {int(value[0])} only: "
            "ranking two classes needs at least one example of each"
        )
    return value


def binary(value: Tensor, name: str) -> Tensor:
    """Bool, or numbers that are all 0 or 1, as bool."""
    if value.dtype == torch.bool:
        return value
    if not ((value == 0) | (value == 1)).all():
        raise ValueError(f"{name} must hold only 0 (normal) and 1 (anomalous), got {value.unique()[:5].tolist()}")
    return value.bool()


def choice(value, options, name: str):
    """One of the named options."""
    if value not in options:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, options))}, got {value!r}")
    return value


def positive_int(value, name: str, minimum: int = 1) -> int:
    """A whole number, at least `minimum`."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < minimum:
        raise ValueError(f"{name} must be a whole number of at least {minimum}, got {value!r}")
    return int(value)


def between(value, low: float, high: float, name: str) -> float:
    """A number strictly above `low` and at most `high`."""
    if not low < value <= high:                 # NaN fails this too
        raise ValueError(f"{name} must be above {low} and at most {high}, got {value!r}")
    return float(value)


def _tensor(value, name: str) -> Tensor:
    if isinstance(value, np.ndarray | list | tuple):
        value = torch.as_tensor(value)
    if not isinstance(value, Tensor):
        raise ValueError(f"{name} must be a tensor or an array, got {type(value).__name__}")
    return value


def _not_empty(value: Tensor, name: str) -> None:
    if value.numel() == 0:
        raise ValueError(f"{name} must not be empty, got shape {tuple(value.shape)}")
