"""Structural similarity against scikit-image and by hand; autoencoders with both losses."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import structural_similarity

from adlearn import methods
from adlearn.methods.autoencoder import ssim


def pair(channels=1, height=40, width=33, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    one = torch.rand(2, channels, height, width, generator=generator, dtype=dtype)
    return one, (one + 0.2 * torch.randn(one.shape, generator=generator, dtype=dtype)).clamp(0, 1)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ssim_is_scikit_images_inside(channels, dtype):
    one, two = pair(channels, dtype=dtype)
    found = ssim(one, two)
    assert found.shape == (2, 40, 33)
    for a, b, ours in zip(one, two, found, strict=True):
        _, theirs = structural_similarity(
            a.numpy().astype(np.float64), b.numpy().astype(np.float64), gaussian_weights=True, sigma=1.5,
            use_sample_covariance=False, data_range=1, channel_axis=0, full=True)
        inside = np.abs(ours.numpy() - theirs.mean(0))[5:-5, 5:-5]
        assert inside.max() < (1e-4 if dtype == torch.float32 else 1e-10)


@pytest.mark.parametrize("level", [0.0, 0.5, 0.97, 1.0])
@pytest.mark.parametrize("spread", [0.0, 0.002, 0.02])
def test_ssim_is_exact_on_bright_and_on_even_images(level, spread):
    """Where the variance is a small difference of large squares, single precision is near double."""
    generator = torch.Generator().manual_seed(0)
    one, two = (level + spread * torch.randn(2, 1, 1, 24, 24, generator=generator, dtype=torch.float64)).clamp(0, 1)
    two = (two - 0.003).clamp(0, 1)
    assert (ssim(one.float(), two.float()) - ssim(one, two)).abs().amax() < 1e-4
    assert (ssim(one.float(), one.float()) - 1).abs().amax() < 1e-5


def test_ssim_by_the_formula_at_a_corner():
    """The window at the corner holds a quarter of the Gaussian, and its weights sum to one."""
    one, two = pair(height=12, width=12)
    offset = torch.arange(6, dtype=torch.float64)
    weights = torch.exp(-(offset[:, None] ** 2 + offset ** 2) / (2 * 1.5 ** 2))
    weights = weights / weights.sum()
    x, y = one[0, 0, :6, :6], two[0, 0, :6, :6]
    mean_x, mean_y = (weights * x).sum(), (weights * y).sum()
    spread_x, spread_y = (weights * (x - mean_x) ** 2).sum(), (weights * (y - mean_y) ** 2).sum()
    shared = (weights * (x - mean_x) * (y - mean_y)).sum()
    expected = ((2 * mean_x * mean_y + 1e-4) * (2 * shared + 9e-4)
                / ((mean_x ** 2 + mean_y ** 2 + 1e-4) * (spread_x + spread_y + 9e-4)))
    assert torch.isclose(ssim(one, two)[0, 0, 0], expected)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 1000), window=st.sampled_from([3, 7, 11]))
def test_ssim_is_symmetric_bounded_and_one_on_equal_images(seed, window):
    one, two = pair(height=16, width=16, seed=seed, dtype=torch.float32)
    found = ssim(one, two, window=window)
    assert torch.allclose(found, ssim(two, one, window=window), atol=1e-6)
    assert found.amin() >= -1
    assert found.amax() <= 1 + 1e-5
    assert torch.allclose(ssim(one, one, window=window), torch.ones(2, 16, 16), atol=1e-5)


def test_ssim_is_differentiable_and_steps_towards_the_target():
    one, two = pair(height=12, width=12)
    assert torch.autograd.gradcheck(lambda x: ssim(x, two), one.requires_grad_())
    flat = torch.full((1, 1, 8, 8), 0.5, requires_grad=True)                # no variance at all
    ssim(flat, torch.full_like(flat, 0.5)).sum().backward()
    assert flat.grad.isfinite().all()


def test_ssim_keeps_its_precision_under_autocast():
    one, two = pair(dtype=torch.float32)
    expected = ssim(one, two)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(ssim(one, two), expected)
        assert ssim(one.bfloat16(), two.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize(("options", "message"), [
    ({"window": 4}, "odd"), ({"window": 0}, "window"), ({"sigma": 0}, "sigma")])
def test_ssim_refuses(options, message):
    one, two = pair()
    with pytest.raises(ValueError, match=message):
        ssim(one, two, **options)
    with pytest.raises(ValueError, match="one shape"):
        ssim(one, two[:1])


def test_the_map_is_the_loss_and_the_score_its_maximum():
    torch.manual_seed(0)
    images = torch.rand(6, 1, 16, 16)
    for loss, measure in (("l2", lambda a, b: (a - b).square().mean(1)), ("ssim", lambda a, b: 1 - ssim(a, b))):
        detector = methods.AutoEncoder(loss=loss, latent=4, width=4).fit(images, epochs=1)
        with torch.no_grad():
            expected = measure(images, detector.reconstruct(images))
            assert torch.allclose(detector.objective(images), expected.mean())
        assert torch.allclose(detector.localize(images), expected)
        assert torch.allclose(detector.score(images), expected.flatten(1).amax(1))
        other = methods.AutoEncoder(loss="l2" if loss == "ssim" else "ssim", measure=loss, latent=4, width=4).fit(
            images, epochs=1)
        with torch.no_grad():
            assert torch.allclose(other.localize(images), measure(images, other.reconstruct(images)))
    with pytest.raises(ValueError, match="loss must be one of"):
        methods.AutoEncoder(loss="l1")
    with pytest.raises(ValueError, match="measure must be one of"):
        methods.AutoEncoder(measure="l1")


def test_a_wider_code_draws_better():
    torch.manual_seed(0)
    images = torch.rand(32, 1, 8, 8)                                         # noise: nothing to compress

    def left_over(latent):
        torch.manual_seed(1)
        return methods.AutoEncoder(latent=latent, width=16).fit(images, epochs=150, lr=3e-3).losses_[-1]

    assert left_over(32) < 0.5 * left_over(2)
