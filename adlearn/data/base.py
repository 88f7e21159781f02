"""What a data set is here: two small frozen records."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class OneClass:
    """What one-class methods learn from and are judged on.

    `train` and `calibration` hold normal samples only. Thresholds, standardisation and every choice between
    settings use `calibration`; nothing is ever chosen on `test`.

    Attributes:
        train: (N, C, H, W) float32 in [0, 1]; for tabular data (N, F).
        calibration: (K, C, H, W), held-out normal samples.
        test: (M, C, H, W), normal and anomalous samples.
        labels: (M,) int64, 1 = anomalous.
        masks: (M, H, W) bool, True = anomalous pixel; None where the data have no masks.
        kinds: M names of what each test image is: "good", "crack", "truck", ...
        name, licence, source: what to call the data, under which terms they stand, and where they come from.
    """

    train: Tensor
    calibration: Tensor
    test: Tensor
    labels: Tensor
    masks: Tensor | None
    kinds: list[str]
    name: str
    licence: str
    source: str


@dataclass(frozen=True)
class Labelled:
    """Images with class labels, for the chapters that need classes.

    Attributes:
        train, test: (N, C, H, W) float32 in [0, 1]; (N, F) for points and rows.
        train_labels, test_labels: (N,) int64, indices into `classes`; −1 where a training label is hidden.
        classes: the class names, in the order of their labels.
        name, licence, source: what to call the data, under which terms they stand, and where they come from.
    """

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor
    classes: list[str]
    name: str
    licence: str
    source: str
