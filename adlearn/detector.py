"""What every detector has in common: fit, calibrate, score, localise, predict, save, load."""

from __future__ import annotations

import importlib
import inspect
import io
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from adlearn import cache, metrics, training
from adlearn.backbones import Backbone
from adlearn.neighbors import StateSized


class Detector(StateSized):
    """Images (B, C, H, W) in [0, 1] in, scores out. A larger score is always more anomalous.

    A method derives from it and defines `fit`, `embed` and `anomaly_score`, or `anomaly_map` if it localises;
    the default score is then the map's maximum. Every argument of a method's `__init__` is kept under its own
    name, what fitting learns is a buffer or a parameter.

    Attributes:
        losses_: one number an epoch, after `fit`; empty for methods that do not train.
        threshold_: scores above it are predicted anomalous; NaN until `calibrate`.
    """

    def __init__(self):
        super().__init__()
        self.losses_: list[float] = []
        self.register_buffer("threshold_", torch.tensor(float("nan")))

    # what a method defines ----------------------------------------------------------------------------------

    def fit(self, images, **settings) -> Self:
        """Learn from normal images. Ends in evaluation mode."""
        raise NotImplementedError(f"{type(self).__name__} must define fit")

    def embed(self, images: Tensor) -> Tensor:
        """Features (B, D) of a batch."""
        raise NotImplementedError(f"{type(self).__name__} has no embedding")

    def anomaly_map(self, images: Tensor) -> Tensor:
        """One score a pixel, (B, H, W)."""
        raise NotImplementedError(f"{type(self).__name__} does not localise: it scores whole images only")

    def anomaly_score(self, images: Tensor) -> Tensor:
        """One score an image, (B,)."""
        return self.anomaly_map(images).flatten(1).amax(1)

    # what every method has ----------------------------------------------------------------------------------

    def calibrate(self, images, *, fpr: float = 0.05) -> Self:
        """Set `threshold_` from held-out normal images so that at most a share `fpr` of new normal ones exceeds it.

        Raises:
            ValueError: too few images for this rate (at least 1 / fpr − 1 are needed).
        """
        self.threshold_.fill_(metrics.threshold_at_fpr(self.score(images), fpr))
        return self

    def score(self, images, *, batch_size: int = 64) -> Tensor:
        """Anomaly scores (N,) on the CPU, in the order given.

        Args:
            images: a tensor (N, C, H, W) in [0, 1], a `Dataset` of such tensors, or a folder.
        """
        self._ready()
        return training.collect(self.anomaly_score, images, batch_size=batch_size, device=training.device_of(self))

    def localize(self, images, *, batch_size: int = 64) -> Tensor:
        """Anomaly maps (N, H, W) on the CPU, in the order given."""
        self._ready()
        return training.collect(self.anomaly_map, images, batch_size=batch_size, device=training.device_of(self))

    def predict(self, images) -> Tensor:
        """(N,) bool, True where the score exceeds `threshold_`."""
        if torch.isnan(self.threshold_):
            raise ValueError("no threshold yet: call calibrate with held-out normal images first")
        return self.score(images) > self.threshold_.cpu()

    def save(self, path) -> None:
        """Write the fitted detector as primitives and tensors; whole or not at all.

        A pretrained backbone is kept by name and sha256, not by its weights. A custom `encoder=` is left out too
        and must be handed over again to `adlearn.load`.
        """
        self._ready()
        backbones = {name: {"name": part.name, "sha256": part.sha256}
                     for name, part in self.named_modules() if isinstance(part, Backbone)}
        state = {key: value.cpu() for key, value in self.state_dict().items()
                 if not any(key.startswith(f"{name}.") for name in backbones)}
        method = type(self)
        buffer = io.BytesIO()
        torch.save({"method": f"{method.__module__}:{method.__name__}", "options": self.options(), "state": state,
                    "losses": self.losses_, "backbones": backbones}, buffer)
        cache.replace(path, buffer.getvalue())

    def options(self) -> dict:
        """The arguments that would build this detector again, modules left out."""
        names = [n for n in inspect.signature(type(self).__init__).parameters if n != "self"]
        return {n: getattr(self, n) for n in names if not isinstance(getattr(self, n), nn.Module)}

    def _ready(self) -> None:
        if self.training:
            raise ValueError(f"this {type(self).__name__} is not fitted, or in training mode: call fit, or eval()")


def load(path, **modules) -> Detector:
    """A detector that `Detector.save` wrote, in evaluation mode, on the CPU.

    Args:
        modules: a custom `encoder=` of the saved detector, with its own weights.

    Raises:
        FileNotFoundError: nothing at `path`.
        ValueError: the file is damaged, is no detector, or needs another backbone than the one at hand.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no detector at {path}")
    try:
        kept = torch.load(path, map_location="cpu", weights_only=True)
        home, name = kept["method"].split(":")
        options, state, backbones = kept["options"], kept["state"], kept["backbones"]
    except Exception as error:
        raise ValueError(f"{path} is damaged or no saved detector ({error}): save it again") from error
    # methods stand a floor above this one, so the file names its class and Python finds it
    if not home.startswith("adlearn.methods."):
        raise ValueError(f"{path} names the class {home}:{name}, which is not one of adlearn's methods")
    detector = getattr(importlib.import_module(home), name)(**options, **modules)
    for where, wanted in backbones.items():
        found = detector.get_submodule(where)
        if found.sha256 != wanted["sha256"]:
            raise ValueError(f"{path} was fitted on other weights of {wanted['name']!r} than {found.origin} has: "
                             "fit again, or point ADLEARN_WEIGHTS at the weights it was fitted on")
    missing, unexpected = detector.load_state_dict(state, strict=False)
    missing = [key for key in missing if not any(key.startswith(f"{where}.") for where in backbones)]
    if missing or unexpected:
        raise ValueError(f"{path} does not fit this version of {name}: missing {missing}, unknown {unexpected}")
    detector.losses_ = kept["losses"]
    return detector.eval()
