"""AnoGAN and f-AnoGAN: a generator that can draw normal images only, and two ways to ask it for a given one.

A generator G turns random codes z ~ N(0, I) into images, a critic D tells them from normal ones, both learn from each
other. Neither can take an image and say which code it has, or how likely it is. So the detector needs a second step:

    AnoGAN      search z by gradient descent:  L(z) = (1 − λ) |x − G(z)|₁ + λ |f_D(x) − f_D(G(z))|₁
    f-AnoGAN    learn an encoder E, z = E(x):  L(E) = ‖x − G(E(x))‖² / n + κ ‖f_D(x) − f_D(G(E(x)))‖² / m

f_D are the critic's features; the loss that is left is the score. The GAN is a Wasserstein GAN with gradient penalty,

    max_D  E D(x) − E D(G(z)) − 10 E (|∇D(x̂)| − 1)²        x̂ between a normal and a generated image,

as in f-AnoGAN (AnoGAN's own is a DCGAN, which trains less surely). Images are seen as values from −1 to 1.

Schlegl, Seeböck, Waldstein, Schmidt-Erfurth and Langs, "Unsupervised Anomaly Detection with Generative Adversarial
Networks to Guide Marker Discovery", 2017; the same, "f-AnoGAN", 2019; Gulrajani et al., "Improved Training of
Wasserstein GANs", 2017.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from adlearn import checks, runtime, training
from adlearn.data.folder import as_images
from adlearn.detector import Reconstructor
from adlearn.nets import LatentDecoder, LatentEncoder

PENALTY, CRITIC_STEPS = 10.0, 5                 # Gulrajani et al. 2017


def train_gan(
    generator: nn.Module,
    critic: nn.Module,
    real_images: Callable[[Tensor], Tensor],
    count: int,
    *,
    latent: int,
    epochs: int,
    batch_size: int = 64,
    lr: float = 1e-4,
    callback: Callable[[int], None] | None = None,
    history: list[float] | None = None,
) -> list[float]:
    """Train a Wasserstein GAN with gradient penalty; both networks end in evaluation mode and frozen.

    The critic sees every batch, the generator takes a step after every fifth. Adam with β = (0, 0.9).

    Args:
        generator: codes (B, latent) to images in [−1, 1].
        critic: images to (B, 1).
        real_images: gives the training images of these indices, (B, C, H, W) in [−1, 1], on the networks' device.
        count: how many there are.
        epochs: passes of the critic over the images.
        callback: called with the epoch after each, and with 0 before the first step.
        history: see `training.train`.

    Returns:
        The critic's estimate of the Wasserstein distance between normal and generated images, one number an epoch.

    Raises:
        ValueError: the estimate is not finite.
    """
    found = [] if history is None else history
    found.clear()
    of_generator, of_critic = (torch.optim.Adam(net.parameters(), lr=lr, betas=(0.0, 0.9))
                               for net in (generator, critic))
    batches, steps = training.Shuffled(count, batch_size), 0
    critic.train(), generator.eval()
    if callback:
        callback(0)
    for epoch in runtime.progress(range(1, epochs + 1), "GAN"):
        generator.train()
        distances = []
        for index in batches:
            real = real_images(index)
            code = torch.randn(len(real), latent, device=real.device)
            with torch.no_grad():
                drawn = generator(code)
            distance = critic(real).mean() - critic(drawn).mean()
            _step(of_critic, PENALTY * gradient_penalty(critic, real, drawn) - distance)
            distances.append(distance.detach())
            steps += 1
            if steps % CRITIC_STEPS == 0:
                critic.requires_grad_(False)
                _step(of_generator, -critic(generator(torch.randn_like(code))).mean())
                critic.requires_grad_(True)
        found.append(torch.stack(distances).mean().item())
        if not abs(found[-1]) < float("inf"):
            raise ValueError(f"the critic's estimate became {found[-1]} in epoch {epoch}: lower the learning rate")
        generator.eval()
        if callback:
            callback(epoch)
    for net in (generator, critic):
        net.eval().requires_grad_(False).zero_grad()
    return found


def gradient_penalty(critic: nn.Module, real: Tensor, drawn: Tensor) -> Tensor:
    """Mean of (|∇D(x̂)| − 1)² at random points between pairs of images (B, C, H, W), one gradient an image."""
    share = torch.rand(len(real), 1, 1, 1, device=real.device)
    between = (share * real + (1 - share) * drawn).requires_grad_()
    gradient, = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    return (gradient.flatten(1).norm(dim=1) - 1).square().mean()


def _step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


class OnGAN(Reconstructor):
    """What both detectors share: generator G, critic D, how they are trained, and a map of absolute differences.

    Args:
        latent: length of a code.
        width: channels of the critic's first convolution.
        patch: see `Reconstructor`.
    """

    training_steps: ClassVar = {"quick": 1200, "gpu": 20_000, "paper": 100_000}     # of the critic

    def __init__(self, *, latent: int, width: int, patch: int | None):
        super().__init__(patch=patch)
        self.latent, self.width = checks.positive_int(latent, "latent"), checks.positive_int(width, "width")

    def build(self, channels: int, side: int) -> None:
        shared = {"channels": channels, "side": side, "width": self.width}
        self.generator = nn.Sequential(LatentDecoder(latent=self.latent, **shared), nn.Tanh())
        self.critic = LatentEncoder(latent=1, norm=False, **shared)

    def generate(self, codes: Tensor) -> Tensor:
        """Images of codes (B, latent), (B, C, side, side) in [0, 1]."""
        return (self.generator(codes) + 1) / 2

    def drawn(self, images: Tensor) -> Tensor:
        return self.generate(self.code(images))

    def residual(self, images: Tensor) -> Tensor:
        return (images - self.drawn(images)).abs().mean(1)                              # (B, side, side)

    def differences(self, images: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """x − G(z), (B, C·side²), values from −2 to 2, and f_D(x) − f_D(G(z)), (B, m)."""
        real, drawn = 2 * images - 1, self.generator(codes)
        return (real - drawn).flatten(1), self.critic.features(real) - self.critic.features(drawn)

    def _train_gan(self, images: Tensor, epochs: int | None, batch_size: int, lr: float, callback) -> None:
        where = self.shape_.device
        train_gan(self.generator, self.critic, lambda index: 2 * self.cut(images[index]).to(where) - 1, len(images),
                  epochs=self.epochs(epochs, len(images), batch_size, self.training_steps),
                  latent=self.latent, batch_size=batch_size, lr=lr,
                  callback=callback and (lambda epoch: callback(epoch, self.eval())), history=self.losses_)


class AnoGAN(OnGAN):
    """The code of an image is searched for by gradient descent, for a whole batch at once and from several starts.

    The score is L(z) of the best start after the last step. Generator and critic stay as they are.

    Args:
        weight: λ, of the critic's features against the pixels.
        steps, lr: of the search, by Adam. A search that has not settled measures its own failure.
        starts: codes that each search begins from, drawn once, the same for all images.
        latent, width, patch: see `OnGAN`.
    """

    def __init__(self, *, weight: float = 0.1, steps: int = 500, starts: int = 2, lr: float = 0.05, latent: int = 64,
                 width: int = 32, patch: int | None = None):
        super().__init__(latent=latent, width=width, patch=patch)
        self.weight, self.lr = checks.within(weight, 0, 1, "weight"), checks.between(lr, 0, 1e3, "lr")
        self.steps, self.starts = checks.positive_int(steps, "steps"), checks.positive_int(starts, "starts")

    def build(self, channels: int, side: int) -> None:
        super().build(channels, side)
        self.register_buffer("starts_", torch.randn(self.starts, self.latent))

    def fit(self, images, *, epochs: int | None = None, batch_size: int = 64, lr: float = 1e-3,
            callback: Callable[[int, Self], None] | None = None) -> Self:
        """Train the GAN on normal images; `losses_` is the critic's estimate of the Wasserstein distance."""
        images = as_images(images)[:]
        new = self.afresh(images)
        new._train_gan(images, epochs, batch_size, lr, callback)
        return self.take(new)

    def search(self, images: Tensor, callback: Callable[[int, Tensor], None] | None = None) -> tuple[Tensor, Tensor]:
        """The best codes found for images of the fitted size, (B, latent), and their loss L(z), (B,).

        `callback` is called with each step's number, from 0, and the losses of all starts before it, (starts, B).
        """
        with torch.inference_mode(False), torch.enable_grad():
            images = images.detach().clone().repeat(self.starts, 1, 1, 1)               # (S·B, C, side, side)
            count = len(images) // self.starts
            codes = self.starts_.repeat_interleave(count, dim=0).requires_grad_()       # (S·B, latent)
            optimizer = torch.optim.Adam([codes], lr=self.lr)
            for step in range(self.steps):
                losses = self.search_loss(images, codes)
                codes.grad, = torch.autograd.grad(losses.sum(), codes)                  # one code, one image
                optimizer.step()
                if callback:
                    callback(step, losses.detach().view(self.starts, count))
            with torch.no_grad():
                losses = self.search_loss(images, codes).view(self.starts, count)
            best, which = losses.min(0)                                                 # (B,)
            return codes.detach().view(self.starts, count, -1)[which, torch.arange(count, device=which.device)], best

    def search_loss(self, images: Tensor, codes: Tensor) -> Tensor:
        """L(z), (B,): sums of absolute differences, of values from −1 to 1 and of the critic's features."""
        pixels, features = self.differences(images, codes)
        return (1 - self.weight) * pixels.abs().sum(1) + self.weight * features.abs().sum(1)

    def code(self, images: Tensor) -> Tensor:
        return self.search(images)[0]

    def anomaly_score(self, images: Tensor) -> Tensor:
        """L(z); over larger images the mean of all tiles."""
        return self.over_tiles(lambda tile: self.search(tile)[1], images)


class FastAnoGAN(OnGAN):
    """f-AnoGAN: an encoder, trained when the GAN is, gives the code in one pass ("izi_f" training).

    The score is the encoder's loss at the image.

    Args:
        kappa: κ, weight of the critic's features against the pixels, each a mean of squares.
        latent, width, patch: see `OnGAN`.
    """

    encoder_steps: ClassVar = {"quick": 400, "gpu": 10_000, "paper": 50_000}

    def __init__(self, *, kappa: float = 1.0, latent: int = 64, width: int = 32, patch: int | None = None):
        super().__init__(latent=latent, width=width, patch=patch)
        self.kappa = checks.within(kappa, 0, 1e6, "kappa")

    def build(self, channels: int, side: int) -> None:
        super().build(channels, side)
        self.encoder = LatentEncoder(channels=channels, side=side, latent=self.latent, width=self.width)

    def fit(self, images, *, epochs: int | None = None, batch_size: int = 64, lr: float = 1e-3,
            encoder_epochs: int | None = None, encoder_lr: float = 5e-4, gan: OnGAN | None = None,
            callback: Callable[[int, Self], None] | None = None) -> Self:
        """Train the GAN, then the encoder with RMSProp; `losses_` is the encoder's loss.

        Args:
            gan: a fitted `AnoGAN` or `FastAnoGAN` of these settings, whose generator and critic are used as they are.
            callback: called during the training of the GAN.
        """
        images = as_images(images)[:]
        new = self.afresh(images)
        if gan is None:
            new._train_gan(images, epochs, batch_size, lr, callback)
        else:
            new._adopt(gan)
        training.train(
            new.encoder, lambda batch: new.encoder_loss(new.cut(batch)).mean(), images,
            epochs=self.epochs(encoder_epochs, len(images), batch_size, self.encoder_steps),
            batch_size=batch_size, history=new.losses_,
            optimizer=torch.optim.RMSprop(new.encoder.parameters(), lr=encoder_lr))
        return self.take(new)

    def encoder_loss(self, images: Tensor) -> Tensor:
        """The mean squared difference of pixels plus κ times that of the critic's features, (B,)."""
        pixels, features = self.differences(images, self.encoder(images))
        return pixels.square().mean(1) + self.kappa * features.square().mean(1)

    def code(self, images: Tensor) -> Tensor:
        return self.encoder(images)                                                     # (B, latent)

    def anomaly_score(self, images: Tensor) -> Tensor:
        """The encoder's loss; over larger images the mean of all tiles."""
        return self.over_tiles(self.encoder_loss, images)

    def _adopt(self, gan: OnGAN) -> None:
        gan.check_fitted()
        if (gan.latent, gan.width, gan.shape_.tolist()) != (self.latent, self.width, self.shape_.tolist()):
            raise ValueError(f"gan must have latent {self.latent}, width {self.width} and images of (channels, side) "
                             f"{self.shape_.tolist()}, got {gan.latent}, {gan.width} and {gan.shape_.tolist()}")
        for name in ("generator", "critic"):
            net = getattr(self, name)
            net.load_state_dict(getattr(gan, name).state_dict())
            net.eval().requires_grad_(False)
