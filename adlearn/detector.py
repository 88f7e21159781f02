"""What every detector has in common: fit, calibrate, score, localise, predict, save, load."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adlearn import augment, cache, checks, metrics, runtime, training
from adlearn.backbones import Frozen
from adlearn.data.folder import as_images
from adlearn.neighbors import StateSized


class Detector(StateSized):
    """Images (B, C, H, W) in [0, 1] in, scores out. A larger score is always more anomalous.

    A method derives from it and defines `fit`, `embed` and `anomaly_score`, or `anomaly_map` if it localises;
    the default score is then the map's maximum. Every argument of a method's `__init__` is kept under its own
    name, what fitting learns is a buffer or a parameter. `fit` computes first, assigns last, and ends with
    `return self.fitted()`: a fit that fails leaves the detector as it was.

    Attributes:
        losses_: one number an epoch, after `fit`; empty for methods that do not train.
        threshold_: scores above it are predicted anomalous; NaN until `calibrate`.
        folder_size: side in pixels to which the images of a folder are resized; one that looks at more says more.
    """

    folder_size = 256

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

    def fitted(self) -> Self:
        """The end of every `fit`: in evaluation mode, and without the threshold of what was learnt before."""
        self.threshold_.fill_(float("nan"))
        return self.eval()

    # what every method has ----------------------------------------------------------------------------------

    def calibrate(self, images, *, fpr: float = 0.05) -> Self:
        """Set `threshold_` from held-out normal images so that at most a share `fpr` of new normal ones exceeds it.

        The promise holds for images from the same source: the same camera, light and file format.

        Raises:
            ValueError: too few images for this rate (at least 1 / fpr − 1 are needed).
        """
        self.threshold_.fill_(metrics.threshold_at_fpr(self.score(images), fpr))
        return self

    def score(self, images, *, batch_size: int = 64) -> Tensor:
        """Anomaly scores (N,) on the CPU, in the order given.

        Args:
            images: a tensor (N, C, H, W) in [0, 1], a `Dataset` of such tensors, or a folder. Of a folder, what cannot
                be read is left out; whose score is whose, `data.folder(path, damaged="skip").files` says.
        """
        return self._collect(self.anomaly_score, images, batch_size)

    def localize(self, images, *, batch_size: int = 64) -> Tensor:
        """Anomaly maps (N, H, W) on the CPU, in the order given."""
        return self._collect(self.anomaly_map, images, batch_size)

    def predict(self, images) -> Tensor:
        """(N,) bool, True where the score exceeds `threshold_`."""
        if torch.isnan(self.threshold_):
            raise ValueError("no threshold yet: call calibrate with held-out normal images first")
        return self.score(images) > self.threshold_.cpu()

    def save(self, path) -> None:
        """Write the fitted detector as primitives and tensors; whole or not at all.

        A pretrained backbone is kept by name and sha256, not by its weights. One's own modules and functions, as
        `encoder=` or `shift=`, are left out too and must be handed over again to `adlearn.load`.

        Raises:
            ValueError: not fitted; or a backbone that forgot, whose weights nobody could find again.
        """
        self._ready()
        if drawn := [part.name for part in self.modules() if isinstance(part, Frozen) and part.origin == "random"]:
            raise ValueError(f"this detector looks through {drawn[0]!r} with random weights, which are in no file: it "
                             "cannot be saved")
        backbones = {name: {"name": part.name, "sha256": part.sha256}
                     for name, part in self.named_modules() if isinstance(part, Frozen)}
        state = {key: value.cpu() for key, value in self.state_dict().items()
                 if not key.startswith(self._left_out())}
        method, options = type(self), self.options()
        cache.seal(path, {"method": f"{method.__module__}:{method.__name__}", "options": options,
                          "handed_over": sorted(self._arguments().keys() - options.keys()),
                          "state": state, "losses": self.losses_, "backbones": backbones})

    def options(self) -> dict:
        """The arguments that would build this detector again, modules and functions left out."""
        return {name: value for name, value in self._arguments().items() if not callable(value)}

    def _arguments(self) -> dict:
        names = [name for name in inspect.signature(type(self).__init__).parameters if name != "self"]
        return {name: getattr(self, name) for name in names}

    def _left_out(self) -> tuple[str, ...]:
        """The prefixes of the state that a file does not hold: pretrained backbones, and modules handed over."""
        backbones = [name for name, part in self.named_modules() if isinstance(part, Frozen)]
        modules = [name for name, value in self._arguments().items() if isinstance(value, nn.Module)]
        return tuple(f"{name}." for name in backbones + modules)

    def _collect(self, compute, images, batch_size: int) -> Tensor:
        self._ready()
        images = as_images(images, self.folder_size)
        return training.collect(compute, images, batch_size=batch_size, device=training.device_of(self))

    def _ready(self) -> None:
        if self.training or any(buffer.numel() == 0 for buffer in self.buffers()):
            raise ValueError(f"this {type(self).__name__} is not fitted, or in training mode: call fit, or eval()")


class Trained(Detector):
    """A detector with networks of its own, built when it is fitted, for images like those that it is fitted on.

    A method defines `build`, and its `fit` trains a new detector and becomes it at the end, so that a fit that breaks
    off leaves everything as it was:

        new = self.afresh(images)
        ...                                     train the networks of `new`
        return self.take(new)

    Other images are made to fit: grey or coloured as the fitted ones, and resized.

    Attributes:
        shape_: (2,) int64, channels and side of the images that the networks were built for.
    """

    def __init__(self):
        super().__init__()
        self.register_buffer("shape_", torch.empty(0, dtype=torch.int64))

    def build(self, channels: int, side: int) -> None:
        """Make the networks, as attributes, for images (B, channels, side, side)."""
        raise NotImplementedError(f"{type(self).__name__} must define build")

    def keep_encoder(self, encoder: str | nn.Module | None) -> None:
        """Keep the argument as `encoder` without making a part of this module: `build` copies it, nobody changes it."""
        self.__dict__["encoder"] = encoder

    def afresh(self, images: Tensor) -> Self:
        """This detector as it was before it was fitted, on the same device, with networks for such images."""
        if len(images) < 2:
            raise ValueError(f"images must be at least 2 to learn from, got {len(images)}")
        new, side = type(self)(**self._arguments()), self.side_of(images)
        new.shape_ = torch.tensor([images.shape[1], side])
        try:
            new.build(images.shape[1], side)
        except ValueError as error:
            raise ValueError(f"images of {side}×{side} pixels: {error}") from error
        return new.to(self.shape_.device)

    def side_of(self, images: Tensor) -> int:
        """Side of the images that the networks are built for."""
        if images.shape[2] != images.shape[3]:
            raise ValueError(f"images must be square, got {images.shape[2]}×{images.shape[3]}: resize or crop them")
        return images.shape[2]

    def trained(self) -> Self:
        """This detector in evaluation mode, if it has networks; the beginning of a second stage that stands alone."""
        if not self.shape_.numel():
            raise ValueError(f"this {type(self).__name__} has not learnt anything yet: call fit first")
        return self.eval()

    def take(self, new: Self) -> Self:
        """Become what `new` has become; the end of `fit`."""
        self.__dict__.update(new.__dict__)
        return self.fitted()

    @staticmethod
    def epochs(asked: int | None, count: int, batch_size: int, steps: dict[str, int]) -> int:
        """The epochs asked for, or as many as give the profile's number of steps."""
        if asked is not None:
            return checks.positive_int(asked, "epochs")
        return training.passes(count, batch_size, runtime.pick(**steps))

    def fitting(self, images: Tensor) -> Tensor:
        """The images with the channels and the size of those that the detector was fitted on."""
        images, side = self.recoloured(images), self.shape_[1].item()
        if images.shape[2] != images.shape[3]:
            raise ValueError(f"images must be square, as those that this {type(self).__name__} was fitted on, got "
                             f"{images.shape[2]}×{images.shape[3]}: crop or resize them")
        if images.shape[2] == side:
            return images
        return F.interpolate(images, (side, side), mode="bilinear", align_corners=False, antialias=True).clamp(0, 1)

    def recoloured(self, images: Tensor) -> Tensor:
        """Grey images repeated, or coloured ones made grey, as those that the detector was fitted on."""
        if not self.shape_.numel():
            self.check_fitted()
        channels = self.shape_[0].item()
        if channels > images.shape[1]:
            return images.expand(-1, channels, -1, -1)
        return images if channels == images.shape[1] else augment.grey(images)[:, :1]

    def _load_from_state_dict(self, state_dict, prefix, *args):
        shape = state_dict.get(prefix + "shape_")
        if shape is not None and shape.numel():
            with torch.random.fork_rng(devices=[]):                     # first weights are drawn, and then replaced
                self.build(*shape.tolist())
            self.to(self.shape_.device).train(self.training)
        super()._load_from_state_dict(state_dict, prefix, *args)


def load(path, **modules) -> Detector:
    """A detector that `Detector.save` wrote, in evaluation mode, on the CPU.

    Args:
        modules: what the saved detector was made with and no file can hold, as ``encoder=`` or ``shift=``; the weights
            of an encoder that the method trained come from the file.

    Raises:
        FileNotFoundError: nothing at `path`.
        ValueError: the file is damaged, is no detector, or needs another backbone than the one at hand.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no detector at {path}")
    kept = cache.unseal(path)
    if kept.keys() != {"method", "options", "handed_over", "state", "losses", "backbones"}:
        raise ValueError(f"{path} is no saved detector: it holds {sorted(kept)}")
    if absent := sorted(set(kept["handed_over"]) - modules.keys()):
        raise ValueError(f"{path} was made with one's own {', '.join(absent)}: hand over the same, "
                         f"load(path, {absent[0]}=…)")
    detector = _build(path, kept, modules)
    for where, wanted in kept["backbones"].items():
        found = detector.get_submodule(where)
        if found.sha256 != wanted["sha256"]:
            raise ValueError(f"{path} was fitted on other weights of {wanted['name']!r} than {found.origin} has: "
                             "fit again, or point ADLEARN_WEIGHTS at the weights it was fitted on")
    try:
        missing, unexpected = detector.load_state_dict(kept["state"], strict=False)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit what was handed over: {error}") from error
    missing = [key for key in missing if not key.startswith(detector._left_out())]
    if missing or unexpected:
        raise ValueError(f"{path} does not fit this version of adlearn: missing {missing}, unknown {unexpected}")
    detector.losses_ = kept["losses"]
    return detector.eval()


def _build(path: Path, kept: dict, modules: dict) -> Detector:
    """An empty detector of the file's class. Methods stand a floor above, so the file names the class."""
    home, _, name = kept["method"].partition(":")
    found = None
    if home.startswith("adlearn.methods.") and importlib.util.find_spec(home):
        found = getattr(importlib.import_module(home), name, None)
    if not (isinstance(found, type) and issubclass(found, Detector)):
        raise ValueError(f"{path} names the class {kept['method']}, which is not one of this adlearn's methods")
    try:
        return found(**kept["options"], **modules)
    except TypeError as error:
        raise ValueError(f"{path} cannot be built again ({error}): hand over the modules it was made with, "
                         "and no others") from error
