"""Augmentation of a whole batch at once, on its own device, every image with its own draw.

Chen, Kornblith, Norouzi and Hinton, "A Simple Framework for Contrastive Learning of Visual Representations" (SimCLR),
2020, section 3 and appendix A. A contrastive method learns whatever its augmentations leave unchanged, so they are
part of the method. Done image by image they cost more than a small network; done for a batch they cost little.

The file has two layers. A function changes images with parameters that it is given, one an image:
``adjust_hue(images, factor)``. A transform draws these parameters: ``transform(images, generator)``. For all of them

- images are (B, C, H, W), floating point in [0, 1], C of 1 or 3, and so is the result, a new tensor or, where there
  is nothing to change, the one given; the input stays as it was and gradients flow through it;
- parameters, numbers or tensors (B,), may lie on another device than the images; bad ones raise ``ValueError``;
- functions check the images' shape and type only, transforms also their values, once, which is one pass.

Transforms draw from `generator`, on its device, or from torch's global generator on the CPU: the same state gives the
same parameters for a batch on any device.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from adlearn import checks

LUMINANCE = (0.2989, 0.587, 0.114)                     # Rec. 601, as torchvision rounds it
LARGEST = 1e4                                          # no factor or deviation of use is beyond
SWAPS = ((0, 1, 2, 3), (1, 0, 3, 2), (2, 3, 0, 1), (3, 2, 1, 0))  # quarters: as is, left ↔ right, top ↔ bottom, both


# Geometry ------------------------------------------------------------------------------------------------------------


def resized_crop(
    images: Tensor, boxes: Tensor, size: int | tuple[int, int] | None = None, mirrored: Tensor | None = None
) -> Tensor:
    """Cut a box out of each image and resize it, by default to the image's own size.

    boxes (B, 4) int64: top, left, height, width in pixels, inside the image. size: pixels, one number or (H, W).
    mirrored (B,) bool: boxes to be read from right to left, which saves a `flip`. Bilinear, and blind to what lies
    outside the box: torchvision's `resized_crop` with ``antialias=False`` and, for boxes up to `size`, also with it.
    """
    _check_batch(images)
    boxes = _check_whole(boxes, (len(images), 4), "boxes")
    limits = torch.tensor(images.shape[2:], device=boxes.device)
    if (boxes[:, :2] < 0).any() or (boxes[:, 2:] < 1).any() or (boxes[:, :2] + boxes[:, 2:] > limits).any():
        raise ValueError(f"boxes must lie inside the {images.shape[2]}×{images.shape[3]} images, got top, left, height "
                         f"and width from {boxes.amin(0).tolist()} to {boxes.amax(0).tolist()}: clip them")
    out_height, out_width = _check_size(images.shape[2:] if size is None else size)
    top, left, height, width = boxes.unbind(1)
    working = images.to(torch.promote_types(images.dtype, torch.float32))      # half precision cannot place a pixel
    rows = _positions(top, height, images.shape[2], out_height).to(working)                     # (B, h)
    columns = _positions(left, width, images.shape[3], out_width).to(working)                   # (B, w)
    if mirrored is not None:
        columns = torch.where(_check_chosen(mirrored, images, "mirrored")[:, None], columns.flip(1), columns)
    grid = torch.stack(torch.broadcast_tensors(columns[:, None], rows[:, :, None]), dim=3)      # (B, h, w, 2)
    resized = F.grid_sample(working, grid, padding_mode="border", align_corners=False)          # (B, C, h, w)
    return resized.clamp_(0, 1).to(images.dtype)                                # rounding reaches beyond 1


def _positions(start: Tensor, extent: Tensor, length: int, size: int) -> Tensor:
    """Where `size` pixels spread over each crop lie: (B, size), −1 and 1 being the borders of the image."""
    steps = (torch.arange(size, dtype=torch.float64, device=start.device) + 0.5) / size
    start, extent = start[:, None], extent[:, None]
    centres = (start + extent * steps).clamp(start + 0.5, start + extent - 0.5)    # reads nothing beyond the last pixel
    return 2 * centres / length - 1


def flip(images: Tensor, chosen: Tensor) -> Tensor:
    """Mirror the images chosen, (B,) bool, left to right."""
    _check_batch(images)
    return torch.where(_check_chosen(chosen, images, "chosen")[:, None, None, None], images.flip(3), images)


def rotate(images: Tensor, quarter_turns: int | Tensor) -> Tensor:
    """Turn images by multiples of 90°, counter-clockwise: all by one number, or square ones each by its own, (B,)."""
    _check_batch(images)
    if isinstance(quarter_turns, int):
        return torch.rot90(images, quarter_turns, (2, 3))
    turns = _check_whole(quarter_turns, (len(images),), "quarter_turns") % 4
    if (turns % 2).any():
        _check_square(images)
    result = images.clone()
    for turn in (1, 2, 3):
        _change(result, turns == turn, lambda some, turn=turn: torch.rot90(some, turn, (2, 3)))
    return result


def rotations(images: Tensor) -> Tensor:
    """All four rotations, (4B, C, H, W): all images at 0°, then all at 90°, at 180°, at 270°. Square images only."""
    _check_batch(images)
    _check_square(images)
    return torch.cat([torch.rot90(images, turn, (2, 3)) for turn in range(4)])


def cut_permute(images: Tensor, permutation: Tensor | tuple[int, ...]) -> Tensor:
    """Cut images into 2×2 quarters, 0 1 over 2 3, and put quarter ``permutation[k]`` in place k. Even sizes only.

    permutation: (4,) for all images or (B, 4), each row holding 0, 1, 2 and 3; ``permutation.argsort(-1)`` undoes it.
    """
    _check_batch(images)
    B, C, H, W = images.shape
    if H % 2 or W % 2:
        raise ValueError(f"images must have even sides to be cut in quarters, got {H}×{W}: crop or resize them")
    permutation = checks.tensor(permutation, "permutation")
    permutation = _check_whole(permutation, (4,) if permutation.ndim == 1 else (B, 4), "permutation")
    if (permutation.sort(-1).values != torch.arange(4, device=permutation.device)).any():
        raise ValueError(f"permutation must hold 0, 1, 2 and 3, each once, got {permutation.tolist()}")
    quarters = images.reshape(B, C, 2, H // 2, 2, W // 2).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)    # (B, 4, C, h, w)
    image = torch.arange(B, device=images.device)[:, None]
    moved = quarters[image, permutation.to(images.device).expand(B, 4)]                              # (B, 4, C, h, w)
    return moved.unflatten(1, (2, 2)).permute(0, 3, 1, 4, 2, 5).reshape(B, C, H, W)


def cut_permutations(images: Tensor) -> Tensor:
    """The four shifts of CSI, (4B, C, H, W): the images, halves swapped left and right, top and bottom, and both.

    Tack et al., "CSI: Novelty Detection via Contrastive Learning on Distributionally Shifted Instances", 2020.
    """
    return torch.cat([cut_permute(images, swap) for swap in SWAPS])


def geometric(images: Tensor) -> Tensor:
    """The 72 transformations of GEOM and GOAD, (72B, C, H, W), the images as they are first. Square images only.

    Mirrored or not × shifted by −¼, 0 or ¼ of the side across and down, what is missing reflected × four rotations.
    Golan and El-Yaniv, "Deep Anomaly Detection Using Geometric Transformations", 2018.
    """
    _check_batch(images)
    _check_square(images)
    step = images.shape[2] // 4
    found = []
    for mirrored in (images, images.flip(3)):
        framed = F.pad(mirrored, (step,) * 4, mode="reflect")                                   # (B, C, H + 2s, W + 2s)
        for down in (step, 0, 2 * step):
            for across in (step, 0, 2 * step):
                moved = framed[:, :, down:down + images.shape[2], across:across + images.shape[3]]
                found += [torch.rot90(moved, turn, (2, 3)) for turn in range(4)]
    return torch.cat(found)


def beside(transform: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A shift of two: (B, C, H, W) to (2B, C, H, W), the images as they are, then as `transform` makes them."""
    return lambda images: torch.cat([images, transform(images)])


SHIFTS = {"rotations": rotations, "cut_permutations": cut_permutations, "geometric": geometric}


def shift_of(which: str | Callable[[Tensor], Tensor] | None) -> Callable[[Tensor], Tensor]:
    """A function of `SHIFTS` by its name, or one's own: (B, C, H, W) to (K·B, C, H, W), the images as they are first.

    None is the identity alone, K = 1.
    """
    if which is None:
        return lambda images: images
    return which if callable(which) else SHIFTS[checks.choice(which, SHIFTS, "shift")]


def count_of(shift: str | Callable[[Tensor], Tensor] | None, channels: int, side: int, *, minimum: int = 1) -> int:
    """K, the copies that a shift makes of an image (channels, side, side).

    Raises:
        ValueError: it is no shift: copies of another shape or outside [0, 1], the images as they are not first, or
            fewer copies than `minimum`.
    """
    asked = torch.linspace(0, 1, 2 * channels * side ** 2).view(2, channels, side, side)
    copies = shift_of(shift)(asked)
    if not isinstance(copies, Tensor) or copies.shape[1:] != asked.shape[1:] or len(copies) % 2 or not len(copies):
        raise ValueError(f"shift must turn images (B, C, H, W) into (K·B, C, H, W), got "
                         f"{tuple(getattr(copies, 'shape', ()))} for {tuple(asked.shape)}")
    checks.unit_range(copies, "what shift returns")
    if not torch.equal(copies[:2], asked):
        raise ValueError("shift must return the images as they are first, then all of them shifted in one way, and so "
                         "on: adlearn.augment.beside makes such a function of a transformation")
    if len(copies) // 2 < minimum:
        raise ValueError(f"shift must make at least {minimum} copies of an image, itself included, got "
                         f"{len(copies) // 2}: see adlearn.augment.beside")
    return len(copies) // 2


# Colour --------------------------------------------------------------------------------------------------------------


def adjust_brightness(images: Tensor, factor: float | Tensor) -> Tensor:
    """Multiply by `factor`, at least 0, and clamp: 0 is black, 1 changes nothing."""
    _check_batch(images)
    return (images * _per_image(factor, images, "factor")).clamp_(0, 1)


def adjust_contrast(images: Tensor, factor: float | Tensor) -> Tensor:
    """Stretch the distance to the image's mean grey by `factor`, at least 0, and clamp: 0 is flat."""
    _check_batch(images)
    factor = _per_image(factor, images, "factor")
    mean = _luminance(images.mean((2, 3), keepdim=True))                                        # (B, 1, 1, 1)
    return (images * factor).add_(mean * (1 - factor)).clamp_(0, 1)


def adjust_saturation(images: Tensor, factor: float | Tensor) -> Tensor:
    """Stretch each pixel's distance to its own grey by `factor`, at least 0, and clamp: 0 is grey."""
    _check_batch(images)
    factor = _per_image(factor, images, "factor")
    return images if images.shape[1] == 1 else torch.lerp(_luminance(images), images, factor).clamp_(0, 1)


def adjust_hue(images: Tensor, factor: float | Tensor) -> Tensor:
    """Turn the hue by `factor` of the colour circle, from −0.5 to 0.5; each pixel keeps its maximum and minimum."""
    _check_batch(images)
    return _turn_hue(images, _per_image(factor, images, "factor", -0.5, 0.5))


def _turn_hue(images: Tensor, factor: Tensor) -> Tensor:
    """On the colour circle red lies at 0, green at 2 and blue at 4 of 6; `factor`, (B, 1, 1, 1), is a share of it.

    Up to one step from its own place a channel is at the pixel's maximum, over the next step it falls to the minimum,
    and there it stays.
    """
    if images.shape[1] == 1:
        return images
    red, green, blue = images.unbind(1)                                                         # each (B, H, W)
    high = torch.maximum(torch.maximum(red, green), blue)
    low = torch.minimum(torch.minimum(red, green), blue)
    chroma = high - low
    safe = chroma.clamp(min=torch.finfo(images.dtype).tiny)                    # a grey pixel has no hue, any will do
    share, side = (red - low).div_(safe), (green - blue).div_(safe)
    # The steps from red are `away` where red is the maximum (share 1), 3 − away where it is the minimum (share 0),
    # 2 − share where it is between (away 1): one formula for the three. The sign of `side` says which way round.
    away = side.abs()
    hue = torch.copysign(torch.lerp(3 - away, away, share), side) + 6 * factor[:, 0]
    hue = hue - 6 * (hue / 6).floor_()                                                          # (B, H, W), in [0, 6)
    shares = torch.stack([(hue - 3).abs_().sub_(1), 2 - (hue - 2).abs_(), 2 - (hue - 4).abs_()], dim=1)
    return torch.addcmul(low[:, None], shares.clamp_(0, 1), chroma[:, None])                    # (B, 3, H, W)


def _blend(images: Tensor, factor: Tensor, mean: Tensor, own: Tensor) -> Tensor:
    """Stretch the distance to a grey, which is what brightness (black), contrast and saturation do, and clamp.

    mean, own: 1 for the images whose grey is their mean or each pixel's own. All (B, 1, 1, 1).
    """
    luminance = _luminance(images)
    return torch.lerp(luminance * own + luminance.mean((2, 3), keepdim=True) * mean, images, factor).clamp_(0, 1)


def grey(images: Tensor) -> Tensor:
    """Three equal channels, the Rec. 601 luminance."""
    _check_batch(images)
    return images if images.shape[1] == 1 else _luminance(images).repeat(1, 3, 1, 1)


def _luminance(images: Tensor) -> Tensor:
    """(B, 1, H, W)"""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.split(1, dim=1)
    return (red * LUMINANCE[0]).add_(green, alpha=LUMINANCE[1]).add_(blue, alpha=LUMINANCE[2])


# Detail --------------------------------------------------------------------------------------------------------------


def gaussian_blur(images: Tensor, sigma: float | Tensor, kernel_size: int) -> Tensor:
    """Blur with a Gaussian of deviation `sigma` pixels, at least 0.01, cut to an odd `kernel_size`; borders reflect."""
    _check_batch(images)
    B, H, W = len(images), *images.shape[2:]
    radius = checks.positive_int(kernel_size, "kernel_size") // 2
    if kernel_size % 2 == 0 or radius >= min(H, W):
        raise ValueError(f"kernel_size must be odd and reach less far than the {H}×{W} images, got {kernel_size}")
    sigma = _per_image(sigma, images, "sigma", 0.01).flatten()
    weights = [torch.exp(-((offset / sigma) ** 2) / 2).view(B, 1, 1, 1) for offset in range(radius + 1)]
    total = 2 * sum(weights) - weights[0]
    for axis, padding in ((2, (0, 0, radius, radius)), (3, (radius, radius, 0, 0))):       # first down, then across
        padded, length = F.pad(images, padding, mode="reflect"), images.shape[axis]
        images = padded.narrow(axis, radius, length) * (weights[0] / total)                 # (B, C, H, W)
        for offset in range(1, radius + 1):
            sides = padded.narrow(axis, radius - offset, length) + padded.narrow(axis, radius + offset, length)
            images.addcmul_(sides, weights[offset] / total)
    return images.clamp_(0, 1)


def sobel(images: Tensor) -> Tensor:
    """Edges: the length of each channel's Sobel gradient over √20, the greatest that values in [0, 1] can give."""
    _check_batch(images)
    padded = F.pad(images, (1, 1, 1, 1), mode="replicate")                                      # (B, C, H + 2, W + 2)
    down = padded[:, :, :-2] + 2 * padded[:, :, 1:-1] + padded[:, :, 2:]                        # (B, C, H, W + 2)
    across = padded[..., :-2] + 2 * padded[..., 1:-1] + padded[..., 2:]                         # (B, C, H + 2, W)
    gradient = torch.stack([down[..., 2:] - down[..., :-2], across[:, :, 2:] - across[:, :, :-2]])
    return (torch.linalg.vector_norm(gradient, dim=0) / math.sqrt(20)).clamp_(0, 1)              # (B, C, H, W)


def add_noise(images: Tensor, noise: Tensor) -> Tensor:
    """Add noise of the images' shape and clamp."""
    _check_batch(images)
    if noise.shape != images.shape:
        raise ValueError(f"noise must have the images' shape {tuple(images.shape)}, got {tuple(noise.shape)}")
    return (images + noise.to(images)).clamp_(0, 1)


def cutout(images: Tensor, centres: Tensor, side: int, fill: float = 0.5) -> Tensor:
    """Cover a square of `side` pixels around each centre, (B, 2) int64 row and column; what juts out is lost.

    DeVries and Taylor, "Improved Regularization of Convolutional Neural Networks with Cutout", 2017. They fill with
    the data set's mean; 0.5 stands for it in images that are not normalised.
    """
    _check_batch(images)
    centres = _check_whole(centres, (len(images), 2), "centres")
    if (centres < 0).any() or (centres >= torch.tensor(images.shape[2:], device=centres.device)).any():
        raise ValueError(f"centres must lie inside the {images.shape[2]}×{images.shape[3]} images, got (row, column) "
                         f"from {centres.amin(0).tolist()} to {centres.amax(0).tolist()}")
    first = centres.to(images.device) - checks.positive_int(side, "side") // 2                  # (B, 2)
    rows, columns = (torch.arange(length, device=images.device) - start[:, None]
                     for length, start in zip(images.shape[2:], first.unbind(1), strict=True))  # (B, H), (B, W)
    rows, columns = (rows >= 0) & (rows < side), (columns >= 0) & (columns < side)
    return images.masked_fill((rows[:, :, None] & columns[:, None])[:, None], checks.within(fill, 0, 1, "fill"))


# Random transforms ---------------------------------------------------------------------------------------------------


class Transform:
    """``transform(images, generator=None)``: checks the images, then changes each by its own draw."""

    in_place = False                                   # whether `apply` changes the images that it is given

    def __call__(self, images: Tensor, generator: Generator | None = None) -> Tensor:
        images = checks.images(images)
        return self.apply(images.clone() if self.in_place else images, generator)

    def apply(self, images: Tensor, generator: Generator | None) -> Tensor:
        """The same without the check."""
        raise NotImplementedError


class Compose(Transform):
    """Transforms one after the other; none at all changes nothing."""

    def __init__(self, *transforms: Transform):
        for transform in transforms:
            if not isinstance(transform, Transform):
                raise ValueError(f"transforms must be transforms of adlearn.augment, got {transform!r}")
        self.transforms = transforms
        self.in_place = not transforms or transforms[0].in_place      # the others change what the first one makes

    def apply(self, images, generator):
        for transform in self.transforms:
            images = transform.apply(images, generator)
        return images

    def __repr__(self):
        return f"Compose({', '.join(map(repr, self.transforms))})"


@dataclass(frozen=True)
class RandomResizedCrop(Transform):
    """A box with a share `scale` of the area and a `ratio` of width to height, resized to `size` or to the image's.

    Drawn as in torchvision: shares uniformly, ratios uniformly in the logarithm; the first of ten draws that fits,
    at a random place, or else the largest central box of an allowed ratio. With probability `mirror` it is also
    mirrored: the result is that of a `RandomHorizontalFlip` behind it, for nothing. SimCLR's code resizes bicubically.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    size: int | tuple[int, int] | None = None
    mirror: float = 0.0

    def __post_init__(self):
        _check_span(self.scale, "scale", 1e-6, 1)
        _check_span(self.ratio, "ratio", 1 / LARGEST, LARGEST)
        checks.within(self.mirror, 0, 1, "mirror")
        if self.size is not None:
            _check_size(self.size)

    def apply(self, images, generator):
        boxes = self.boxes(len(images), *images.shape[2:], generator)
        return resized_crop(images, boxes, self.size, _coins(generator, images, self.mirror) if self.mirror else None)

    def boxes(self, number: int, height: int, width: int, generator: Generator | None = None) -> Tensor:
        """(number, 4) int64: top, left, height, width."""
        area = height * width * _uniform(generator, number, 10, span=self.scale)
        ratio = _uniform(generator, number, 10, span=(math.log(self.ratio[0]), math.log(self.ratio[1]))).exp()
        sides = torch.stack([area / ratio, area * ratio], dim=2).sqrt().round().long()              # (B, 10, 2)
        limits = torch.tensor([height, width], device=sides.device)
        fits = ((sides > 0) & (sides <= limits)).all(2)                                             # (B, 10)
        first = fits.int().argmax(1)                                                                # (B,)
        drawn = sides[torch.arange(number, device=sides.device), first]                             # (B, 2)
        central = [min(height, round(width / self.ratio[0])), min(width, round(height * self.ratio[1]))]
        fallback = torch.tensor(central, device=sides.device).clamp(min=1)
        drawn = torch.where(fits.any(1, keepdim=True), drawn, fallback)
        free = limits - drawn
        corner = (_uniform(generator, number, 2) * (free + 1)).long().minimum(free)   # rounding could reach free + 1
        corner = torch.where(fits.any(1, keepdim=True), corner, free // 2)
        return torch.cat([corner, drawn], dim=1)


@dataclass(frozen=True)
class RandomHorizontalFlip(Transform):
    """Mirror left to right with probability `p`."""

    p: float = 0.5
    in_place = True

    def __post_init__(self):
        checks.within(self.p, 0, 1, "p")

    def apply(self, images, generator):
        return _change(images, _coins(generator, images, self.p), lambda some: some.flip(3))


@dataclass(frozen=True)
class ColorJitter(Transform):
    """With probability `p` change brightness, contrast, saturation and hue, in an order drawn for each image.

    The first three factors are uniform in [max(0, 1 − strength), 1 + strength], the hue's in [−hue, hue].
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    p: float = 1.0
    in_place = True

    def __post_init__(self):
        for name in ("brightness", "contrast", "saturation"):
            checks.within(getattr(self, name), 0, LARGEST, name)
        checks.within(self.hue, 0, 0.5, "hue")
        checks.within(self.p, 0, 1, "p")

    def apply(self, images, generator):
        chosen = _coins(generator, images, self.p)
        order = _uniform(generator, len(images), 4).argsort(1)      # (B, 4): brightness, contrast, saturation, hue
        spans = [(max(0, 1 - strength), 1 + strength)
                 for strength in (self.brightness, self.contrast, self.saturation)] + [(-self.hue, self.hue)]
        low, high = torch.tensor(spans, device=order.device).T
        factors = (low + (high - low) * _uniform(generator, len(images), 4)).gather(1, order)
        for turn in range(4):                    # images with the hue at this turn: the other three are blends for all
            _change(images, chosen & (order[:, turn] == 3), partial(self._adjust, turn), order, factors)
        return images

    def _adjust(self, turn_of_hue: int, images: Tensor, order: Tensor, factors: Tensor) -> Tensor:
        """All four changes, each image's in its own order (B, 4) with its own factors (B, 4)."""
        parts = [part.to(images)[:, :, None, None, None] for part in (factors, order == 1, order == 2)]
        for turn, (factor, mean, own) in enumerate(zip(*[part.unbind(1) for part in parts], strict=True)):
            if turn != turn_of_hue:
                images = _blend(images, factor, mean, own)
            elif self.hue:
                images = _turn_hue(images, factor)
        return images


@dataclass(frozen=True)
class RandomGrey(Transform):
    """Drop the colour with probability `p`."""

    p: float = 0.2
    in_place = True

    def __post_init__(self):
        checks.within(self.p, 0, 1, "p")

    def apply(self, images, generator):
        return _change(images, _coins(generator, images, self.p), grey)


@dataclass(frozen=True)
class RandomGaussianBlur(Transform):
    """With probability `p` blur by a `sigma` drawn uniformly; the kernel is 10 % of the shorter side, made odd."""

    sigma: tuple[float, float] = (0.1, 2.0)
    p: float = 0.5
    in_place = True

    def __post_init__(self):
        _check_span(self.sigma, "sigma", 0.01, LARGEST)
        checks.within(self.p, 0, 1, "p")

    def apply(self, images, generator):
        kernel_size = 2 * max(1, min(images.shape[2:]) // 20) + 1
        chosen, sigma = _coins(generator, images, self.p), _uniform(generator, len(images), span=self.sigma)
        return _change(images, chosen, lambda some, sigma: gaussian_blur(some, sigma, kernel_size), sigma)


@dataclass(frozen=True)
class GaussianNoise(Transform):
    """Add normal noise of deviation `sigma`, independent for every value."""

    sigma: float = 0.1

    def __post_init__(self):
        checks.within(self.sigma, 0, LARGEST, "sigma")

    def apply(self, images, generator):
        noise = torch.randn(images.shape, generator=generator, device=_place(generator))
        return add_noise(images, self.sigma * noise)


@dataclass(frozen=True)
class Cutout(Transform):
    """Cover a square with a share `side` of the shorter side, centred anywhere in the image; see `cutout`."""

    side: float = 0.5
    fill: float = 0.5

    def __post_init__(self):
        checks.within(self.side, 0, 1, "side")
        checks.within(self.fill, 0, 1, "fill")

    def apply(self, images, generator):
        centres = [torch.randint(length, (len(images),), generator=generator, device=_place(generator))
                   for length in images.shape[2:]]
        side = max(1, round(self.side * min(images.shape[2:])))
        return cutout(images, torch.stack(centres, dim=1), side, self.fill)


@dataclass(frozen=True)
class Sobel(Transform):
    """Edges instead of the image; nothing is drawn. See `sobel`."""

    def apply(self, images, generator):
        return sobel(images)


@dataclass(frozen=True)
class RandomRotation(Transform):
    """Turn square images by one of `quarter_turns`, each equally likely."""

    quarter_turns: tuple[int, ...] = (0, 1, 2, 3)

    def __post_init__(self):
        if not self.quarter_turns:
            raise ValueError("quarter_turns must hold at least one number of turns, got none")
        for turns in self.quarter_turns:
            checks.choice(turns, range(4), "quarter_turns")

    def apply(self, images, generator):
        drawn = torch.randint(len(self.quarter_turns), (len(images),), generator=generator, device=_place(generator))
        return rotate(images, torch.tensor(self.quarter_turns, device=drawn.device)[drawn])


@dataclass(frozen=True)
class CutPermute(Transform):
    """One of CSI's four permutations of the quarters, `SWAPS`, each equally likely; see `cut_permute`."""

    def apply(self, images, generator):
        drawn = torch.randint(len(SWAPS), (len(images),), generator=generator, device=_place(generator))
        return cut_permute(images, torch.tensor(SWAPS, device=drawn.device)[drawn])


# Recipes -------------------------------------------------------------------------------------------------------------


def simclr(*, strength: float = 0.5, blur: bool = False, mirror: float = 0.5) -> Compose:
    """SimCLR's augmentation, the defaults as for CIFAR-10; with ``strength=1, blur=True`` as for ImageNet."""
    s = checks.within(strength, 0, 2.5, "strength")
    return Compose(RandomResizedCrop(mirror=mirror), ColorJitter(0.8 * s, 0.8 * s, 0.8 * s, 0.2 * s, p=0.8),
                   RandomGrey(), *[RandomGaussianBlur()] * blur)


def views_of_shifts(
    shift: str | Callable[[Tensor], Tensor] | None, views: Callable[[Tensor], Tensor] | None = None, *,
    recipe: Callable[[Tensor], Tensor]
) -> Callable[[Tensor], Tensor]:
    """A function: images (B, C, H, W) in [0, 1] to one random view of each shifted copy, (K·B, C, H, W).

    Args:
        shift: see `shift_of`.
        views: draws a view of each copy. None is `recipe`, of images that were mirrored at random *before* the shift:
            a quarter turn to the left, mirrored, is a quarter turn to the right of the mirrored image, and nobody could
            tell the two turns apart any more. "geometric" mirrors itself and goes without; if your own shift does, give
            it views of your own. And mind that random crops hide a shift that moves.
    """
    mirrored = views is None and shift != "geometric"
    shift, flip = shift_of(shift), RandomHorizontalFlip() if mirrored else Compose()
    views = recipe if views is None else views
    return lambda images: _unchecked(views, shift(_unchecked(flip, images)))


def _unchecked(transform: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """What `transform` makes of images that have been checked; its own may change its input."""
    if not isinstance(transform, Transform):
        return transform(images)
    return transform.apply(images.clone() if transform.in_place else images, None)


def simclr_figure() -> dict[str, Transform]:
    """The items (a) to (j) of SimCLR's figure 4, in its order; each is applied to every image."""
    return {
        "original": Compose(),
        "crop and resize": RandomResizedCrop(),
        "crop, resize and flip": Compose(RandomResizedCrop(), RandomHorizontalFlip(p=1)),
        "colour drop": RandomGrey(p=1),
        "colour jitter": ColorJitter(0.8, 0.8, 0.8, 0.2),
        "rotate": RandomRotation((1, 2, 3)),
        "cutout": Cutout(),
        "Gaussian noise": GaussianNoise(),
        "Gaussian blur": RandomGaussianBlur(p=1),
        "Sobel": Sobel(),
    }


# Shared --------------------------------------------------------------------------------------------------------------


def _change(images: Tensor, chosen: Tensor, change: Callable[..., Tensor], *parameters: Tensor) -> Tensor:
    """Replace, in place, the images chosen, (B,) bool, by change(images, *parameters) of these alone."""
    index = chosen.nonzero().flatten()
    if len(index):
        place = index.to(images.device)
        changed = change(images.index_select(0, place), *[values[index] for values in parameters])
        if images.is_contiguous():                              # the same, but twice as fast on rows as on (C, H, W)
            images.view(len(images), -1)[place] = changed.flatten(1)
        else:
            images[place] = changed
    return images


def _place(generator: Generator | None) -> torch.device:
    return torch.device("cpu") if generator is None else generator.device


def _uniform(generator: Generator | None, *shape: int, span: tuple[float, float] = (0.0, 1.0)) -> Tensor:
    low, high = span
    return low + (high - low) * torch.rand(shape, generator=generator, device=_place(generator))


def _coins(generator: Generator | None, images: Tensor, p: float) -> Tensor:
    """(B,) bool, each True with probability p."""
    return _uniform(generator, len(images)) < p


def _per_image(value, images: Tensor, name: str, low: float = 0.0, high: float = LARGEST) -> Tensor:
    """A number for all images, or (B,), as (B, 1, 1, 1) of the images' type and device."""
    value = checks.tensor(value, name)
    if value.shape not in ((), (len(images),)):
        raise ValueError(f"{name} must be one number or have shape ({len(images)},), got {tuple(value.shape)}")
    if not ((value >= low) & (value <= high)).all():                           # nor is NaN, whatever the limits
        raise ValueError(f"{name} must lie from {low:g} to {high:g}, got values from {value.min():.4g} to "
                         f"{value.max():.4g}")
    return value.to(images).expand(len(images)).view(-1, 1, 1, 1)


def _check_batch(images: Tensor) -> None:
    if images.ndim != 4 or images.shape[1] not in (1, 3) or not images.is_floating_point():
        raise ValueError(f"images must be floating point of shape (B, C, H, W) with C of 1 or 3, got {images.dtype} "
                         f"{tuple(images.shape)}: divide bytes by 255, add the missing axes with images[None]")


def _check_square(images: Tensor) -> None:
    if images.shape[2] != images.shape[3]:
        raise ValueError(f"images must be square to be turned by 90°, got {images.shape[2]}×{images.shape[3]}: "
                         "crop or resize them")


def _check_chosen(value, images: Tensor, name: str) -> Tensor:
    value = checks.tensor(value, name)
    if value.shape != (len(images),) or value.dtype != torch.bool:
        raise ValueError(f"{name} must be bool of shape ({len(images)},), got {value.dtype} {tuple(value.shape)}: "
                         "one True or False an image")
    return value.to(images.device)


def _check_size(value) -> tuple[int, int]:
    sides = tuple(value) if isinstance(value, tuple | list) else (value, value)
    if len(sides) != 2:
        raise ValueError(f"size must be one number of pixels or two, (H, W), got {value!r}")
    return checks.positive_int(sides[0], "size"), checks.positive_int(sides[1], "size")


def _check_whole(value, shape: tuple[int, ...], name: str) -> Tensor:
    value = checks.tensor(value, name)
    if value.shape != shape or value.is_floating_point() or value.dtype == torch.bool:
        raise ValueError(f"{name} must be whole numbers of shape {shape}, got {value.dtype} {tuple(value.shape)}")
    return value.long()


def _check_span(value, name: str, low: float, high: float) -> None:
    pair = isinstance(value, tuple | list) and len(value) == 2 and all(map(checks.is_number, value))
    if not (pair and low <= value[0] <= value[1] <= high):
        raise ValueError(f"{name} must be two numbers from {low:g} to {high:g}, the smaller first, got {value!r}")
