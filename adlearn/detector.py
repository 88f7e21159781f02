"""What every detector has in common: fit, calibrate, score, localise, predict, save, load."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adlearn import augment, cache, checks, metrics, runtime, training
from adlearn.backbones import Backbone
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
                 if not key.startswith(self._left_out())}
        method = type(self)
        cache.seal(path, {"method": f"{method.__module__}:{method.__name__}", "options": self.options(),
                          "state": state, "losses": self.losses_, "backbones": backbones})

    def options(self) -> dict:
        """The arguments that would build this detector again, modules left out."""
        arguments = self._arguments()
        return {name: value for name, value in arguments.items() if not isinstance(value, nn.Module)}

    def _arguments(self) -> dict:
        names = [name for name in inspect.signature(type(self).__init__).parameters if name != "self"]
        return {name: getattr(self, name) for name in names}

    def _left_out(self) -> tuple[str, ...]:
        """The prefixes of the state that a file does not hold: pretrained backbones, and modules handed over."""
        backbones = [name for name, part in self.named_modules() if isinstance(part, Backbone)]
        modules = [name for name, value in self._arguments().items() if isinstance(value, nn.Module)]
        return tuple(f"{name}." for name in backbones + modules)

    def _ready(self) -> None:
        if self.training or any(buffer.numel() == 0 for buffer in self.buffers()):
            raise ValueError(f"this {type(self).__name__} is not fitted, or in training mode: call fit, or eval()")


class Reconstructor(Detector):
    """A detector that draws images again by what it learnt of normal ones; what it draws badly is anomalous.

    A method defines what it does with images of the size that it was fitted on: `build` (its networks), `objective`
    (of a batch), `code`, `drawn` and, if it is not the squared error, `residual`. Other images are made to fit: grey
    or coloured as the fitted ones, and resized, as maps are back again. With `patch` they are not resized but cut
    into overlapping tiles, and what the tiles say of a pixel is averaged.

    Args:
        patch: side of the squares, at new random places in each step, that the method learns from, and of its tiles;
            None learns from whole images, which must be square.

    Attributes:
        shape_: (2,) int64, channels and side of the images that it was fitted on, or of the squares.
    """

    training_steps: ClassVar = {"quick": 400, "gpu": 4000, "paper": 16_000}     # by profile, without `epochs`

    def __init__(self, *, patch: int | None = None):
        super().__init__()
        self.patch = patch if patch is None else checks.positive_int(patch, "patch")
        self.register_buffer("shape_", torch.empty(0, dtype=torch.int64))

    # what a method defines ----------------------------------------------------------------------------------

    def build(self, channels: int, side: int) -> None:
        """Make the networks, as attributes, for images (B, channels, side, side)."""
        raise NotImplementedError(f"{type(self).__name__} must define build")

    def objective(self, images: Tensor) -> Tensor:
        """What training minimises, one number for a batch of images (B, channels, side, side)."""
        raise NotImplementedError(f"{type(self).__name__} must define objective")

    def code(self, images: Tensor) -> Tensor:
        """What stands for images of the fitted size, (B, D)."""
        raise NotImplementedError(f"{type(self).__name__} must define code")

    def drawn(self, images: Tensor) -> Tensor:
        """The reconstruction of images of the fitted size, (B, C, side, side)."""
        raise NotImplementedError(f"{type(self).__name__} must define drawn")

    def residual(self, images: Tensor) -> Tensor:
        """One score a pixel of images of the fitted size, (B, side, side): the squared error."""
        return (images - self.drawn(images)).square().mean(1)

    # what every method has ----------------------------------------------------------------------------------

    def fit(self, images, *, epochs: int | None = None, batch_size: int = 32, lr: float = 1e-3, callback=None) -> Self:
        """Learn from normal images with Adam; `epochs` None takes as many as give the profile's number of steps."""
        images = as_images(images)[:]
        new = self.afresh(images)
        training.train(new, lambda batch: new.objective(new.cut(batch)), images, lr=lr, callback=callback,
                       epochs=self.epochs(epochs, len(images), batch_size, self.training_steps), batch_size=batch_size,
                       history=new.losses_)
        return self.take(new)

    @staticmethod
    def epochs(asked: int | None, count: int, batch_size: int, steps: dict[str, int]) -> int:
        """The epochs asked for, or as many as give the profile's number of steps."""
        return training.passes(count, batch_size, runtime.pick(**steps)) if asked is None else asked

    def embed(self, images: Tensor) -> Tensor:
        """The code (B, D), of tiles their mean."""
        return self.over_tiles(self.code, images)

    def reconstruct(self, images: Tensor) -> Tensor:
        """Images drawn again, (B, C, H, W); H and W are the fitted side, with `patch` the images' own."""
        return self.on_tiles(self.drawn, images)

    def anomaly_map(self, images: Tensor) -> Tensor:
        maps = self.on_tiles(lambda tile: self.residual(tile)[:, None], images)         # (B, 1, h, w)
        if maps.shape[2:] != images.shape[2:]:
            maps = F.interpolate(maps, images.shape[2:], mode="bilinear", align_corners=False)
        return maps[:, 0]                                                               # (B, H, W)

    def on_tiles(self, function: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        """`function`, (B, C, side, side) to (B, K, side, side), over all tiles, averaged: (B, K, H, W)."""
        total = count = 0
        for tile, edges in self.tiles(images):
            found = function(tile)
            if not any(edges):
                return found
            total = total + F.pad(found, edges)
            count = count + F.pad(torch.ones_like(found[:1, :1]), edges)
        return total / count

    def over_tiles(self, function: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        """`function`, (B, C, side, side) to (B, ...): the mean over all tiles."""
        found = [function(tile) for tile, _ in self.tiles(images)]
        return torch.stack(found).mean(0)

    def tiles(self, images: Tensor) -> list[tuple[Tensor, tuple[int, int, int, int]]]:
        """Squares (B, C, side, side) that cover the images, and the pixels to the left, right, top and bottom of each.

        They overlap by half or a little more, and the last ones are flush with the border.
        """
        images, side = self.fitting(images), int(self.shape_[1])
        H, W = images.shape[2:]
        tops, lefts = ([round(i * (length - side) / most) for i in range(most + 1)] if most else [0]
                       for length in (H, W) for most in [-(-2 * (length - side) // side)])
        return [(images[:, :, top:top + side, left:left + side], (left, W - left - side, top, H - top - side))
                for top in tops for left in lefts]

    def fitting(self, images: Tensor) -> Tensor:
        """The images with the channels, and without `patch` in the size, of those that the detector was fitted on."""
        self.check_fitted()
        (channels, side), (H, W) = self.shape_.tolist(), images.shape[2:]
        if channels > images.shape[1]:
            images = images.expand(-1, channels, -1, -1)
        elif channels < images.shape[1]:
            images = augment.grey(images)[:, :1]
        if self.patch is None and H == W != side:
            return F.interpolate(images, (side, side), mode="bilinear", align_corners=False, antialias=True).clamp(0, 1)
        if min(H, W) < side or (self.patch is None and H != W):
            need = f"square, as those that this {type(self).__name__} was fitted on"
            raise ValueError(f"images must be {need if self.patch is None else f'at least {side} pixels wide and high'}"
                             f", got {H}×{W}: crop or resize them")
        return images

    def cut(self, images: Tensor) -> Tensor:
        """Squares (B, C, patch, patch) at random places, one an image; without `patch` the images."""
        B, (H, W) = len(images), images.shape[2:]
        if self.patch is None or H == W == self.patch:
            return images
        top, left = (torch.randint(length - self.patch + 1, (B, 1)) for length in (H, W))
        rows, columns = ((start + torch.arange(self.patch)).to(images.device) for start in (top, left))    # (B, patch)
        image = torch.arange(B, device=images.device)[:, None, None]
        return images.movedim(1, 3)[image, rows[:, :, None], columns[:, None]].movedim(3, 1)

    # fitting, and loading, build networks -------------------------------------------------------------------

    def afresh(self, images: Tensor) -> Self:
        """This detector as it was before it was fitted, on the same device, with networks for such images."""
        _, C, H, W = images.shape
        if self.patch is None and H != W:
            raise ValueError(f"images must be square, got {H}×{W}: resize them, or cut squares with patch=")
        if self.patch is not None and self.patch > min(H, W):
            raise ValueError(f"patch must be at most the images' {H}×{W}, got {self.patch}")
        if len(images) < 2:
            raise ValueError(f"images must be at least 2 to learn from, got {len(images)}")
        new = type(self)(**self._arguments())
        new.shape_ = torch.tensor([C, self.patch or H])
        new.build(C, self.patch or H)
        return new.to(self.shape_.device)

    def take(self, new: Self) -> Self:
        """Become what `new` has become; the end of `fit`."""
        self.__dict__.update(new.__dict__)
        return self.fitted()

    def _load_from_state_dict(self, state_dict, prefix, *args):
        shape = state_dict.get(prefix + "shape_")
        if shape is not None and shape.numel():
            self.build(*shape.tolist())
        super()._load_from_state_dict(state_dict, prefix, *args)


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
    kept = cache.unseal(path)
    if kept.keys() != {"method", "options", "state", "losses", "backbones"}:
        raise ValueError(f"{path} is no saved detector: it holds {sorted(kept)}")
    detector = _build(path, kept, modules)
    for where, wanted in kept["backbones"].items():
        found = detector.get_submodule(where)
        if found.sha256 != wanted["sha256"]:
            raise ValueError(f"{path} was fitted on other weights of {wanted['name']!r} than {found.origin} has: "
                             "fit again, or point ADLEARN_WEIGHTS at the weights it was fitted on")
    missing, unexpected = detector.load_state_dict(kept["state"], strict=False)
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
