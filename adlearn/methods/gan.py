"""AnoGAN and f-AnoGAN: a generator that can draw normal images only, and two ways to ask it for a given one.

A generator G turns random codes z ~ N(0, I) into images, a critic D tells them from normal ones, both learn from each
other. Neither can take an image and say which code it has, or how likely it is. So the detector needs a second step:

    AnoGAN      search z by gradient descent:  L(z) = (1 − λ) |x − G(z)|₁ + λ |f_D(x) − f_D(G(z))|₁
    f-AnoGAN    learn an encoder E, z = E(x):  L(E) = ‖x − G(E(x))‖² / n + κ ‖f_D(x) − f_D(G(E(x)))‖² / m

f_D are the critic's features; the loss that is left is the score. The GAN is a Wasserstein GAN with gradient penalty,

    max_D  E D(x) − E D(G(z)) − 10 E (|∇D(x̂)| − 1)²        x̂ between a normal and a generated image,

as in f-AnoGAN (AnoGAN's own is a DCGAN, which trains less surely). Images are seen as values from −1 to 1.

Departures: the networks are plain convolutions where f-AnoGAN's have residual blocks; codes have 64 numbers where its
have 128; outside the paper profile the rates are ten times the papers', since training is so much shorter; and the
encoder's rate falls along a cosine.

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
from adlearn.nets import LatentDecoder, LatentEncoder
from adlearn.reconstruction import Reconstructor

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
    nets = (generator.requires_grad_(True), critic.requires_grad_(True))
    _switch(nets, training=False)
    if callback:
        callback(0)
    for epoch in runtime.progress(range(1, epochs + 1), "GAN"):
        _switch(nets, training=True)
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
        _switch(nets, training=False)
        if callback:
            callback(epoch)
    for net in nets:
        net.requires_grad_(False).zero_grad()
    return found


def gradient_penalty(critic: nn.Module, real: Tensor, drawn: Tensor) -> Tensor:
    """Mean of (|∇D(x̂)| − 1)² at random points between pairs of images (B, C, H, W), one gradient an image."""
    share = torch.rand(len(real), 1, 1, 1, device=real.device)
    between = (share * real + (1 - share) * drawn).requires_grad_()
    gradient, = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    return (gradient.flatten(1).norm(dim=1) - 1).square().mean()


def _switch(nets: tuple[nn.Module, ...], *, training: bool) -> None:
    for net in nets:
        net.train(training)


def _step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


class GANDetector(Reconstructor):
    """What both detectors share: generator G, critic D, how they are trained, and a map of absolute differences.

    Args:
        latent: length of a code.
        width: channels of the critic's first convolution.
        patch: see `Reconstructor`.
    """

    training_steps: ClassVar = {"quick": 1200, "gpu": 20_000, "paper": 100_000}     # of the critic
    rates: ClassVar = {"quick": 1e-3, "gpu": 1e-3, "paper": 1e-4}                   # of both networks

    def __init__(self, *, latent: int, width: int, patch: int | None):
        super().__init__(patch=patch)
        self.latent, self.width = checks.positive_int(latent, "latent"), checks.positive_int(width, "width")

    def build(self, channels: int, side: int) -> None:
        shared = {"channels": channels, "side": side, "width": self.width}
        self.generator = nn.Sequential(LatentDecoder(latent=self.latent, **shared), nn.Tanh()).requires_grad_(False)
        self.critic = LatentEncoder(latent=1, norm=False, **shared).requires_grad_(False)

    def generate(self, codes: Tensor) -> Tensor:
        """Images of codes (B, latent), (B, C, side, side) in [0, 1]."""
        return (self.generator(codes) + 1) / 2

    def drawn(self, images: Tensor) -> Tensor:
        return self.generate(self.code(images))

    def residual(self, images: Tensor) -> Tensor:
        return (images - self.drawn(images)).abs().mean(1)                              # (B, side, side)

    def differences(self, images: Tensor, codes: Tensor, features: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x − G(z), (B, C·side²), values from −2 to 2, and f_D(x) − f_D(G(z)), (B, m); f_D(x) may be given."""
        real, drawn = 2 * images - 1, self.generator(codes)
        features = self.critic.features(real) if features is None else features
        return (real - drawn).flatten(1), features - self.critic.features(drawn)

    def _train_gan(self, images: Tensor, epochs: int | None, batch_size: int, lr: float | None, callback) -> None:
        images = images.to(self.shape_.device)
        lr = runtime.pick(**self.rates) if lr is None else lr
        train_gan(self.generator, self.critic, lambda index: 2 * self.cut(images[index]) - 1, len(images),
                  epochs=self.epochs(epochs, len(images), batch_size, self.training_steps),
                  latent=self.latent, batch_size=batch_size, lr=lr,
                  callback=callback and (lambda epoch: callback(epoch, self.eval())), history=self.losses_)


class AnoGAN(GANDetector):
    """The code of an image is searched for by gradient descent, for a whole batch at once and from several starts.

    The score is L(z) of the best start after the last step. Generator and critic stay as they are. Scores and maps
    each cost a search of their own.

    Args:
        weight: λ, of the critic's features against the pixels.
        steps, search_lr: of the search, by Adam. A search that has not settled measures its own failure.
        starts: codes that each search begins from, drawn once, the same for all images.
        latent, width, patch: see `GANDetector`.
    """

    def __init__(self, *, weight: float = 0.1, steps: int = 500, starts: int = 2, search_lr: float = 0.05,
                 latent: int = 64, width: int = 32, patch: int | None = None):
        super().__init__(latent=latent, width=width, patch=patch)
        self.weight = checks.within(weight, 0, 1, "weight")
        self.search_lr = checks.between(search_lr, 0, 1e3, "search_lr")
        self.steps, self.starts = checks.positive_int(steps, "steps"), checks.positive_int(starts, "starts")

    def build(self, channels: int, side: int) -> None:
        super().build(channels, side)
        self.register_buffer("starts_", torch.randn(self.starts, self.latent))

    def fit(self, images, *, epochs: int | None = None, batch_size: int = 64, lr: float | None = None,
            callback: Callable[[int, Self], None] | None = None) -> Self:
        """Train the GAN on normal images; `losses_` is the critic's estimate of the Wasserstein distance.

        Epochs and rate None leave them to the profile; for the rest see `Reconstructor.fit`.
        """
        images = as_images(images)[:]
        new = self.afresh(images)
        new._train_gan(images, epochs, batch_size, lr, callback)
        return self.take(new)

    def search(self, images: Tensor, callback: Callable[[int, Tensor], None] | None = None) -> tuple[Tensor, Tensor]:
        """The best codes found for images of the fitted size, (B, latent), and their loss L(z), (B,).

        `callback` is called with each step's number, from 0, and the losses of all starts before it, (starts, B).
        """
        with torch.inference_mode(False), torch.enable_grad():
            images = images.detach().repeat(self.starts, 1, 1, 1)                       # (S·B, C, side, side)
            with torch.no_grad():
                features = self.critic.features(2 * images - 1)                         # (S·B, m)
            count = len(images) // self.starts
            codes = self.starts_.repeat_interleave(count, dim=0).requires_grad_()       # (S·B, latent)
            optimizer = torch.optim.Adam([codes], lr=self.search_lr)
            for step in range(self.steps):
                losses = self.search_loss(images, codes, features)
                codes.grad, = torch.autograd.grad(losses.sum(), codes)                  # one code, one image
                optimizer.step()
                if callback:
                    callback(step, losses.detach().view(self.starts, count))
            with torch.no_grad():
                losses = self.search_loss(images, codes, features).view(self.starts, count)
            best, which = losses.min(0)                                                 # (B,)
            return codes.detach().view(self.starts, count, -1)[which, torch.arange(count, device=which.device)], best

    def search_loss(self, images: Tensor, codes: Tensor, features: Tensor | None = None) -> Tensor:
        """L(z), (B,): sums of absolute differences, of values from −1 to 1 and of the critic's features."""
        pixels, features = self.differences(images, codes, features)
        return (1 - self.weight) * pixels.abs().sum(1) + self.weight * features.abs().sum(1)

    def code(self, images: Tensor) -> Tensor:
        return self.search(images)[0]

    def anomaly_score(self, images: Tensor) -> Tensor:
        """L(z); over larger images the mean of all tiles."""
        return self.mean_of_tiles(lambda tile: self.search(tile)[1], images)


class FastAnoGAN(GANDetector):
    """f-AnoGAN: an encoder, trained when the GAN is, gives the code in one pass ("izi_f" training).

    The score is the encoder's loss at the image.

    Args:
        kappa: κ, weight of the critic's features against the pixels, each a mean of squares.
        latent, width, patch: see `GANDetector`.
    """

    encoder_steps: ClassVar = {"quick": 400, "gpu": 10_000, "paper": 50_000}
    encoder_rates: ClassVar = {"quick": 5e-4, "gpu": 5e-4, "paper": 5e-5}

    def __init__(self, *, kappa: float = 1.0, latent: int = 64, width: int = 32, patch: int | None = None):
        super().__init__(latent=latent, width=width, patch=patch)
        self.kappa = checks.within(kappa, 0, 1e6, "kappa")

    def build(self, channels: int, side: int) -> None:
        super().build(channels, side)
        self.encoder = LatentEncoder(channels=channels, side=side, latent=self.latent, width=self.width)

    def fit(self, images, *, epochs: int | None = None, batch_size: int = 64, lr: float | None = None,
            encoder_epochs: int | None = None, encoder_lr: float | None = None, gan: GANDetector | None = None,
            callback: Callable[[int, Self], None] | None = None) -> Self:
        """Train the GAN, then the encoder with RMSProp; `losses_` is the encoder's loss.

        Args:
            epochs, lr, encoder_epochs, encoder_lr: None leaves them to the profile.
            gan: a fitted `AnoGAN` or `FastAnoGAN` of these settings, whose generator and critic are used as they are.
            callback: called during the training of the encoder. To watch the GAN, train an `AnoGAN` and hand it over.

        Raises:
            ValueError: a `gan` of other settings; see `Reconstructor.fit`.
        """
        images = as_images(images)[:]
        new = self.afresh(images)
        encoder_epochs = self.epochs(encoder_epochs, len(images), batch_size, self.encoder_steps)
        optimizer = torch.optim.RMSprop(
            new.encoder.parameters(), lr=runtime.pick(**self.encoder_rates) if encoder_lr is None else encoder_lr)
        if gan is None:
            new._train_gan(images, epochs, batch_size, lr, None)
        else:
            new._adopt(gan)
        training.train(
            new.encoder, lambda batch: new.encoder_loss(new.cut(batch)).mean(), images,
            epochs=encoder_epochs, batch_size=batch_size, optimizer=optimizer, history=new.losses_,
            callback=callback and (lambda epoch, _: callback(epoch, new.eval())))
        return self.take(new)

    def encoder_loss(self, images: Tensor) -> Tensor:
        """The mean squared difference of pixels plus κ times that of the critic's features, (B,)."""
        pixels, features = self.differences(images, self.encoder(images))
        return pixels.square().mean(1) + self.kappa * features.square().mean(1)

    def code(self, images: Tensor) -> Tensor:
        return self.encoder(images)                                                     # (B, latent)

    def anomaly_score(self, images: Tensor) -> Tensor:
        """The encoder's loss; over larger images the mean of all tiles."""
        return self.mean_of_tiles(self.encoder_loss, images)

    def _adopt(self, gan: GANDetector) -> None:
        gan.check_fitted()
        if (gan.latent, gan.width, gan.shape_.tolist()) != (self.latent, self.width, self.shape_.tolist()):
            raise ValueError(f"gan must have latent {self.latent}, width {self.width} and images of (channels, side) "
                             f"{self.shape_.tolist()}, got {gan.latent}, {gan.width} and {gan.shape_.tolist()}")
        for name in ("generator", "critic"):
            getattr(self, name).load_state_dict(getattr(gan, name).state_dict())
        self.eval()
