"""Augmentation: each function against torchvision image by image, each transform against what it says it draws."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as peer

from adlearn import augment, speed
from adlearn.augment import (
    ColorJitter,
    Compose,
    Cutout,
    CutPermute,
    GaussianNoise,
    RandomGaussianBlur,
    RandomGrey,
    RandomHorizontalFlip,
    RandomResizedCrop,
    RandomRotation,
    Sobel,
)

ALL = {**augment.simclr_figure(), "flip": RandomHorizontalFlip(), "cut-permute": CutPermute(),
       "any rotation": RandomRotation(), "recipe": augment.simclr(), "recipe with blur": augment.simclr(blur=True)}
DRAWN = {name: transform for name, transform in ALL.items() if name not in ("original", "colour drop", "Sobel")}


def pictures(number=12, channels=3, height=20, width=None, dtype=torch.float32):
    """Noise, with what colour arithmetic stumbles over: black, white, grey and saturated pixels, and ties."""
    images = torch.rand(number, channels, height, width or height, dtype=dtype)
    images[:, :, :3] = torch.randint(0, 3, images[:, :, :3].shape).to(dtype) / 2
    images[:, :, 3] = images[:, :1, 3]
    return images


def each(function, images, *parameters):
    """The slow, obvious way: one image at a time."""
    columns = [column.tolist() for column in parameters]
    return torch.stack([function(image, *values) for image, *values in zip(images, *columns, strict=True)])


def seeded(number=0):
    return torch.Generator().manual_seed(number)


# Functions against torchvision ---------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(sides=st.tuples(st.integers(1, 24), st.integers(1, 24)), out=st.tuples(st.integers(1, 30), st.integers(1, 30)),
       seed=st.integers(0, 1000))
def test_crop_equals_torchvision(sides, out, seed):
    torch.manual_seed(seed)
    images, limits = torch.rand(6, 3, *sides), torch.tensor(sides)
    extent = (torch.rand(6, 2) * limits).long() + 1
    corner = (torch.rand(6, 2) * (limits - extent + 1)).long()
    boxes = torch.cat([corner, extent], dim=1)

    def crop(image, top, left, height, width):
        return peer.resized_crop(image, top, left, height, width, list(out), antialias=False)

    found = augment.resized_crop(images, boxes, out)
    torch.testing.assert_close(found, each(crop, images, *boxes.unbind(1)), rtol=0, atol=1e-5)
    mirrored = torch.rand(6) < 0.5
    assert torch.equal(augment.resized_crop(images, boxes, out, mirrored), augment.flip(found, mirrored))


def test_crop_to_the_same_size_needs_no_antialiasing_and_sees_nothing_outside():
    images = pictures(64, height=32)
    boxes = RandomResizedCrop().boxes(64, 32, 32)

    def crop(image, top, left, height, width):
        return peer.resized_crop(image, top, left, height, width, [32, 32], antialias=True)

    found = augment.resized_crop(images, boxes)
    torch.testing.assert_close(found, each(crop, images, *boxes.unbind(1)), rtol=0, atol=1e-5)
    rows, columns = torch.arange(32)[:, None], torch.arange(32)
    for image, (top, left, height, width) in zip(images, boxes.tolist(), strict=True):
        image[:, (rows < top) | (rows >= top + height) | (columns < left) | (columns >= left + width)] = torch.nan
    for outside in (0.0, 1.0):
        torch.testing.assert_close(augment.resized_crop(images.nan_to_num(outside), boxes), found, rtol=0, atol=1e-5)
    whole = torch.tensor([[0, 0, 32, 32]]).expand(64, 4)
    torch.testing.assert_close(augment.resized_crop(found, whole), found, rtol=0, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue"])
def test_colour_adjustments_equal_torchvision(name, channels):
    images = pictures(40, channels)
    factor = torch.linspace(-0.5, 0.5, 40) if name == "hue" else torch.linspace(0, 3, 40)
    ours, theirs = getattr(augment, f"adjust_{name}"), getattr(peer, f"adjust_{name}")
    expected = each(theirs, images, factor)
    torch.testing.assert_close(ours(images, factor), expected, rtol=0, atol=5e-6)
    torch.testing.assert_close(ours(images.double(), factor).float(), expected, rtol=0, atol=5e-6)
    assert torch.equal(ours(images, 0.3), ours(images, torch.full((40,), 0.3)))
    if channels == 3:
        assert (ours(images, factor) - images).abs().max() > 0.5
        identity = ours(images, 0.0 if name == "hue" else 1.0)
        torch.testing.assert_close(identity, images, rtol=0, atol=1e-6)


def test_colour_adjustments_equal_kornia_where_it_defines_them_alike():
    """Its brightness is the product too; its ColorJitter uses these contrast and saturation, and radians of hue.

    Its luminance has 0.299 for red instead of 0.2989, a difference of at most 1e-4 times the factor.
    """
    from kornia import enhance

    images, factor = pictures(40), torch.linspace(0, 2, 40)
    turn = torch.linspace(-0.5, 0.5, 40)
    for ours, theirs, tolerance in (
        (augment.adjust_brightness, enhance.adjust_brightness_accumulative, 1e-6),
        (augment.adjust_contrast, enhance.adjust_contrast_with_mean_subtraction, 2e-4),
        (augment.adjust_saturation, enhance.adjust_saturation_with_gray_subtraction, 2e-4),
    ):
        torch.testing.assert_close(ours(images, factor), theirs(images, factor), rtol=0, atol=tolerance)
    turned = enhance.adjust_hue(images, turn * 2 * torch.pi)
    torch.testing.assert_close(augment.adjust_hue(images, turn), turned, rtol=0, atol=5e-6)


def test_grey_and_flip_and_rotation_equal_torchvision():
    images = pictures(8)
    torch.testing.assert_close(augment.grey(images), peer.rgb_to_grayscale(images, 3), rtol=0, atol=1e-6)
    assert torch.equal(augment.grey(images[:, :1]), images[:, :1])
    chosen = torch.arange(8) % 3 == 0
    assert torch.equal(augment.flip(images, chosen)[chosen], peer.horizontal_flip(images[chosen]))
    assert torch.equal(augment.flip(images, chosen)[~chosen], images[~chosen])
    turns = torch.tensor([0, 1, 2, 3, 4, -1, 6, 1])
    turned = each(lambda image, turn: peer.rotate(image, 90 * turn), images, turns)
    assert torch.equal(augment.rotate(images, turns), turned)


@pytest.mark.parametrize(("kernel_size", "shape"), [(1, (5, 5)), (3, (20, 31)), (7, (9, 4)), (23, (40, 40))])
def test_blur_equals_torchvision(kernel_size, shape):
    images, sigma = pictures(10, 3, *shape), torch.linspace(0.1, 4, 10)
    expected = each(lambda image, s: peer.gaussian_blur(image, [kernel_size] * 2, [s, s]), images, sigma)
    torch.testing.assert_close(augment.gaussian_blur(images, sigma, kernel_size), expected, rtol=0, atol=2e-6)
    one = augment.gaussian_blur(images[:, :1], sigma, kernel_size)
    torch.testing.assert_close(one, expected[:, :1], rtol=0, atol=2e-6)


def test_blur_equals_kornia():
    from kornia.filters import gaussian_blur2d

    images, sigma = pictures(10), torch.linspace(0.3, 2, 10)
    theirs = gaussian_blur2d(images, (5, 5), sigma[:, None].expand(10, 2))
    torch.testing.assert_close(augment.gaussian_blur(images, sigma, 5), theirs, rtol=0, atol=2e-6)


def test_sobel_equals_kornia_and_fills_the_unit_range():
    """Kornia divides the kernels by 8 and adds an epsilon under the root, which we leave out."""
    from kornia.filters import sobel

    images = pictures(6)
    theirs = sobel(images, normalized=False, eps=0.0) / 20**0.5
    torch.testing.assert_close(augment.sobel(images), theirs, rtol=0, atol=1e-6)
    corners = torch.tensor(list(itertools.product((0.0, 1.0), repeat=9))).view(-1, 1, 3, 3)
    assert augment.sobel(corners)[:, :, 1, 1].max() == pytest.approx(1, abs=1e-6)    # the greatest a pixel can have
    assert augment.sobel(torch.full((1, 3, 5, 5), 0.7)).max() == 0


def test_noise_and_cutout():
    images, noise = pictures(30, height=9, width=12), torch.randn(30, 3, 9, 12) / 4
    torch.testing.assert_close(augment.add_noise(images, noise), (images + noise).clamp(0, 1))
    centres = torch.stack([torch.randint(9, (30,)), torch.randint(12, (30,))], dim=1)
    for side in (1, 4, 5):
        expected = images.clone()
        for image, (row, column) in zip(expected, centres.tolist(), strict=True):
            top, left = row - side // 2, column - side // 2
            image[:, max(top, 0) : top + side, max(left, 0) : left + side] = 0.25
        assert torch.equal(augment.cutout(images, centres, side, fill=0.25), expected)


# The shifts of CSI and its kin ---------------------------------------------------------------------------------------


def test_rotations():
    images = pictures(5)
    turned = augment.rotations(images).view(4, 5, 3, 20, 20)
    assert torch.equal(turned[0], images)
    for turn in range(4):
        assert torch.equal(turned[turn], peer.rotate(images, 90 * turn))
        assert torch.equal(turned[turn], augment.rotate(images, torch.full((5,), turn)))
        assert torch.equal(augment.rotate(turned[turn], 4 - turn), images)
    for _ in range(4):
        images = augment.rotate(images, 1)
    assert torch.equal(images, turned[0])
    assert augment.rotate(torch.rand(1, 1, 4, 6), 1).shape == (1, 1, 6, 4)


def test_cut_permute():
    images = torch.tensor([[0.0, 0.1], [0.2, 0.3]]).repeat_interleave(3, 0).repeat_interleave(2, 1).expand(24, 3, 6, 4)
    every = torch.tensor(list(itertools.permutations(range(4))))
    moved = augment.cut_permute(images, every)
    assert torch.equal(moved[:, 0, ::3, ::2].flatten(1), every / 10)      # quarter permutation[k] stands in place k
    images = pictures(24, height=6, width=8)
    moved = augment.cut_permute(images, every)
    assert torch.equal(augment.cut_permute(moved, every.argsort(1)), images)
    assert torch.equal(augment.cut_permute(images, (2, 0, 3, 1))[5], augment.cut_permute(images[5:6], every[13:14])[0])
    shifted = augment.cut_permutations(images).view(4, 24, 3, 6, 8)
    for shift, (down, across) in zip(shifted, itertools.product((0, 3), (0, 4)), strict=True):
        assert torch.equal(shift, images.roll((down, across), (2, 3)))    # what CSI does: halves change places


# What is drawn -------------------------------------------------------------------------------------------------------


def test_boxes_are_drawn_like_torchvisions():
    ours = RandomResizedCrop().boxes(20_000, 32, 48, seeded()).double()
    transform = v2.RandomResizedCrop(32)
    parameters = [transform.make_params([torch.empty(3, 32, 48)]) for _ in range(6000)]
    theirs = torch.tensor([[p["top"], p["left"], p["height"], p["width"]] for p in parameters], dtype=torch.float64)
    levels = torch.linspace(0.02, 0.98, 13, dtype=torch.float64)
    for measure in (lambda b: b[:, 2] * b[:, 3] / (32 * 48), lambda b: (b[:, 3] / b[:, 2]).log(),
                    lambda b: b[:, 0] / 32, lambda b: b[:, 1] / 48):
        difference = measure(ours).quantile(levels) - measure(theirs).quantile(levels)
        assert difference.abs().max() < 0.035                                # one of 32 rows, if rounding says so
    area, ratio = ours[:, 2] * ours[:, 3] / (32 * 48), ours[:, 3] / ours[:, 2]
    assert 0.07 < area.min() < 0.1
    assert 0.88 < area.max() <= 32 * 43 / (32 * 48)                       # 4/3 is the widest
    assert 0.6 < ratio.min() < 0.77 < 1.29 < ratio.max() < 1.6            # 3/4 to 4/3, blurred by whole pixels
    assert ours[:, 0].min() == ours[:, 1].min() == 0
    assert (ours[:, 0] + ours[:, 2]).max() == 32
    assert (ours[:, 1] + ours[:, 3]).max() == 48


@pytest.mark.parametrize(("shape", "expected"), [((10, 100), [0, 43, 10, 13]), ((100, 10), [43, 0, 13, 10])])
def test_a_crop_that_never_fits_is_central(shape, expected):
    boxes = RandomResizedCrop(scale=(1, 1)).boxes(50, *shape)
    assert boxes.tolist() == [expected] * 50
    theirs = v2.RandomResizedCrop(8, scale=(1, 1)).make_params([torch.empty(3, *shape)])
    assert [theirs[key] for key in ("top", "left", "height", "width")] == expected
    assert RandomResizedCrop(scale=(1, 1), ratio=(1, 1)).boxes(3, 7, 7).tolist() == [[0, 0, 7, 7]] * 3


@pytest.mark.parametrize("p", [0.0, 0.2, 0.5, 1.0])
def test_probabilities(p):
    images = pictures(1, height=4).expand(4000, 3, 4, 4)
    for transform in (RandomHorizontalFlip(p), RandomGrey(p), RandomGaussianBlur((1, 2), p),
                      ColorJitter(0.5, hue=0.2, p=p), RandomResizedCrop(scale=(1, 1), ratio=(1, 1), mirror=p)):
        changed = (transform(images, seeded()) - images).flatten(1).abs().amax(1) > 1e-5
        assert changed.float().mean() == pytest.approx(p, abs=0.03 if 0 < p < 1 else 0.001)


def test_every_image_has_its_own_draw():
    images = pictures(1, height=32).expand(200, 3, 32, 32)
    for name in DRAWN:
        different = len(ALL[name](images).flatten(1).unique(dim=0))
        few = {"rotate": 3, "any rotation": 4, "cut-permute": 4, "flip": 2}
        assert different == few[name] if name in few else different > 90, name


def test_strengths_of_the_jitter():
    images = torch.full((4000, 1, 1, 1), 0.25)
    for strength, low, high in ((0.4, 0.6, 1.4), (2.0, 0.0, 3.0)):
        factor = ColorJitter(brightness=strength)(images, seeded()).flatten() / 0.25
        levels = torch.linspace(0, 1, 11)
        expected = low + (high - low) * levels
        torch.testing.assert_close(factor.quantile(levels), expected, rtol=0, atol=0.1)
        assert factor.min() >= low
        assert factor.max() <= high + 1e-6
    red = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1).expand(4000, 3, 1, 1)
    turned = ColorJitter(hue=0.1)(red, seeded())                          # green for one direction, blue for the other
    shift = (turned[:, 1] - turned[:, 2]).flatten() / 6
    torch.testing.assert_close(shift.quantile(levels), 0.2 * levels - 0.1, rtol=0, atol=0.01)
    sigma = augment._uniform(seeded(), 4000, span=(0.1, 2.0))
    dot = torch.zeros(4000, 1, 40, 40)
    dot[:, :, 20, 20] = 1
    peak = RandomGaussianBlur(p=1)(dot, seeded(7)).flatten(1).amax(1)
    expected = augment.gaussian_blur(dot, sigma, 5).flatten(1).amax(1)
    torch.testing.assert_close(peak.quantile(levels), expected.quantile(levels), rtol=0, atol=0.05)


def test_the_order_of_the_jitter_is_uniform_over_all_24(monkeypatch):
    """Each adjustment is replaced by x ↦ x / 8 + digit, so that the result spells the order of its four."""
    monkeypatch.setattr(augment, "_blend", lambda images, factor, mean, own: images / 8 + mean + 2 * own)
    monkeypatch.setattr(augment, "_turn_hue", lambda images, factor: images / 8 + 3)
    code = ColorJitter(0.1, 0.1, 0.1, 0.1)(torch.zeros(12_000, 1, 1, 1), seeded()).flatten()
    counts = code.unique(return_counts=True)[1]
    orders = itertools.permutations(range(4))
    spelled = [sum(digit * 8.0 ** (place - 3) for place, digit in enumerate(order)) for order in orders]
    assert torch.equal(code.unique(), torch.tensor(sorted(spelled)))
    assert ((counts - 500) ** 2 / 500).sum() < 50                         # chi-squared with 23 degrees: p about 0.001
    code = ColorJitter(0.1, hue=0.1, p=0.5)(torch.zeros(4000, 1, 1, 1), seeded()).flatten()
    assert 0 < (code == 0).sum() < 4000                                                                 # none, or all
    assert set(code.unique().tolist()) == {0.0, *spelled}


def test_strengths_of_0_change_nothing():
    images = pictures(60)
    assert torch.equal(ColorJitter()(images, seeded()), images)
    grey = images[:, :1].expand(-1, 3, -1, -1)              # no hue, and its own grey: the weights' sum is 0.9999
    assert not torch.equal(ColorJitter(brightness=0.4)(grey, seeded()), grey)
    torch.testing.assert_close(ColorJitter(saturation=0.4, hue=0.1)(grey, seeded()), grey, rtol=0, atol=1e-4)


def test_the_jitter_is_that_of_torchvision_for_the_same_draws():
    images, transform = pictures(60), ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8)
    generator = seeded(3)
    chosen = torch.rand(60, generator=generator) < 0.8
    order = torch.rand(60, 4, generator=generator).argsort(1)
    draws = 2 * torch.rand(60, 4, generator=generator) - 1
    names = ("brightness", "contrast", "saturation", "hue")
    expected = images.clone()
    for i in chosen.nonzero().flatten().tolist():
        for number in order[i].tolist():
            factor = 0.1 * draws[i, 3] if number == 3 else 1 + 0.4 * draws[i, number]
            expected[i] = getattr(peer, f"adjust_{names[number]}")(expected[i], factor.item())
    torch.testing.assert_close(transform(images, seeded(3)), expected, rtol=0, atol=1e-5)


def test_cutout_noise_and_rotation_draw_what_they_say():
    images = torch.zeros(3000, 1, 20, 30)
    centres = Cutout(side=0.25, fill=1)(images, seeded())[:, 0].mean(0)   # 5 of 20 pixels; fewer squares near borders
    torch.testing.assert_close(centres[8:12, 8:22], torch.full((4, 14), 25 / 600), rtol=0.4, atol=0)
    assert centres[0, 0] < 0.6 * 25 / 600
    noise = GaussianNoise(0.05)(images + 0.5, seeded()) - 0.5
    assert noise.mean() == pytest.approx(0, abs=1e-3)
    assert noise.std() == pytest.approx(0.05, rel=0.01)
    corner = torch.zeros(3000, 1, 2, 2)
    corner[:, :, 0, 0] = 1
    counts = RandomRotation((1, 3))(corner, seeded()).sum(0).flatten()
    torch.testing.assert_close(counts, torch.tensor([0.0, 1500.0, 1500.0, 0.0]), rtol=0, atol=120)
    counts = CutPermute()(corner, seeded()).sum(0).flatten()
    torch.testing.assert_close(counts, torch.full((4,), 750.0), rtol=0, atol=100)


def test_the_recipe_is_that_of_the_paper():
    crop, jitter, grey, blur = augment.simclr(strength=1, blur=True).transforms
    assert crop == RandomResizedCrop(scale=(0.08, 1), ratio=(3 / 4, 4 / 3), mirror=0.5)
    assert jitter == ColorJitter(0.8, 0.8, 0.8, 0.2, p=0.8)
    assert (grey, blur) == (RandomGrey(0.2), RandomGaussianBlur((0.1, 2.0), p=0.5))
    assert augment.simclr().transforms == (crop, ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8), grey)
    for side, kernel_size in ((8, 3), (32, 3), (64, 7), (128, 13), (224, 23)):         # 10 %, made odd
        images = pictures(2, height=side)
        found = RandomGaussianBlur((1, 1), p=1)(images)
        assert torch.equal(found, augment.gaussian_blur(images, 1.0, kernel_size))
    assert list(augment.simclr_figure()) == ["original", "crop and resize", "crop, resize and flip", "colour drop",
                                             "colour jitter", "rotate", "cutout", "Gaussian noise", "Gaussian blur",
                                             "Sobel"]


# Promises of every transform -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("channels", [1, 3])
def test_contract(name, channels):
    images, transform = pictures(16, channels, 24), ALL[name]
    before = images.clone()
    first = transform(images, seeded(1))
    assert torch.equal(images, before)
    assert (first.shape, first.dtype) == (images.shape, images.dtype)
    assert 0 <= first.min() <= first.max() <= 1
    assert torch.equal(transform(images, seeded(1)), first)
    torch.manual_seed(5)
    from_global = transform(images)
    torch.manual_seed(5)
    assert torch.equal(transform(images), from_global)
    if name in DRAWN:
        assert not torch.equal(transform(images, seeded(2)), first)
    assert torch.equal(transform(images.to(memory_format=torch.channels_last), seeded(1)), first)
    double = transform(images.double(), seeded(1))
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), first, rtol=0, atol=1e-5)
    with torch.inference_mode():
        assert torch.equal(transform(images, seeded(1)), first)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_rounding_never_leaves_the_unit_range(value):
    images = torch.full((20, 3, 24, 24), value)
    for transform in ALL.values():
        found = transform(images)
        assert 0 <= found.min() <= found.max() <= 1


def test_compose_checks_once_and_never_changes_its_input(monkeypatch):
    calls = []
    check = augment.checks.images
    monkeypatch.setattr(augment.checks, "images", lambda images: calls.append(1) or check(images))
    images = pictures()
    before = images.clone()
    for transform in (Compose(Compose(), RandomGrey(1)), Compose(RandomGrey(1), RandomHorizontalFlip(1)),
                      Compose(RandomResizedCrop(), Compose(ColorJitter(0.5))), Compose()):
        calls.clear()
        result = transform(images)
        assert len(calls) == 1
        result.zero_()
        assert torch.equal(images, before)
    generator = seeded()
    expected = GaussianNoise()(RandomRotation()(images, generator), generator)
    assert torch.equal(Compose(RandomRotation(), GaussianNoise())(images, seeded()), expected)
    assert repr(Compose(RandomGrey(), Sobel())) == "Compose(RandomGrey(p=0.2), Sobel())"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", ALL)
def test_a_gpu_gives_the_same(name):
    images = pictures(16, height=24)
    expected = ALL[name](images, seeded(1))
    found = ALL[name](images.cuda(), seeded(1))
    assert found.is_cuda
    torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=1e-5)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        torch.testing.assert_close(ALL[name](images.cuda(), seeded(1)), found, rtol=0, atol=1e-5)
    own = torch.Generator("cuda").manual_seed(0)
    assert ALL[name](images.cuda(), own).is_cuda


@pytest.mark.parametrize("peer_name", ["torchvision", "kornia"])
def test_the_recipe_is_distributed_as_its_peers(peer_name, monkeypatch):
    """The speed comparison stops when the results differ in distribution; with another recipe they do."""
    speed.augment_ratio(peer=peer_name, blur=True, repeats=1)
    if peer_name == "kornia":                                             # once is enough
        recipe = augment.simclr(strength=1, blur=True)
        monkeypatch.setattr(augment, "simclr", lambda blur: recipe)
        with pytest.raises(RuntimeError, match="disagree"):
            speed.augment_ratio(peer=peer_name, repeats=1)
    with pytest.raises(ValueError, match="peer must be one of"):
        speed.augment_ratio(peer="pillow")


# Gradients -----------------------------------------------------------------------------------------------------------


def test_gradients_are_those_of_the_values():
    images = (0.2 + 0.6 * torch.rand(2, 3, 4, 3, dtype=torch.float64)).requires_grad_()
    factor = torch.tensor([0.7, 1.1], dtype=torch.float64, requires_grad=True)
    boxes = torch.tensor([[0, 1, 3, 2], [2, 0, 2, 3]])
    assert gradcheck(lambda x: augment.resized_crop(x, boxes, (3, 4)), images)
    assert gradcheck(lambda x, s: augment.gaussian_blur(x, s, 3), (images, factor))
    for adjust in (augment.adjust_brightness, augment.adjust_contrast, augment.adjust_saturation):
        assert gradcheck(adjust, (images, factor))
    assert gradcheck(lambda x, f: augment.adjust_hue(x, f / 10), (images, factor))
    assert gradcheck(augment.sobel, images)


@pytest.mark.parametrize("name", ALL)
def test_gradients_are_finite_also_on_grey_black_and_white(name):
    images = pictures(12)
    images[3:5], images[5], images[6] = 0.5, 0, 1
    images.requires_grad_()
    ALL[name](images, seeded()).sum().backward()
    assert images.grad.isfinite().all()
    assert images.grad.abs().max() > 0 or name == "Sobel"
    hue = pictures(12).requires_grad_()
    augment.adjust_hue(hue, torch.linspace(-0.5, 0.5, 12)).square().sum().backward()
    assert hue.grad.isfinite().all()
    assert hue.grad.abs().max() < 1e3


# Refusals ------------------------------------------------------------------------------------------------------------


X = torch.rand(2, 3, 6, 6)
BOX = torch.tensor([[0, 0, 3, 3], [1, 2, 4, 4]])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: augment.resized_crop(X, BOX + 2), "boxes must lie inside the 6×6 images.*clip"),
        (lambda: augment.resized_crop(X, BOX - 1), "boxes must lie inside"),
        (lambda: augment.resized_crop(X, BOX * torch.tensor([1, 1, 0, 1])), "boxes must lie inside"),
        (lambda: augment.resized_crop(X, BOX.float()), "boxes must be whole numbers"),
        (lambda: augment.resized_crop(X, BOX[:1]), r"boxes must be whole numbers of shape \(2, 4\)"),
        (lambda: augment.resized_crop(X, BOX, 0), "size must be a whole number"),
        (lambda: augment.resized_crop(X, BOX, (3, 3, 3)), "size must be one number of pixels or two"),
        (lambda: augment.resized_crop(X, BOX, 3, torch.zeros(2)), "mirrored must be bool"),
        (lambda: augment.flip(X, torch.ones(3, dtype=torch.bool)), "chosen must be bool of shape"),
        (lambda: augment.flip(X, torch.ones(2)), "chosen must be bool"),
        (lambda: augment.adjust_brightness(X, -0.1), "factor must lie from 0"),
        (lambda: augment.adjust_contrast(X, torch.tensor([1.0, torch.nan])), "factor must lie from 0.*nan"),
        (lambda: augment.adjust_saturation(X, torch.inf), "factor must lie from 0"),
        (lambda: augment.adjust_hue(X, torch.tensor([0.0, 0.6])), "factor must lie from -0.5 to 0.5.*0.6"),
        (lambda: augment.adjust_hue(X, torch.zeros(3)), r"factor must be one number or have shape \(2,\)"),
        (lambda: augment.adjust_hue(X, "red"), "factor must be a tensor"),
        (lambda: augment.adjust_brightness(X[0], 1.0), "images must be floating point of shape"),
        (lambda: augment.adjust_hue((255 * X).byte(), 0.0), "images must be floating point.*divide bytes by 255"),
        (lambda: augment.sobel(X[:, :2]), "images must be floating point.*C of 1 or 3"),
        (lambda: augment.gaussian_blur(X, 1.0, 4), "kernel_size must be odd"),
        (lambda: augment.gaussian_blur(X, 1.0, 13), "kernel_size must be odd and reach less far"),
        (lambda: augment.gaussian_blur(X, 0.0, 3), "sigma must lie from 0.01"),
        (lambda: augment.add_noise(X, X[:1]), "noise must have the images' shape"),
        (lambda: augment.cutout(X, torch.tensor([[0, 6], [0, 0]]), 2), "centres must lie inside"),
        (lambda: augment.cutout(X, torch.tensor([[0, 0], [-1, 0]]), 2), "centres must lie inside"),
        (lambda: augment.cutout(X, BOX[:, :2], 0), "side must be a whole number"),
        (lambda: augment.cutout(X, BOX[:, :2], 2, fill=2), "fill must be a number from 0 to 1"),
        (lambda: augment.rotate(X[..., :5], torch.tensor([1, 2])), "images must be square.*6×5"),
        (lambda: augment.rotate(X, torch.tensor([0.5, 1])), "quarter_turns must be whole numbers"),
        (lambda: augment.rotations(X[..., :5]), "images must be square"),
        (lambda: augment.cut_permute(X[..., :5], (0, 1, 2, 3)), "images must have even sides.*6×5"),
        (lambda: augment.cut_permute(X, (0, 1, 2, 2)), "permutation must hold 0, 1, 2 and 3"),
        (lambda: augment.cut_permute(X, (0, 1, 2)), "permutation must be whole numbers"),
        (lambda: RandomResizedCrop(scale=(0.5, 1.1)), "scale must be two numbers"),
        (lambda: RandomResizedCrop(scale=(0.0, 1.0)), "scale must be two numbers"),
        (lambda: RandomResizedCrop(ratio=(2, 1)), "ratio must be two numbers.*the smaller first"),
        (lambda: RandomResizedCrop(ratio=1.0), "ratio must be two numbers"),
        (lambda: RandomResizedCrop(size=(8, 0)), "size must be a whole number"),
        (lambda: RandomResizedCrop(mirror=2), "mirror must be a number from 0 to 1"),
        (lambda: RandomHorizontalFlip(1.5), "p must be a number from 0 to 1, got 1.5"),
        (lambda: RandomGrey(-0.1), "p must be"),
        (lambda: ColorJitter(p=float("nan")), "p must be"),
        (lambda: ColorJitter(brightness=-1), "brightness must be"),
        (lambda: ColorJitter(saturation="much"), "saturation must be"),
        (lambda: ColorJitter(hue=0.6), "hue must be a number from 0 to 0.5"),
        (lambda: RandomGaussianBlur(sigma=(0, 1)), "sigma must be two numbers"),
        (lambda: RandomGaussianBlur(p=2), "p must be"),
        (lambda: GaussianNoise(-1), "sigma must be"),
        (lambda: Cutout(side=2), "side must be"),
        (lambda: Cutout(fill=-1), "fill must be"),
        (lambda: RandomRotation(()), "quarter_turns must hold"),
        (lambda: RandomRotation((1, 4)), "quarter_turns must be one of"),
        (lambda: Compose(torch.sigmoid), "transforms must be transforms of adlearn.augment"),
        (lambda: augment.simclr(strength=3), "strength must be a number from 0 to 2.5"),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("name", ALL)
def test_bad_images_are_refused(name):
    for images, message in ((X / 0, "finite"), (X + 1, "lie in"), ((255 * X).byte(), "floating point"),
                            (X[0], "shape"), (X[:0], "empty")):
        with pytest.raises(ValueError, match=f"images.*{message}"):
            ALL[name](images)
