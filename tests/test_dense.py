"""A patch network at every pixel: the same numbers as patch by patch, or a refusal."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from adlearn import dense, nets


def by_patch(net, images, p):
    """The definition: cut the patch around every pixel, and run the network on all of them."""
    padded = F.pad(images, (p // 2, p - 1 - p // 2) * 2, mode="reflect")
    patches = padded.unfold(2, p, 1).unfold(3, p, 1).permute(0, 2, 3, 1, 4, 5)          # (B, H, W, C, p, p)
    with torch.no_grad():
        found = net(patches.reshape(-1, images.shape[1], p, p))
    return found.view(len(images), *images.shape[2:], -1).permute(0, 3, 1, 2)


@pytest.mark.parametrize("p", nets.PATCH_LAYERS)
def test_the_published_networks_at_every_pixel(p):
    torch.manual_seed(0)
    net, images = nets.PatchNet(p, shrink=8), torch.rand(2, 3, 37, 40)
    wanted = by_patch(net, images, p)
    found = dense.dense_features(net, images, p)
    assert found.shape == (2, 16, 37, 40)
    assert (found - wanted).abs().max() < 1e-5 * wanted.std()
    with torch.no_grad():
        torch.testing.assert_close(dense.dense_features(net, images, p), found, rtol=0, atol=1e-6)    # one by one


@st.composite
def stacks(draw):
    """A random network with its patch size, built from its single output backwards."""
    layers, side, channels = [], 1, draw(st.integers(1, 3))
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(["convolution", "max", "average", "pointwise"]))
        size, stride, dilation = (draw(st.integers(1, 3)) for _ in range(3))
        before = draw(st.integers(1, 3))
        if kind == "pointwise":
            layers.append(draw(st.sampled_from([nn.ReLU(), nn.Tanh(), nn.PReLU(), nn.BatchNorm2d(channels).eval()])))
            continue
        if kind == "convolution":
            layers.append(nn.Conv2d(before, channels, size, stride, dilation=dilation))
            channels = before
        elif kind == "max":
            layers.append(nn.MaxPool2d(size, stride, dilation=dilation))
        else:
            dilation = 1
            layers.append(nn.AvgPool2d(size, stride))
        leftover = draw(st.integers(0, stride - 1))                 # at the patch's edge, that no window reaches
        side = (side - 1) * stride + dilation * (size - 1) + 1 + leftover
    return nn.Sequential(*reversed(layers)), side, channels


@given(stacks(), st.integers(0, 2**31))
@settings(deadline=None)
def test_any_stack_at_every_pixel(stack, seed):
    net, p, channels = stack
    torch.manual_seed(seed)
    for layer in net:
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_()
    images = torch.rand(1, channels, p + 3, p + 2)
    assert (dense.dense_features(net, images, p) - by_patch(net, images, p)).abs().max() < 1e-5


def test_gradients_are_those_of_the_patches():
    torch.manual_seed(0)
    net, images = nets.PatchNet(33, shrink=8).double(), torch.rand(1, 3, 33, 33, dtype=torch.float64)
    dense.dense_features(net, images, 33)[:, :, 16, 16].square().sum().backward()       # the one patch without a border
    trained = [weight for weight in net.parameters() if weight.requires_grad]
    found = [weight.grad.clone() for weight in trained]
    net.zero_grad()
    net(images).square().sum().backward()
    for a, weight in zip(found, trained, strict=True):
        assert torch.allclose(a, weight.grad)


class Doubled(nn.Conv2d):
    def _conv_forward(self, x, weight, bias):
        return 2 * super()._conv_forward(x, weight, bias)


def watched():
    net = nn.Sequential(nn.Conv2d(3, 2, 3))
    net[0].register_forward_hook(lambda *_: None)
    return net


def watched_outside():
    net = nn.Sequential(nn.Sequential(nn.Conv2d(3, 2, 3)))
    net[0].register_forward_pre_hook(lambda *_: None)
    return net


def test_layers_that_come_twice():
    torch.manual_seed(0)
    tanh, pool = nn.Tanh(), nn.MaxPool2d(2)
    net = nn.Sequential(nn.Conv2d(3, 4, 2), tanh, pool, nn.Conv2d(4, 4, 2), tanh, pool, nn.Conv2d(4, 2, 2), tanh)
    images = torch.rand(1, 3, 14, 13)
    assert (dense.dense_features(net, images, 11) - by_patch(net, images, 11)).abs().max() < 1e-6


def test_groups_oblong_kernels_and_divisors():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(4, 6, (2, 3), stride=(1, 2), groups=2), nn.Sequential(
        nn.AvgPool2d((2, 1), stride=1, divisor_override=3), nn.ReLU()), nn.Conv2d(6, 2, (3, 2)))
    images = torch.rand(1, 4, 12, 12)
    assert (dense.dense_features(net, images, 5) - by_patch(net, images, 5)).abs().max() < 1e-6


@pytest.mark.parametrize("p", nets.PATCH_LAYERS)
def test_the_published_widths_at_some_pixels(p):
    torch.manual_seed(0)
    net, images = nets.PatchNet(p).double(), torch.rand(1, 3, 40, 48, dtype=torch.float64)
    padded = F.pad(images, (p // 2, p - 1 - p // 2) * 2, mode="reflect")
    with torch.no_grad():
        found = dense.dense_features(net, images, p)[0]
        for r, c in ((0, 0), (0, 47), (39, 0), (39, 47), (11, 30), (20, 5), (21, 6)):
            wanted = net(padded[:, :, r:r + p, c:c + p])[0, :, 0, 0]
            assert (found[:, r, c] - wanted).abs().max() < 1e-12                        # in single precision rounding


@pytest.mark.parametrize(("net", "p", "message"), [
    (watched_outside(), 3, "net.0, a Sequential, has hooks"),
    (nn.Sequential(Doubled(3, 2, 3)), 3, "net.0, a Doubled, multiplies in a way of its own"),
    (watched(), 3, "net.0, a Conv2d, has hooks"),
    (nn.Sequential(nn.Conv2d(3, 2, 3, padding=1)), 3, "net.0, a Conv2d, pads the patch"),
    (nn.Sequential(nn.Conv2d(3, 2, 3, padding="same")), 3, "net.0, a Conv2d, pads the patch"),
    (nn.Sequential(nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2))), 3, "net.0.1, a BatchNorm2d, is in training"),
    (nn.BatchNorm2d(3, track_running_stats=False).eval(), 1, "takes its statistics from the image"),
    (nn.Sequential(nn.Conv2d(3, 2, 3), nn.Dropout()), 3, "net.1, a Dropout, is in training mode"),
    (nn.Sequential(nn.MaxPool2d(2, ceil_mode=True)), 2, "net.0, a MaxPool2d, lets windows reach"),
    (nn.Sequential(nn.MaxPool2d(2, return_indices=True)), 2, "returns indices"),
    (nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1)), 5, "net.1 is a AdaptiveAvgPool2d"),
    (nn.Sequential(nn.Conv2d(3, 2, 3), nn.Upsample(scale_factor=2)), 3, "net.1 is a Upsample"),
    (nets.Encoder(channels=3), 32, "net is a Encoder"),
    (nets.PatchNet(33), 41, "into one vector, and gives 3 × 3"),
    (nets.PatchNet(33), 20, "patch_size must be larger than 20: net.9 looks at 4 pixels"),
], ids=lambda value: value if isinstance(value, str) else "")
def test_what_is_not_exact_is_refused(net, p, message):
    with pytest.raises(ValueError, match=message):
        dense.dense_features(net, torch.rand(1, 3, 64, 64), p)


def test_an_image_must_be_larger_than_the_border():
    net = nets.PatchNet(33, shrink=8)
    assert dense.dense_features(net, torch.rand(1, 3, 17, 17), 33).shape == (1, 16, 17, 17)
    with pytest.raises(ValueError, match=r"images must be .* more than 16 pixels a side"):
        dense.dense_features(net, torch.rand(1, 3, 16, 40), 33)


def test_neither_images_nor_layers_are_changed():
    net = torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU())
    images = torch.randn(1, 3, 9, 9)
    before = images.clone()
    with torch.no_grad():
        dense.dense_features(net, images, 3)
    assert torch.equal(images, before)
    assert not net[2].inplace


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_as_on_the_cpu():
    torch.manual_seed(0)
    net, images = nets.PatchNet(33, shrink=8), torch.rand(3, 3, 40, 48)
    with torch.no_grad():
        wanted = dense.dense_features(net, images, 33)
        found = dense.dense_features(net.cuda(), images.cuda(), 33)
    assert found.is_cuda
    torch.testing.assert_close(found.cpu(), wanted, rtol=1e-2, atol=1e-2)               # TF32 may be on
