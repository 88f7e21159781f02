"""The small networks that the methods share."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from adlearn import checks


class Stack(nn.Sequential):
    """Layers one after the other, for classes with arguments of their own: a slice of it is a plain nn.Sequential."""

    def __getitem__(self, which):
        return nn.Sequential(*list(self)[which]) if isinstance(which, slice) else super().__getitem__(which)


class Encoder(Stack):
    """Images (B, C, H, W) to features (B, dim): stride-2 convolutions with batch norm, then the mean over positions.

    Args:
        channels: of the images.
        widths: of the convolutions; each halves the resolution.
        dim: of the features; None leaves the last width as it is.
    """

    def __init__(self, *, channels: int, widths=(16, 32, 64), dim: int | None = None):
        for name, value in (("channels", channels), ("the number of widths", len(widths)), ("dim", dim)):
            if value is not None:
                checks.positive_int(value, name)
        layers: list[nn.Module] = []
        for before, after in zip((channels, *widths[:-1]), widths, strict=True):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]                       # (B, widths[-1])
        if dim is not None:
            layers.append(nn.Linear(widths[-1], dim))                           # (B, dim)
        super().__init__(*layers)
        self.dim = dim or widths[-1]

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.contiguous(memory_format=torch.channels_last))    # a quarter to a half faster


class ResNet(Stack):
    """Images (B, C, H, W) to features (B, dim): a residual network whose stem keeps the resolution of small images.

    A 3 × 3 convolution of stride 1 and no pooling, then one group of basic blocks for each width, of which all but the
    first halve the resolution, then the mean over positions. He et al., "Deep Residual Learning", 2016, with the stem
    that SimCLR, SupCon and CSI use for images of 32 pixels. Weights start as PyTorch draws them, not by He's rule.

    Args:
        channels: of the images.
        widths: of the groups; the last is `dim`.
        blocks: in each group.
    """

    def __init__(self, *, channels: int = 3, widths=(64, 128, 256, 512), blocks: int = 2):
        for name, value in (("channels", channels), ("blocks", blocks), ("the number of widths", len(widths))):
            checks.positive_int(value, name)
        layers: list[nn.Module] = [_conv(channels, widths[0]), nn.BatchNorm2d(widths[0]), nn.ReLU()]
        before = widths[0]
        for group, after in enumerate(widths):
            for block in range(blocks):
                layers.append(_Block(before, after, stride=2 if group and not block else 1))
                before = after
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())        # (B, widths[-1])
        self.dim = widths[-1]

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.contiguous(memory_format=torch.channels_last))


def resnet18(channels: int = 3) -> ResNet:
    """ResNet-18 for small images: 11 million weights, features (B, 512)."""
    return ResNet(channels=channels)


class WideResNet(Stack):
    """Images (B, C, H, W) to features (B, dim): a wide residual network, batch norm and ReLU before each convolution.

    Three groups of (depth − 4) / 6 blocks with 16, 32 and 64 times `widen` channels. GOAD's is 10-4: one block a group,
    features (B, 256). Zagoruyko and Komodakis, "Wide Residual Networks", 2016.

    Args:
        channels: of the images.
        depth: 10, 16, 22, 28, ...
        widen: factor of the widths.
    """

    def __init__(self, *, channels: int = 3, depth: int = 10, widen: int = 4):
        if checks.positive_int(depth, "depth", 10) % 6 != 4:
            raise ValueError(f"depth must be 10, 16, 22, ..., 6 n + 4 for n blocks a group, got {depth}")
        checks.positive_int(channels, "channels")
        checks.positive_int(widen, "widen")
        layers: list[nn.Module] = [_conv(channels, 16)]
        before = 16
        for group in range(3):
            for block in range((depth - 4) // 6):
                after = 16 * 2 ** group * widen
                layers.append(_PreBlock(before, after, stride=2 if group and not block else 1))
                before = after
        super().__init__(*layers, nn.BatchNorm2d(before), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.dim = before

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.contiguous(memory_format=torch.channels_last))


class _PreBlock(nn.Module):
    """x + two convolutions of relu(norm(x)), with a 1 × 1 convolution on the shortcut where the shape changes."""

    def __init__(self, before: int, after: int, stride: int):
        super().__init__()
        self.first = nn.Sequential(nn.BatchNorm2d(before), nn.ReLU())
        self.residual = nn.Sequential(_conv(before, after, stride), nn.BatchNorm2d(after), nn.ReLU(),
                                      _conv(after, after))
        self.same = stride == 1 and before == after
        self.shortcut = nn.Identity() if self.same else nn.Conv2d(before, after, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = self.first(x)
        return (x if self.same else self.shortcut(active)) + self.residual(active)


class _Block(nn.Module):
    """relu(x + two convolutions of x), with a 1 × 1 convolution on x where the shape changes."""

    def __init__(self, before: int, after: int, stride: int):
        super().__init__()
        self.residual = nn.Sequential(_conv(before, after, stride), nn.BatchNorm2d(after), nn.ReLU(),
                                      _conv(after, after), nn.BatchNorm2d(after))
        self.shortcut = nn.Identity() if stride == 1 and before == after else nn.Sequential(
            nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.shortcut(x) + self.residual(x))


def _conv(before: int, after: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(before, after, 3, stride, padding=1, bias=False)


# The layers of Bergmann et al. by patch size: kernel and width of a convolution, None for a max-pooling by 2. Printed
# are a kernel of 5 in the first layer for 17 and of 3 in the fourth for 65, which would not end in one vector.
PATCH_LAYERS = {
    17: ((6, 128), (5, 256), (5, 256), (4, 128)),
    33: ((5, 128), None, (5, 256), None, (2, 256), (4, 128)),
    65: ((5, 128), None, (5, 128), None, (5, 128), None, (4, 256), (1, 128)),
}


class PatchNet(Stack):
    """Patches (B, 3, p, p) in [0, 1] to descriptors (B, dim, 1, 1); of larger images every `stride`-th patch's.

    The teachers and students of Bergmann et al., "Uninformed Students", 2020; `dense.dense_features` gives the
    descriptors of all pixels. Colours are standardised first, by a fixed 1 × 1 convolution. Then no padding, leaky ReLU
    of slope 0.005 between the convolutions and none at the end. Poolings leave a remainder, so that the networks for 33
    and 65 see 32 and 60 pixels.

    Args:
        patch_size: p, 17, 33 or 65.
        shrink: all widths are the published ones over this number, 1, 2, 4 or 8.

    Attributes:
        stride: pixels between the patches that the network visits by itself.
        dim: of the descriptors, 128 over `shrink`.
    """

    def __init__(self, patch_size: int, *, shrink: int = 1):
        plan = PATCH_LAYERS[checks.choice(patch_size, PATCH_LAYERS, "patch_size")]
        checks.choice(shrink, (1, 2, 4, 8), "shrink")
        before, layers = 3, [_standardised_colours()]
        for entry in plan:
            if entry is None:
                layers.append(nn.MaxPool2d(2))
                continue
            kernel, after = entry[0], entry[1] // shrink
            layers += [nn.Conv2d(before, after, kernel), nn.LeakyReLU(5e-3)]
            nn.init.kaiming_normal_(layers[-2].weight, a=5e-3)          # nothing in between would mend a poor scale
            before = after
        super().__init__(*layers[:-1])
        self.patch_size, self.shrink, self.stride, self.dim = patch_size, shrink, 2 ** plan.count(None), before


def _standardised_colours() -> nn.Conv2d:
    """A fixed layer that takes the mean colour of natural images from each pixel and divides by the deviation."""
    layer = nn.Conv2d(3, 3, 1).requires_grad_(False)
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])            # of ImageNet
    layer.weight.copy_(torch.diag(1 / std)[:, :, None, None])
    layer.bias.copy_(-mean / std)
    return layer


class ProjectionHead(Stack):
    """Features h (B, dim) to z = W₂ relu(W₁ h), (B, out): where a contrastive loss compares. SimCLR, section 4.2.

    Args:
        dim: of h, and of the hidden layers.
        out: of z.
        layers: 2 as in the paper; 1 is a linear head, 3 that of its second version (without its batch norm).
        norm: batch norm after each hidden layer, without which a deep head hardly trains.
    """

    def __init__(self, dim: int, *, out: int = 128, layers: int = 2, norm: bool = False):
        for name, value in (("dim", dim), ("out", out), ("layers", layers)):
            checks.positive_int(value, name)
        hidden = [part for _ in range(layers - 1)
                  for part in (nn.Linear(dim, dim, bias=not norm), *[nn.BatchNorm1d(dim)] * norm, nn.ReLU())]
        super().__init__(*hidden, nn.Linear(dim, out))


def width(encoder: nn.Module) -> int:
    """The number of features that an encoder says it gives, its attribute `dim`."""
    if not isinstance(getattr(encoder, "dim", None), int):
        raise ValueError(f"encoder must say how many features it gives: set encoder.dim, got {type(encoder).__name__} "
                         "without it")
    return encoder.dim


ENCODERS = {
    "small": lambda channels: Encoder(channels=channels, widths=(32, 64, 128, 128)),
    "resnet18": resnet18,
    "wide_resnet_10_4": lambda channels: WideResNet(channels=channels),
}


def encoder_of(which: str | nn.Module, channels: int, side: int) -> nn.Module:
    """A new encoder of `ENCODERS` by its name, or a copy of one's own: images (B, channels, side, side) to (B, dim).

    Raises:
        ValueError: an unknown name; a network without `dim`, or that does not give so many features of such images.
    """
    if not isinstance(which, nn.Module):
        return ENCODERS[checks.choice(which, ENCODERS, "encoder")](channels)
    own, dim = copy.deepcopy(which), width(which)
    like = next(own.parameters(), torch.empty(0))
    try:
        with torch.no_grad():
            shape = tuple(own.eval()(torch.zeros(2, channels, side, side).to(like)).shape)
    except RuntimeError as error:
        raise ValueError(f"encoder must take images ({channels}, {side}, {side}): {error}") from error
    if shape != (2, dim):
        raise ValueError(f"encoder must give (2, {dim}) of 2 images, as its dim says, got {shape}")
    return own


SMALLEST = 4                                    # pixels a side of the last map before, and the first after, a code


class LatentEncoder(nn.Module):
    """Images (B, C, S, S) to codes (B, latent): convolutions of stride 2 down to 4 × 4, then a linear layer.

    The widths double from `width` to at most four times as many. Also a GAN's critic, with a code of one number.

    Args:
        channels, side: C and S of the images; S is 8, 16, 32, ...
        latent: length of a code.
        width: of the first convolution.
        norm: batch norm after each convolution; not for a critic whose gradients are penalised image by image.
    """

    def __init__(self, *, channels: int, side: int, latent: int, width: int = 32, norm: bool = True):
        super().__init__()
        layers: list[nn.Module] = []
        pairs = _widths(channels, side, width)
        for before, after in pairs:
            layers += [nn.Conv2d(before, after, 4, stride=2, padding=1, bias=not norm),
                       nn.BatchNorm2d(after) if norm else nn.Identity(), nn.LeakyReLU(0.2)]
        self.maps = nn.Sequential(*layers)
        self.code = nn.Linear(pairs[-1][1] * SMALLEST ** 2, checks.positive_int(latent, "latent"))

    def features(self, images: Tensor) -> Tensor:
        """What the linear layer sees, (B, 16 · last width)."""
        return self.maps(images.contiguous(memory_format=torch.channels_last)).flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        return self.code(self.features(images))                                         # (B, latent)


class LatentDecoder(nn.Module):
    """Codes (B, latent) to images (B, C, S, S) without a last nonlinearity: the mirror image of `LatentEncoder`."""

    def __init__(self, *, latent: int, channels: int, side: int, width: int = 32):
        super().__init__()
        pairs = _widths(channels, side, width)[::-1]
        self.first = nn.Linear(checks.positive_int(latent, "latent"), pairs[0][1] * SMALLEST ** 2)
        layers: list[nn.Module] = [nn.BatchNorm2d(pairs[0][1]), nn.LeakyReLU(0.2)]
        for before, after in pairs[:-1]:
            layers += [nn.ConvTranspose2d(after, before, 4, stride=2, padding=1, bias=False), nn.BatchNorm2d(before),
                       nn.LeakyReLU(0.2)]
        self.maps = nn.Sequential(*layers, nn.ConvTranspose2d(pairs[-1][1], channels, 4, stride=2, padding=1))

    def forward(self, codes: Tensor) -> Tensor:
        maps = self.first(codes).unflatten(1, (-1, SMALLEST, SMALLEST))                 # (B, last width, 4, 4)
        return self.maps(maps.contiguous(memory_format=torch.channels_last)).contiguous()


def _widths(channels: int, side: int, width: int) -> list[tuple[int, int]]:
    """Channels before and after each halving of the side, from the image to 4 × 4."""
    halvings = (checks.positive_int(side, "side") // SMALLEST).bit_length() - 1
    if halvings < 1 or SMALLEST * 2 ** halvings != side:
        raise ValueError(f"the side must be 8, 16, 32, 64, ... pixels to be halved down to {SMALLEST}, got {side}: "
                         "resize, or learn from squares of such a side with patch=")
    after = [min(checks.positive_int(width, "width") * 2 ** i, 4 * width) for i in range(halvings)]
    return list(zip([checks.positive_int(channels, "channels"), *after], after, strict=False))


class ConvAutoEncoder(nn.Module):
    """Stride-2 convolutions down to a spatial code and up again; `code` gives (B, width, H / 2^L, W / 2^L)."""

    def __init__(self, *, channels: int, widths=(16, 32, 64, 16)):
        super().__init__()
        sides = list(zip((channels, *widths[:-1]), widths, strict=True))
        down: list[nn.Module] = []
        for before, after in sides:
            down += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
        up: list[nn.Module] = []
        for after, before in reversed(sides):
            up += [nn.Upsample(scale_factor=2), nn.Conv2d(before, after, 3, padding=1),
                   nn.BatchNorm2d(after), nn.ReLU()]
        self.code = nn.Sequential(*down)
        self.decode = nn.Sequential(*up[:-2], nn.Sigmoid())                     # the output lies in [0, 1]

    def forward(self, images: Tensor) -> Tensor:
        factor = 2 ** (len(self.code) // 3)
        if images.shape[-2] % factor or images.shape[-1] % factor:
            raise ValueError(f"images must have sides divisible by {factor}, got {tuple(images.shape[-2:])}: resize")
        return self.decode(self.code(images))                                   # (B, C, H, W)
