"""The variational autoencoder: a code that is a distribution, and with it a bound on how likely an image is.

The encoder gives each image a normal distribution q(z|x) over codes, the decoder each code a distribution p(x|z) over
images. Codes themselves are standard normal beforehand. Training raises a lower bound on log p(x), the ELBO, in nats:

    −ELBO = E_q[ −log p(x|z) ] + β · KL( q(z|x) ‖ N(0, I) )        KL = ½ Σ_j (μ_j² + σ_j² − log σ_j² − 1)

Both terms are sums, over all values of an image and over all numbers of its code, so that β = 1 is the bound. What is
assumed to be Gaussian is the code; the distribution of a pixel given the code is a choice of its own (`likelihood`).

Kingma and Welling, "Auto-Encoding Variational Bayes", 2014; as a detector An and Cho, "Variational Autoencoder based
Anomaly Detection using Reconstruction Probability", 2015.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adlearn import checks
from adlearn.nets import LatentDecoder, LatentEncoder
from adlearn.reconstruction import Reconstructor

LIKELIHOODS = ("gaussian", "bernoulli")
SCORES = ("elbo", "reconstruction", "probability")
SIGMAS = 0.01, 1.0          # a pixel's deviation: below a few grey levels of 255 a density says nothing about images


class VAE(Reconstructor):
    """A variational autoencoder with a code of `latent` numbers.

    Args:
        latent: length of the code.
        beta: weight of the KL term; 1 is the ELBO.
        likelihood: of a value given the code: "gaussian", or "bernoulli", which treats a grey value as the probability
            of white and is no density of values between black and white.
        sigma: deviation of the Gaussian: "pixel", learned for every value of every image as in An and Cho; "shared",
            one learned number; or a number, from 0.01 to 1.
        score_by: of an image: "elbo", the training loss; "reconstruction", the squared error at the mean code;
            "probability", An and Cho's reconstruction probability, −log p(x|z) averaged over draws of z.
        draws: of z in scores. They come from the same normal numbers for every image, so that scores can be repeated.
        width, patch: see `AutoEncoder`.

    Its map is the share of each pixel in what the score says of p(x|z): the squared error for "reconstruction", for
    the others −log p(x|z) averaged over draws of z.
    """

    def __init__(self, *, latent: int = 16, beta: float = 1.0, likelihood: str = "gaussian",
                 sigma: float | str = "shared", score_by: str = "elbo", draws: int = 8, width: int = 32,
                 patch: int | None = None):
        super().__init__(patch=patch)
        self.latent, self.width = checks.positive_int(latent, "latent"), checks.positive_int(width, "width")
        self.beta, self.draws = checks.between(beta, 0, 1e6, "beta"), checks.positive_int(draws, "draws")
        self.likelihood = checks.choice(likelihood, LIKELIHOODS, "likelihood")
        self.score_by = checks.choice(score_by, SCORES, "score_by")
        self.sigma = sigma if sigma in ("pixel", "shared") else checks.within(sigma, *SIGMAS, "sigma")

    def build(self, channels: int, side: int) -> None:
        shared = {"side": side, "width": self.width}
        of_a_value = 2 if self.likelihood == "gaussian" and self.sigma == "pixel" else 1    # mean, and log deviation
        self.encoder = LatentEncoder(channels=channels, latent=2 * self.latent, **shared)
        self.decoder = LatentDecoder(channels=of_a_value * channels, latent=self.latent, **shared)
        start = 0.1 if isinstance(self.sigma, str) else self.sigma
        learned = self.likelihood == "gaussian" and self.sigma == "shared"
        self.log_sigma = nn.Parameter(torch.tensor(math.log(start)), requires_grad=learned)
        self.register_buffer("noise_", torch.randn(self.draws, self.latent))

    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of q(z|x), (B, latent) each."""
        mean, log_variance = self.encoder(images).float().chunk(2, dim=1)
        return mean, log_variance.clamp(-20, 20)

    def code(self, images: Tensor) -> Tensor:
        """The mean of q(z|x), (B, latent)."""
        return self.posterior(images)[0]

    def decode(self, codes: Tensor) -> Tensor:
        """The mean image of codes (B, latent), (B, C, side, side)."""
        return self.decoder(codes)[:, :self.shape_[0]].float().sigmoid()

    def drawn(self, images: Tensor) -> Tensor:
        return self.decode(self.code(images))

    def nll(self, images: Tensor, codes: Tensor) -> Tensor:
        """−log p(x|z) of each pixel, in nats, summed over channels: (B, side, side)."""
        C, out = images.shape[1], self.decoder(codes).float()                           # (B, C or 2C, side, side)
        if self.likelihood == "bernoulli":
            return F.binary_cross_entropy_with_logits(out, images, reduction="none").sum(1)
        low, high = map(math.log, SIGMAS)
        log_sigma = (out[:, C:] if self.sigma == "pixel" else self.log_sigma).clamp(low, high)
        standard = (images - out[:, :C].sigmoid()) / log_sigma.exp()
        return (0.5 * standard.square() + log_sigma + 0.5 * math.log(2 * math.pi)).sum(1)

    def objective(self, images: Tensor) -> Tensor:
        mean, log_variance = self.posterior(images)
        codes = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)              # so that gradients reach σ
        return (self.nll(images, codes).sum((1, 2)) + self.beta * kl(mean, log_variance)).mean()

    def residual(self, images: Tensor) -> Tensor:
        if self.score_by == "reconstruction":
            return super().residual(images)
        return self._expected_nll(images, *self.posterior(images))

    def anomaly_score(self, images: Tensor) -> Tensor:
        """The criterion of `score_by`, summed over the image; over larger images the mean of all tiles."""
        return self.mean_of_tiles(self._score, images)

    def _score(self, images: Tensor) -> Tensor:
        """(B,) for images of the fitted size."""
        if self.score_by == "reconstruction":
            return self.residual(images).sum((1, 2))
        posterior = self.posterior(images)
        nll = self._expected_nll(images, *posterior).sum((1, 2))
        return nll + self.beta * kl(*posterior) if self.score_by == "elbo" else nll

    def _expected_nll(self, images: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
        """The mean of `nll` over draws from q(z|x), (B, side, side)."""
        deviation = (0.5 * log_variance).exp()
        return sum(self.nll(images, mean + deviation * noise) for noise in self.noise_) / len(self.noise_)


def kl(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL( N(μ, diag σ²) ‖ N(0, I) ) in nats, (B,), of means and log variances (B, D): the sum over the D numbers."""
    return 0.5 * (mean.square() + log_variance.exp() - log_variance - 1).sum(1)
