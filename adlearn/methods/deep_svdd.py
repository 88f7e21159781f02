"""Deep SVDD: a network learns to map normal images into a small ball around a fixed centre; what lands far is unusual.

    one-class        min_W    mean |φ(x) − c|²  +  λ/2 Σ |W|²
    soft-boundary    min_W,R  R² + 1/ν mean max(0, |φ(x) − c|² − R²)  +  λ/2 Σ |W|²          score |φ(x) − c|²

φ(x) = c for every x would be the perfect solution, and a useless one: the network has *collapsed*. It is kept out of
reach by what the network may not have. A bias, an affine batch norm or a unit that saturates could give c whatever the
image is, and c must not be what the network gives without weights, the origin. `refuse_shortcuts` looks for all that.

Departures: the rate falls along a cosine, not by ten at a third of the epochs; the decoder that is thrown away after
the pretraining has no transposed convolutions; λ is the paper's 10⁻⁶ where the authors' command has half of it; of few
epochs a third warms up the radius; the score leaves out −R², which changes no order.

Ruff, Vandermeulen, Görnitz, Deecke, Siddiqui, Binder, Müller and Kloft, "Deep One-Class Classification", 2018.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from itertools import pairwise
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from adlearn import checks, runtime, training
from adlearn.data.folder import as_images
from adlearn.detector import Trained
from adlearn.nets import Stack

OBJECTIVES = ("one-class", "soft-boundary")
AWAY = 0.1                                      # how far each coordinate of c stays away from 0
COLLAPSED = 1e-3                                # deviation of the features, as a share of their length
SATURATING = (nn.Sigmoid, nn.Tanh, nn.Hardsigmoid, nn.Hardtanh, nn.Softsign, nn.ELU, nn.SELU, nn.CELU)


class LeNet(Stack):
    """The paper's network, images (B, channels, side, side) to (B, dim), without a bias anywhere.

    Args:
        channels, side: of the images; each width halves the side, for three it is a multiple of 8.
        widths: of the 5 × 5 convolutions, each followed by batch norm, leaky ReLU and a pooling that halves.
        dim: of the features.
    """

    def __init__(self, *, channels: int, side: int, widths=(32, 64, 128), dim: int = 128):
        factor = 2 ** len(widths)
        if checks.positive_int(side, "side") % factor:
            raise ValueError(f"the side must be a multiple of {factor} to be halved {len(widths)} times, got {side}: "
                             "resize")
        layers: list[nn.Module] = []
        for before, after in pairwise((channels, *widths)):
            layers += [nn.Conv2d(before, after, 5, padding=2, bias=False), *_shape(after), nn.MaxPool2d(2)]
        super().__init__(*layers, nn.Flatten(), nn.Linear(widths[-1] * (side // factor) ** 2, dim, bias=False))
        self.dim = dim

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.contiguous(memory_format=torch.channels_last))


def mirror(net: LeNet) -> nn.Sequential:
    """A decoder for its features, (B, dim) to (B, channels, side, side): the same widths backwards."""
    convolutions = [layer for layer in net if isinstance(layer, nn.Conv2d)]
    last = convolutions[-1].out_channels
    rest = math.isqrt(net[-1].in_features // last)
    layers: list[nn.Module] = [nn.Linear(net.dim, net[-1].in_features, bias=False), nn.Unflatten(1, (last, rest, rest)),
                               *_shape(last)]
    for layer in reversed(convolutions):
        layers += [nn.Upsample(scale_factor=2),
                   nn.Conv2d(layer.out_channels, layer.in_channels, 5, padding=2, bias=False),
                   *_shape(layer.in_channels)]
    return nn.Sequential(*layers[:-2])


def _shape(width: int) -> tuple[nn.Module, nn.Module]:
    return nn.BatchNorm2d(width, eps=1e-4, affine=False), nn.LeakyReLU(0.01)


def refuse_shortcuts(net: nn.Module) -> None:
    """Refuse a network with a part that can give one and the same output whatever the image is.

    What a `forward` adds of its own cannot be seen here, `zero_point` sees it.

    Raises:
        ValueError: a parameter that is not the weight of a convolution or a linear layer, as a bias or an affine norm
            has; an activation that saturates at a value other than 0.
    """
    for name, part in net.named_modules():
        allowed = "weight" if isinstance(part, nn.Linear | nn.modules.conv._ConvNd) else None
        for own, _ in part.named_parameters(recurse=False):
            if own != allowed:
                cure = ("build it with bias=False" if allowed else "build it with elementwise_affine=False"
                        if isinstance(part, nn.LayerNorm) else "build it with affine=False"
                        if "Norm" in type(part).__name__ else "take it out")
                raise ValueError(f"encoder must not be able to collapse: {type(part).__name__} {name!r} has a {own!r}, "
                                 f"which can give the centre whatever the image is; {cure}")
        if isinstance(part, SATURATING):
            raise ValueError(f"encoder must not be able to collapse: {type(part).__name__} {name!r} saturates, and a "
                             "saturated unit is a bias; use ReLU or leaky ReLU")


@torch.no_grad()
def zero_point(net: nn.Module, channels: int, side: int) -> Tensor:
    """What the network gives without weights, (D,): 0 for one that cannot collapse, whatever its parts are called."""
    bare = copy.deepcopy(net).eval()
    for parameter in bare.parameters():
        parameter.zero_()
    return bare(torch.full((1, channels, side, side), 0.5).to(next(bare.parameters(), torch.empty(0))))[0]


def centre_of(net: nn.Module, images: Tensor, *, batch_size: int = 256) -> Tensor:
    """c, (D,): the mean output for all images, with coordinates nearer to 0 than 0.1 moved to ±0.1."""
    c = training.collect(net.eval(), images, batch_size=batch_size, device=training.device_of(net)).mean(0)
    return torch.where(c.abs() < AWAY, torch.where(c < 0, -AWAY, AWAY), c).to(training.device_of(net))


def pretrain(net: LeNet, images: Tensor, *, epochs: int, batch_size: int = 200, lr: float = 1e-3,
             weight_decay: float = 1e-6, callback: Callable[[int, nn.Module], None] | None = None) -> list[float]:
    """Train `net` as the encoder of an autoencoder with a code of `dim` numbers; returns its losses.

    Args:
        images: (N, C, H, W), of any range.
        epochs, batch_size, lr, callback: see `training.train`.
    """
    both = nn.Sequential(net, mirror(net)).to(training.device_of(net))
    return training.train(both, lambda batch: (both(batch) - batch).square().sum((1, 2, 3)).mean(), images,
                          epochs=epochs, batch_size=batch_size, callback=callback,
                          optimizer=training.Adam(both.parameters(), lr=lr, weight_decay=weight_decay))


def shrink(
    net: nn.Module,
    images: Tensor,
    centre: Tensor,
    *,
    objective: str = "one-class",
    nu: float = 0.1,
    warmup: int = 10,
    epochs: int,
    batch_size: int = 200,
    lr: float = 1e-4,
    weight_decay: float = 1e-6,
    callback: Callable[[int, nn.Module], None] | None = None,
    history: list[float] | None = None,
) -> tuple[list[float], float]:
    """Train `net` to map images close to `centre`; returns the losses and the squared radius, 0 for "one-class".

    Nothing is refused here, so that one can watch a network collapse.

    Args:
        net: images to (B, D).
        centre: c, (D,), see `centre_of`.
        objective: one of `OBJECTIVES`. With "soft-boundary" a share of about `nu` may stay outside of the ball; its
            radius is 0 for `warmup` epochs and then the 1 − ν quantile of each batch's distances.
        weight_decay: λ.
        epochs, batch_size, lr, callback, history: see `training.train`.
    """
    soft = checks.choice(objective, OBJECTIVES, "objective") == "soft-boundary"
    radius2, past = torch.zeros((), device=centre.device), 0

    def loss(batch: Tensor) -> Tensor:
        squares = (net(batch).float() - centre).square().sum(1)                         # (B,)
        if not soft:
            return squares.mean()
        value = radius2 + (squares - radius2).clamp(min=0).mean() / nu
        if past >= warmup:
            radius2.copy_(squares.detach().quantile(1 - nu))
        return value

    def count(epoch: int, module: nn.Module) -> None:
        nonlocal past
        past = epoch
        if callback:
            callback(epoch, module)

    losses = training.train(net, loss, images, epochs=epochs, batch_size=batch_size, callback=count, history=history,
                            optimizer=training.Adam(net.parameters(), lr=lr, weight_decay=weight_decay))
    return losses, radius2.item()


def spread(features: Tensor) -> float:
    """Deviation of features (N, D) around their mean, as a share of the mean's length: near 0 after a collapse."""
    mean = features.mean(0)
    return ((features - mean).square().sum(1).mean().sqrt() / mean.norm().clamp(min=1e-12)).item()


class DeepSVDD(Trained):
    """Squared distance to a centre that the network was taught to map normal images to.

    Images are contrast-normalised one by one, less their mean and over their mean absolute deviation, and then brought
    to [0, 1] by constants of the training images. The paper's network is first trained as an autoencoder's encoder.

    Args:
        objective: "one-class" or "soft-boundary".
        nu: ν in (0, 1), of "soft-boundary": the share of training images that may stay outside.
        encoder: a network of one's own, images (B, C, H, W) to (B, D), without the shortcuts that `refuse_shortcuts`
            names; it is copied, and trained from the weights it has, without pretraining. None builds the paper's,
            `LeNet`.
        widths, dim: of the paper's network.

    Attributes:
        centre_: c, (D,).
        radius_: R: the 1 − ν quantile of all training images' distances for "soft-boundary", or 0.
        range_: smallest and largest value of the contrast-normalised training images.
    """

    training_steps: ClassVar = {"quick": 200, "gpu": 3750, "paper": 3750}               # 150 epochs of 5,000 images
    pretraining_steps: ClassVar = {"quick": 200, "gpu": 8750, "paper": 8750}            # 350
    batch_sizes: ClassVar = {"quick": 50, "gpu": 200, "paper": 200}
    rates: ClassVar = {"quick": 1e-4, "gpu": 1e-4, "paper": 1e-4}

    def __init__(self, *, objective: str = "one-class", nu: float = 0.1, encoder: nn.Module | None = None,
                 widths=(32, 64, 128), dim: int = 128):
        super().__init__()
        self.objective = checks.choice(objective, OBJECTIVES, "objective")
        self.nu = checks.between(nu, 0, 0.999, "nu")
        if encoder is not None:
            refuse_shortcuts(encoder)
        self.keep_encoder(encoder)
        self.widths, self.dim = tuple(widths), checks.positive_int(dim, "dim")
        for name in ("centre_", "radius_", "range_"):
            self.register_buffer(name, torch.empty(0))

    def build(self, channels: int, side: int) -> None:
        if self.encoder is None:
            self.net = LeNet(channels=channels, side=side, widths=self.widths, dim=self.dim)
            return
        self.net = copy.deepcopy(self.encoder)
        if zero_point(self.net, channels, side).abs().max() > 0:
            raise ValueError("encoder must not be able to collapse: without weights it gives something else than 0, so "
                             "something in it is a bias")

    def fit(self, images, *, epochs: int | None = None, batch_size: int | None = None, lr: float | None = None,
            pretrain_epochs: int | None = None, callback: Callable[[int, Self], None] | None = None) -> Self:
        """Pretrain the network, fix the centre, and shrink the ball.

        Args:
            images: normal images, square, a multiple of 8 pixels a side, two of them or more, with something on them.
            epochs, batch_size, lr: None leaves them to the profile; batch size and rate serve the pretraining, too.
            pretrain_epochs: None leaves them to the profile, 0 pretrains nothing; an `encoder` is never pretrained.
            callback: called with (epoch, detector) after each epoch of the shrinking and, with 0, before it; the
                detector can score, and its `radius_` is that of the moment.

        Warns:
            UserWarning: the features hardly differ from image to image: the network has collapsed.

        Raises:
            ValueError: images that are too few, each of one colour, not square, or of a side that cannot be halved.
        """
        images = as_images(images)[:]
        new = self.afresh(images)
        where = new.shape_.device
        lr = runtime.pick(**self.rates) if lr is None else lr
        batch_size = runtime.pick(**self.batch_sizes) if batch_size is None else batch_size
        epochs = self.epochs(epochs, len(images), batch_size, self.training_steps)
        before = 0 if self.encoder is not None or pretrain_epochs == 0 else self.epochs(
            pretrain_epochs, len(images), batch_size, self.pretraining_steps)
        new.range_ = torch.stack(contrast_normalised(new.fitting(images)).aminmax()).to(where)
        if new.range_[0] == new.range_[1]:
            raise ValueError("images must have something on them: each of these is of one colour")
        inputs = new.prepared(images.to(where))
        if before:
            pretrain(new.net, inputs, epochs=before, batch_size=batch_size, lr=lr)
        new.centre_, new.radius_ = centre_of(new.net, inputs), torch.zeros((), device=where)

        def watch(epoch: int, _: nn.Module) -> None:
            callback(epoch, new.eval()._measure(inputs))

        shrink(new.net, inputs, new.centre_, objective=self.objective, nu=self.nu, epochs=epochs,
               warmup=min(10, epochs // 3), batch_size=batch_size, lr=lr, history=new.losses_,
               callback=callback and watch)
        new._measure(inputs)
        found = spread(training.collect(new.net, inputs, batch_size=256))
        if found < COLLAPSED:
            warnings.warn(f"the network has collapsed: from image to image its features differ by {found:.1e} of their "
                          "length; train for fewer epochs or at a lower rate", stacklevel=2)
        return self.take(new)

    def _measure(self, inputs: Tensor) -> Self:
        """Set the radius from all training inputs."""
        if self.objective == "soft-boundary":
            squares = training.collect(lambda batch: (self.net(batch).float() - self.centre_).square().sum(1), inputs,
                                       batch_size=256)
            self.radius_ = squares.quantile(1 - self.nu).sqrt().to(self.radius_)
        return self

    def prepared(self, images: Tensor) -> Tensor:
        """What the network sees: contrast-normalised images, brought to [0, 1] by the training images' range."""
        low, high = self.range_
        return (contrast_normalised(self.fitting(images)) - low) / (high - low)

    def embed(self, images: Tensor) -> Tensor:
        """φ(x), (B, D)."""
        return self.net(self.prepared(images))

    def anomaly_score(self, images: Tensor) -> Tensor:
        """|φ(x) − c|²."""
        return (self.embed(images).float() - self.centre_).square().sum(1)


def contrast_normalised(images: Tensor) -> Tensor:
    """Each image (C, H, W) less its mean, over its mean absolute deviation, or over 10⁻³ if that is smaller."""
    centred = images - images.mean((1, 2, 3), keepdim=True)
    return centred / centred.abs().mean((1, 2, 3), keepdim=True).clamp(min=1e-3)
