"""The small networks that the methods share."""

from __future__ import annotations

from torch import Tensor, nn

from adlearn import checks


class Encoder(nn.Sequential):
    """Images (B, C, H, W) to features (B, dim): stride-2 convolutions with batch norm, then the mean over positions.

    Args:
        channels: of the images.
        widths: of the convolutions; each halves the resolution.
        dim: of the features; None leaves the last width as it is.
    """

    def __init__(self, *, channels: int, widths=(16, 32, 64), dim: int | None = None):
        for name, value in (("channels", channels), ("dim", widths[-1] if dim is None else dim)):
            checks.positive_int(value, name)
        layers: list[nn.Module] = []
        for before, after in zip((channels, *widths[:-1]), widths, strict=True):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]                       # (B, widths[-1])
        if dim is not None:
            layers.append(nn.Linear(widths[-1], dim))                           # (B, dim)
        super().__init__(*layers)
        self.dim = dim or widths[-1]


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
