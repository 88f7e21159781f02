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
        learned = out[:, 1:].exp().clamp(0.01, 1)
        spread = {"shared": detector.log_sigma.exp(), "pixel": learned, 0.2: 0.2}[sigma]
        expected = -Normal(mean, spread).log_prob(images).sum(1)
        assert torch.allclose(detector.nll(images, codes), expected, atol=1e-5)
        assert torch.allclose(detector.decode(codes), mean)


def test_the_bernoulli_term_is_torchs():
    detector, images = fitted(likelihood="bernoulli")
    codes, whole = torch.randn(16, 3), images.round()
    with torch.no_grad():
        expected = -Bernoulli(logits=detector.decoder(codes)).log_prob(whole).sum(1)
        assert torch.allclose(detector.nll(whole, codes), expected, atol=1e-5)


@pytest.mark.parametrize("beta", [1.0, 3.0])
def test_the_loss_is_a_sum_over_pixels_plus_beta_times_the_kl(beta):
    detector, images = fitted(beta=beta)
    with torch.no_grad():
        mean, log_variance = detector.posterior(images)
        torch.manual_seed(5)
        nll = detector.nll(images, mean + (0.5 * log_variance).exp() * torch.randn_like(mean))      # (16, 8, 8)
        torch.manual_seed(5)
        found = detector.objective(images)
    terms = [nll[i].sum().item() + beta * kl(mean[[i]], log_variance[[i]]).item() for i in range(16)]
    assert found.item() == pytest.approx(sum(terms) / 16, rel=1e-5)


def test_scores_are_what_they_are_called():
    images = None
    for score_by in ("elbo", "reconstruction", "probability"):
        detector, images = fitted(score_by=score_by, draws=4)
        with torch.no_grad():
            mean, log_variance = detector.posterior(images)
            draws = torch.stack([detector.nll(images, mean + (0.5 * log_variance).exp() * noise)
                                 for noise in detector.noise_]).mean(0)
            error = (images - detector.decode(mean)).square().mean(1)
            maps = error if score_by == "reconstruction" else draws
            expected = maps.sum((1, 2)) + (kl(mean, log_variance) if score_by == "elbo" else 0)
        assert detector.noise_.shape == (4, 3)
        assert torch.allclose(detector.score(images), expected, rtol=1e-5)
        assert torch.allclose(detector.localize(images), maps, rtol=1e-4, atol=1e-6)


def test_the_elbo_bounds_a_likelihood_that_is_known(monkeypatch):
    """With a linear decoder the likelihood is a Gaussian's; the ELBO stays under it, and meets it at the posterior."""
    detector = methods.VAE(latent=1, width=4, sigma=0.3, draws=4000)
    detector.shape_ = torch.tensor([1, 8])
    detector.build(1, 8)
    torch.manual_seed(0)
    weight, x = 0.02 * torch.randn(64), (0.5 + 0.2 * torch.randn(1, 1, 8, 8)).clamp(0.05, 0.95)
    monkeypatch.setattr(type(detector.decoder), "forward", lambda _, z: torch.logit(
        (0.5 + z @ weight[None]).clamp(1e-4, 1 - 1e-4)).view(-1, 1, 8, 8))
    covariance = weight[:, None] * weight + 0.09 * torch.eye(64)
    known = torch.distributions.MultivariateNormal(torch.full((64,), 0.5), covariance).log_prob(x.flatten()).item()
    precision = 1 + weight.square().sum() / 0.09
    centre = ((x.flatten() - 0.5) @ weight / 0.09 / precision).view(1, 1)
    bounds = {}
    for name, (mean, variance) in {"posterior": (centre, 1 / precision), "prior": (centre * 0, torch.tensor(1.0)),
                                   "off": (centre + 1, 1 / precision)}.items():
        q = mean, variance.log().expand(1, 1)
        monkeypatch.setattr(detector, "posterior", lambda images, q=q: q)
        bounds[name] = -detector.eval().score(x).item()
    assert bounds["posterior"] == pytest.approx(known, abs=0.1)
    assert bounds["prior"] < known - 0.1
    assert bounds["off"] < known - 0.3


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
