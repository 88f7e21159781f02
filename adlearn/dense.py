"""Dense features: a network that turns a patch into a vector, applied around every pixel at the cost of one pass.

A convolution needs no change: on a larger image it slides by itself. A layer with a stride does, since it would skip
the patches that begin between its steps. It is run at every pixel instead, and all later layers look for their inputs
where the patch would have put them, farther apart by the factor of the stride ("dilated"):

    patch:  pool 2, stride 2 → conv 5                 image:  pool 2, stride 1 → conv 5, dilation 2 → …

Nothing is approximated: a patch's own numbers are all there, on the grid that begins at its corner.

Bailer, Habtegebrial, Varanasi and Stricker, "Fast Feature Extraction with CNNs with Pooling Layers", 2017, do the same
by pooling all shifted copies of the image and interleaving what comes out; Bergmann et al., "Uninformed Students",
2020, use it for their teachers.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adlearn import checks

POINTWISE = (
    nn.Identity, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish,
    nn.Sigmoid, nn.LogSigmoid, nn.Tanh, nn.Hardtanh, nn.Hardsigmoid, nn.Hardswish, nn.Softplus, nn.Softsign)
QUIET = (nn.BatchNorm2d, nn.Dropout, nn.Dropout2d)                          # pointwise in evaluation mode only


def dense_features(net: nn.Module, images: Tensor, patch_size: int) -> Tensor:
    """`net` of the patch around every pixel, (B, D, H, W).

    At pixel (r, c) that is of rows r − p//2 to r − p//2 + p − 1, and the same columns, with p = `patch_size`, of the
    image with its border reflected.

    Differentiable in the weights and the images. Without gradients it takes image after image, so that its memory is
    that of one.

    Args:
        net: an `nn.Sequential`, also of others, of convolutions and poolings without padding and of pointwise layers,
            that turns (B, C, p, p) into (B, D, 1, 1).
        images: (B, C, H, W), on the network's device.

    Raises:
        ValueError: a layer that cannot be had at every pixel exactly, by name and reason; a patch that does not become
            one vector; images no larger than the border that is to be reflected.
    """
    p = checks.positive_int(patch_size, "patch_size")
    layers = list(_layers(net))
    field = _field(layers, p)
    before, after = p // 2, max(field - 1 - p // 2, 0)              # rows that no output depends on are not made
    if not isinstance(images, Tensor) or images.ndim != 4 or min(images.shape[2:]) <= max(before, after):
        raise ValueError(f"images must be (B, C, H, W) with more than {max(before, after)} pixels a side, whose border "
                         f"can be reflected for patches of {p}, got {tuple(getattr(images, 'shape', ()))}")
    parts = [images] if torch.is_grad_enabled() else images.split(1)
    padded = (F.pad(part, (before, after, before, after), mode="reflect") for part in parts)
    found = [_everywhere(layers, part)[:, :, :images.shape[2], :images.shape[3]] for part in padded]
    return found[0] if len(found) == 1 else torch.cat(found)


def _everywhere(layers: list[tuple[str, nn.Module]], x: Tensor) -> Tensor:
    x, spread, own = x.contiguous(memory_format=torch.channels_last), (1, 1), False
    for _, layer in layers:
        if not hasattr(layer, "kernel_size"):
            if own and not torch.is_grad_enabled() and hasattr(layer, "inplace"):
                layer = copy.copy(layer)
                layer.inplace = True                        # saves a twentieth of the time: new memory is slow
            x = layer(x)
            continue
        size, stride, dilation = _geometry(layer)
        apart = tuple(d * s for d, s in zip(dilation, spread, strict=True))
        if isinstance(layer, nn.Conv2d):
            x = F.conv2d(x, layer.weight, layer.bias, dilation=apart, groups=layer.groups)
        elif isinstance(layer, nn.MaxPool2d):
            x = F.max_pool2d(x, size, 1, dilation=apart)
        else:
            share = x.new_full((x.shape[1], 1, *size), 1 / (layer.divisor_override or size[0] * size[1]))
            x = F.conv2d(x, share, dilation=apart, groups=x.shape[1])
        spread, own = tuple(a * b for a, b in zip(spread, stride, strict=True)), True
    return x


def _layers(net: nn.Module, name: str = "net") -> Iterator[tuple[str, nn.Module]]:
    """All layers of nested sequences, in order, each with its name; refuses those that are not exact everywhere."""
    kinds = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d, *POINTWISE, *QUIET)
    if net._forward_hooks or net._forward_pre_hooks:
        raise ValueError(f"{name}, a {type(net).__name__}, has hooks, which would see an image in place of a patch: "
                         "remove them")
    if type(net).forward is nn.Sequential.forward:
        for key, layer in net._modules.items():                 # named_children leaves out a layer that comes again
            yield from _layers(layer, f"{name}.{key}")
        return
    if type(net).forward not in {kind.forward for kind in kinds}:
        raise ValueError(f"{name} is a {type(net).__name__}, of which it is not known whether it is the same at every "
                         "pixel: use convolutions, poolings and pointwise layers in an nn.Sequential")
    if isinstance(net, nn.Conv2d) and type(net)._conv_forward is not nn.Conv2d._conv_forward:
        raise ValueError(f"{name}, a {type(net).__name__}, multiplies in a way of its own: use nn.Conv2d")
    if isinstance(net, QUIET) and net.training:
        raise ValueError(f"{name}, a {type(net).__name__}, is in training mode, where a patch's vector depends on the "
                         "others: call net.eval()")
    if getattr(net, "running_mean", 0) is None:
        raise ValueError(f"{name}, a {type(net).__name__}, takes its statistics from the image, where a patch has "
                         "its own: set track_running_stats=True")
    if getattr(net, "padding", 0) not in (0, (0, 0), "valid"):
        raise ValueError(f"{name}, a {type(net).__name__}, pads the patch, and around a pixel of an image there is no "
                         f"padding: set padding=0, got {net.padding!r}")
    if getattr(net, "ceil_mode", False):
        raise ValueError(f"{name}, a {type(net).__name__}, lets windows reach over the patch's edge: "
                         "set ceil_mode=False")
    if getattr(net, "return_indices", False):
        raise ValueError(f"{name}, a MaxPool2d, returns indices as well: set return_indices=False")
    yield name, net


def _geometry(layer: nn.Module) -> tuple[tuple[int, int], ...]:
    """Size, stride and dilation of a window, each down and across."""
    values = layer.kernel_size, layer.stride, getattr(layer, "dilation", 1)
    return tuple(value if isinstance(value, tuple) else (value, value) for value in values)


def _field(layers: list[tuple[str, nn.Module]], patch_size: int) -> int:
    """Pixels a side that the vector of a patch depends on; what poolings leave over at the patch's edge is not."""
    side, fields = [patch_size] * 2, []
    for axis in range(2):
        field, spread = 1, 1
        for name, layer in layers:
            if not hasattr(layer, "kernel_size"):
                continue
            size, stride, dilation = (value[axis] for value in _geometry(layer))
            reach = dilation * (size - 1)
            if side[axis] <= reach:
                raise ValueError(f"patch_size must be larger than {patch_size}: {name} looks at {reach + 1} pixels and "
                                 f"is given {side[axis]}")
            side[axis], field, spread = (side[axis] - reach - 1) // stride + 1, field + reach * spread, spread * stride
        fields.append(field)
    if side != [1, 1]:
        raise ValueError(f"net must turn a patch of {patch_size} × {patch_size} into one vector, and gives "
                         f"{side[0]} × {side[1]} of them: another patch_size, or larger kernels")
    return max(fields)
