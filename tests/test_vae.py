"""The ELBO's terms by hand and by Monte Carlo; scores; what the options refuse."""

import math

import pytest
import torch
from torch.distributions import Bernoulli, Normal, kl_divergence

from adlearn import data, methods, metrics
from adlearn.methods.vae import kl


def fitted(**options):
    torch.manual_seed(0)
    images = torch.rand(16, 1, 8, 8)
    return methods.VAE(latent=3, width=4, **options).fit(images, epochs=2), images


def test_kl_is_the_sum_of_torchs():
    mean, log_variance = torch.randn(2, 7, 5, dtype=torch.float64)
    expected = kl_divergence(Normal(mean, (0.5 * log_variance).exp()), Normal(0.0, 1.0)).sum(1)
    assert torch.allclose(kl(mean, log_variance), expected)
    assert kl(torch.zeros(1, 4), torch.zeros(1, 4)).item() == 0


def test_kl_is_what_sampling_gives():
    torch.manual_seed(0)
    mean, log_variance = torch.tensor([[0.7, -1.2]]), torch.tensor([[-1.0, 0.4]])
    q = Normal(mean, (0.5 * log_variance).exp())
    z = q.sample((200_000,))
    sampled = (q.log_prob(z) - Normal(0.0, 1.0).log_prob(z)).sum(2)
    assert abs(sampled.mean().item() - kl(mean, log_variance).item()) < 4 * sampled.std().item() / math.sqrt(len(z))


@pytest.mark.parametrize("sigma", ["shared", "pixel", 0.2])
def test_the_gaussian_term_is_torchs(sigma):
    detector, images = fitted(sigma=sigma)
    codes = torch.randn(16, 3)
    with torch.no_grad():
        out = detector.decoder(codes)
        mean = out[:, :1].sigmoid()
        spread = {"shared": detector.log_sigma.exp(), "pixel": out[:, 1:].exp().clamp(0.01, 1), 0.2: 0.2}[sigma]
        expected = -Normal(mean, spread).log_prob(images).sum(1)
        assert torch.allclose(detector.surprise(images, codes), expected, atol=1e-5)
        assert torch.allclose(detector.decode(codes), mean)


def test_the_bernoulli_term_is_torchs():
    detector, images = fitted(likelihood="bernoulli")
    codes, whole = torch.randn(16, 3), images.round()
    with torch.no_grad():
        expected = -Bernoulli(logits=detector.decoder(codes)).log_prob(whole).sum(1)
        assert torch.allclose(detector.surprise(whole, codes), expected, atol=1e-5)


def test_both_terms_are_sums_and_beta_weighs_the_second():
    """Twice the pixels, twice the first term; the loss is in nats an image, whatever the size of the batch."""
    losses = {}
    for beta in (1.0, 3.0):
        detector, images = fitted(beta=beta)
        torch.manual_seed(5)
        with torch.no_grad():
            losses[beta] = detector.objective(images).item()
            term = kl(*detector.posterior(images)).mean().item()
            torch.manual_seed(5)
            mean, log_variance = detector.posterior(images)
            codes = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
            surprise = detector.surprise(images, codes)
        assert surprise.shape == (16, 8, 8)
        assert losses[beta] == pytest.approx(surprise.sum((1, 2)).mean().item() + beta * term, rel=1e-5)


def test_scores_are_what_they_are_called():
    images = None
    for score_by in ("elbo", "reconstruction", "probability"):
        detector, images = fitted(score_by=score_by, draws=4)
        with torch.no_grad():
            mean, log_variance = detector.posterior(images)
            draws = torch.stack([detector.surprise(images, mean + (0.5 * log_variance).exp() * noise)
                                 for noise in detector.noise_]).mean(0)
            error = (images - detector.decode(mean)).square().mean(1)
            maps = error if score_by == "reconstruction" else draws
            expected = maps.sum((1, 2)) + (kl(mean, log_variance) if score_by == "elbo" else 0)
        assert detector.noise_.shape == (4, 3)
        assert torch.allclose(detector.score(images), expected, rtol=1e-5)
        assert torch.allclose(detector.localize(images), maps, rtol=1e-4, atol=1e-6)


def test_the_elbo_bounds_the_likelihood_from_below():
    """Importance sampling with many draws comes near log p(x), and the ELBO stays under it."""
    detector, images = fitted()
    x = images[:1]
    with torch.no_grad():
        mean, log_variance = detector.posterior(x)
        q = Normal(mean, (0.5 * log_variance).exp())
        z = q.sample((4000,))[:, 0]                                                     # (4000, 3)
        log_weights = (Normal(0.0, 1.0).log_prob(z).sum(1) - q.log_prob(z).sum(1)
                       - detector.surprise(x.expand(4000, -1, -1, -1), z).sum((1, 2)))
        likelihood = log_weights.logsumexp(0) - math.log(4000)
        bound = log_weights.mean()
    assert bound < likelihood
    # the score's own draws give this bound, up to their own noise
    assert abs(-detector.score(x).item() - bound.item()) < 6 * log_weights.std().item() / math.sqrt(detector.draws)


def test_a_learned_deviation_comes_near_the_noise_in_the_images():
    torch.manual_seed(0)
    images = (0.5 + 0.08 * torch.randn(256, 1, 8, 8)).clamp(0, 1)
    detector = methods.VAE(latent=2, width=8).fit(images, epochs=60, lr=5e-3)
    assert detector.log_sigma.exp().item() == pytest.approx(0.08, abs=0.02)


def test_digits_are_told_apart():
    torch.manual_seed(0)
    split = data.digits(3)
    detector = methods.VAE(latent=8).fit(split.train)
    assert metrics.auroc(split.labels, detector.score(split.test)) > 0.95


@pytest.mark.parametrize(("options", "message"), [
    ({"latent": 0}, "latent"), ({"beta": 0}, "beta"), ({"likelihood": "laplace"}, "likelihood"),
    ({"sigma": 2.0}, "sigma"), ({"sigma": "learned"}, "sigma"), ({"score_by": "kl"}, "score_by"),
    ({"draws": 0}, "draws"),
])
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        methods.VAE(**options)
