"""Early refusal of bad input: each check names the argument, the value it got and the cure.

Every check returns its input as a tensor, so that a function's first line can be
``images = checks.images(images)``. All of them raise ``ValueError``.
"""

from __future__ import annotations

import os
import sys
from numbers import Real
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


def images(value, name: str = "images") -> Tensor:
    """A batch of images: (B, C, H, W), C of 1 or 3, floating point, finite, in [0, 1], B at least 1."""
    value = tensor(value, name)
    if value.ndim != 4 or value.shape[1] not in (1, 3):
        raise ValueError(
            f"{name} must have shape (B, C, H, W) with C of 1 or 3, got {tuple(value.shape)}: "
            f"add the missing axes with {name}[:, None] or {name}[None]"
        )
    unit_range(value, name)
    return value


def unit_range(value: Tensor, name: str) -> None:
    """Floating point numbers in [0, 1], at least one, none of them NaN."""
    if not value.is_floating_point():
        raise ValueError(f"{name} must be floating point in [0, 1], got {value.dtype}: divide bytes by 255")
    low, high = _ends(value, name)
    if low < 0 or high > 1:
        raise ValueError(
            f"{name} must lie in [0, 1], got values from {low.item():.4g} to {high.item():.4g}: "
            "rescale them; normalisation with a mean and a deviation is the backbone's work"
        )


def rows(value, name: str = "rows", width: int | None = None, squares: torch.dtype | None = None) -> Tensor:
    """Vectors, one a row: (N, D), floating point and finite, N and D at least 1.

    `width` fixes D; `squares` names the precision in which squared distances between rows must not overflow.
    """
    value = tensor(value, name)
    if value.ndim != 2:
        raise ValueError(f"{name} must have shape (N, D), got {tuple(value.shape)}: flatten with {name}.flatten(1)")
    low, high = finite(value, name)
    if width is not None and value.shape[1] != width:
        raise ValueError(f"{name} must have {width} columns, got {value.shape[1]}")
    if squares is not None:
        largest, limit = max(-low.item(), high.item()), (torch.finfo(squares).max / value.shape[1]) ** 0.5 / 4
        if largest > limit:
            raise ValueError(f"{name} must lie within ±{limit:.1e}, or squared distances overflow, got values up to "
                             f"{largest:.1e}: rescale them")
    return value


def finite(value: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Floating point, at least one number, without NaN or infinity; returns the smallest and the largest."""
    if not value.is_floating_point():
        raise ValueError(f"{name} must be floating point, got {value.dtype}: call {name}.float()")
    return _ends(value, name)


def scores(value, name: str = "scores") -> Tensor:
    """Anomaly scores: (N,), floating point and finite, N at least 1."""
    value = tensor(value, name)
    if value.ndim != 1:
        raise ValueError(f"{name} must have shape (N,), got {tuple(value.shape)}: one score an image")
    finite(value, name)
    return value


def labels(value, count: int, name: str = "labels", *, both: bool = True) -> Tensor:
    """Ground truth, (N,) of 0 (normal) and 1 (anomalous), as bool; by default with both present."""
    value = tensor(value, name)
    if value.shape != (count,):
        raise ValueError(f"{name} must have shape ({count},), one a score, got {tuple(value.shape)}")
    value = binary(value, name)
    if both and (value.all() or not value.any()):
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


def classes(value, count: int, number: int | None = None, name: str = "labels") -> Tensor:
    """Class labels, (N,) whole numbers from 0, to `number` − 1 if it is given, as int64."""
    value = tensor(value, name)
    if value.shape != (count,):
        raise ValueError(f"{name} must have shape ({count},), one an item, got {tuple(value.shape)}")
    known = (value >= 0) & (value < (2**31 if number is None else number)) & (value == value.long())
    if not known.all():
        limit = "" if number is None else f" to {number - 1}"
        raise ValueError(f"{name} must be whole numbers from 0{limit}, got {value[~known].unique()[:5].tolist()}: "
                         "drop these items, or name more classes")
    return value.long()


def choice(value, options, name: str):
    """One of the named options, and of its type: True is not 1, and a list is none."""
    if not any(isinstance(value, type(option)) and value == option for option in options):
        raise ValueError(f"{name} must be one of {', '.join(map(repr, options))}, got {value!r}")
    return value


def positive_int(value, name: str, minimum: int = 1) -> int:
    """A whole number, at least `minimum`."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < minimum:
        raise ValueError(f"{name} must be a whole number of at least {minimum}, got {value!r}")
    return int(value)


def seed(value, name: str = "seed") -> int:
    """A seed that every generator takes: a whole number from 0 to 2³¹ − 1."""
    if positive_int(value, name, 0) >= 2**31:
        raise ValueError(f"{name} must be below 2**31, got {value!r}")
    return int(value)


def is_number(value) -> bool:
    """A finite real number: no text, no bool, no NaN."""
    if isinstance(value, Tensor | np.generic) and value.ndim == 0:
        value = value.item()
    return isinstance(value, Real) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def between(value, low: float, high: float, name: str) -> float:
    """A number strictly above `low` and at most `high`."""
    if not (is_number(value) and low < value <= high):
        raise ValueError(f"{name} must be above {low} and at most {high}, got {value!r}")
    return float(value)


def within(value, low: float, high: float, name: str) -> float:
    """A number from `low` to `high`, both allowed."""
    if not (is_number(value) and low <= value <= high):
        raise ValueError(f"{name} must be a number from {low:g} to {high:g}, got {value!r}")
    return float(value)


def path(value, name: str) -> Path:
    """The name of a file or folder."""
    if not isinstance(value, str | os.PathLike):
        raise ValueError(f"{name} must be a path, got {value!r}: write it as text or as a pathlib.Path")
    return Path(value)


def tensor(value, name: str) -> Tensor:
    """A tensor, or numbers that make one: an array, or lists of equal lengths."""
    arrays = isinstance(value, list | tuple) and any(isinstance(part, np.ndarray) for part in value)
    locked = isinstance(value, np.ndarray) and not value.flags.writeable        # what pandas hands out; torch warns
    try:                                                # a list of arrays or a column of pandas takes the way by NumPy
        return torch.as_tensor(np.array(value) if arrays or locked or hasattr(value, "iloc") else value)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        got = f"{type(value).__name__} ({error})"
        raise ValueError(f"{name} must be a tensor or an array of numbers, got {got}") from error


def _ends(value: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """The smallest and the largest value. NaN and infinity reach them, so that one pass, with no copy, checks all."""
    if value.numel() == 0:
        raise ValueError(f"{name} must not be empty, got shape {tuple(value.shape)}")
    low, high = value.aminmax()
    if not torch.isfinite(torch.stack([low, high])).all():
        raise ValueError(f"{name} must be finite, got NaN or infinity: repair or drop those values")
    return low, high
