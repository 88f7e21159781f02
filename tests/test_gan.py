"""The GAN's losses by hand, its stability, the search and the encoder."""

from itertools import pairwise

import pytest
import torch
from torch import nn

import adlearn
from adlearn import data, methods, metrics
from adlearn.methods.gan import gradient_penalty, train_gan

SEEDS = range(5)


@pytest.fixture(scope="module")
def gan():
    torch.manual_seed(0)
    return methods.AnoGAN(latent=8, width=16, steps=150).fit(data.digits(3).train, epochs=300)


def test_the_gradient_penalty_is_zero_at_slope_one_and_counts_images():
    class Slope(nn.Module):
        def __init__(self, slope):
            super().__init__()
            self.slope = slope

        def forward(self, images):
            return self.slope * images.flatten(1).sum(1, keepdim=True) / images[0].numel() ** 0.5

    real, drawn = torch.rand(2, 6, 1, 4, 4)
    assert gradient_penalty(Slope(1.0), real, drawn).item() == pytest.approx(0, abs=1e-6)
    assert gradient_penalty(Slope(3.0), real, drawn).item() == pytest.approx(4, rel=1e-5)


def test_the_penalty_is_taken_between_the_images_and_reaches_the_weights():
    seen = []
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 1))

    class Critic(nn.Module):
        def forward(self, images):
            seen.append(images)
            return net(images)

    real, drawn = torch.zeros(50, 1, 4, 4), torch.ones(50, 1, 4, 4)
    gradient_penalty(Critic(), real, drawn).backward()
    shares = seen[0].flatten(1)
    assert torch.allclose(shares, shares[:, :1].expand_as(shares))                 # one share an image
    assert shares.amin() < 0.2
    assert shares.amax() > 0.8
    assert net[1].weight.grad.abs().sum() > 0


def test_the_critic_takes_five_steps_for_one_of_the_generator():
    torch.manual_seed(0)
    generator = nn.Sequential(nn.Linear(2, 16), nn.Unflatten(1, (1, 4, 4)))
    critic = nn.Sequential(nn.Flatten(), nn.Linear(16, 1))
    real = torch.rand(12, 1, 4, 4)
    weights = []
    train_gan(generator, critic, lambda index: real[index], 12, latent=2, epochs=10, batch_size=12,
              callback=lambda epoch: weights.append((generator[0].weight.sum().item(), critic[1].weight.sum().item())))
    of_generator, of_critic = ([weight[i] for weight in weights] for i in (0, 1))
    assert len(set(of_critic)) == 11                                               # before, and after each of ten
    assert [b != a for a, b in pairwise(of_generator)] == [0, 0, 0, 0, 1, 0, 0, 0, 0, 1]
    assert not any(weight.requires_grad for net in (generator, critic) for weight in net.parameters())
    assert not generator.training
    assert not critic.training


def test_training_is_stable_on_five_of_five_seeds():
    """The critic's estimate falls far below its height, and both ways to a code tell the digits apart."""
    split = data.digits(3)
    for seed in SEEDS:
        torch.manual_seed(seed)
        gan = methods.AnoGAN(latent=16, width=16, steps=1).fit(split.train)
        assert gan.losses_[-1] < 0.25 * max(gan.losses_), seed
        found = methods.FastAnoGAN(latent=16, width=16).fit(split.train, gan=gan)
        assert metrics.auroc(split.labels, found.score(split.test)) > 0.9, seed


def test_the_search_lowers_every_start_and_leaves_the_networks_alone(gan):
    split = data.digits(3)
    before = {name: value.clone() for name, value in gan.state_dict().items()}
    losses = []
    codes, found = gan.search(split.calibration[:6], callback=lambda step, each: losses.append(each))
    assert len(losses) == gan.steps
    assert losses[0].shape == (gan.starts, 6)
    assert (losses[-1] < losses[0]).all()
    assert codes.shape == (6, 8)
    assert torch.allclose(found, gan.search_loss(split.calibration[:6], codes))
    assert (found <= losses[-1].min(0).values + 0.5).all()
    assert all(torch.equal(value, before[name]) for name, value in gan.state_dict().items() if name != "threshold_")
    assert all(weight.grad is None for weight in gan.generator.parameters())


def test_a_search_for_a_batch_is_a_search_for_each_image(gan):
    images = data.digits(3).test[:5]
    codes, losses = gan.search(images)
    for image, code, loss in zip(images, codes, losses, strict=True):
        one_code, one_loss = gan.search(image[None])
        assert torch.allclose(one_loss, loss, rtol=1e-2)
        assert torch.allclose(one_code[0], code, atol=0.2)


def test_both_trainings_can_be_watched_and_stay_frozen_in_a_file(gan, tmp_path):
    split, seen = data.digits(3), []

    def watch(epoch, found):
        seen.append((epoch, len(found.losses_), found.score(split.test[:2]).shape))

    methods.AnoGAN(latent=8, width=4, steps=2).fit(split.train, epochs=2, callback=watch)
    methods.FastAnoGAN(latent=8, width=16).fit(split.train, gan=gan, encoder_epochs=2, callback=watch)
    assert seen == [(epoch, epoch, (2,)) for epoch in (0, 1, 2)] * 2
    gan.save(tmp_path / "gan.pt")
    loaded = adlearn.load(tmp_path / "gan.pt")
    assert not any(weight.requires_grad for weight in loaded.parameters())


@pytest.mark.parametrize("options", [{"epochs": 0}, {"epochs": 1.5}, {"epochs": 1, "encoder_epochs": 0}])
def test_no_training_at_all_is_refused_before_it_begins(options):
    with pytest.raises(ValueError, match="epochs"):
        methods.FastAnoGAN(latent=8, width=4).fit(data.digits(3).train, **options)


def test_an_image_that_was_generated_is_found_again(gan):
    """What the generator drew it can draw: the loss left over is small beside that of other digits."""
    split = data.digits(3)
    with torch.no_grad():
        own = gan.generate(torch.randn(8, 8, generator=torch.Generator().manual_seed(1)))
    assert gan.search(own)[1].mean() < 0.5 * gan.search(split.test[split.labels == 1][:8])[1].mean()


def test_the_losses_are_those_of_the_papers(gan):
    images = data.digits(3).test[:4]
    codes = torch.randn(4, 8)
    fast = methods.FastAnoGAN(latent=8, width=16, kappa=2.0).fit(data.digits(3).train, gan=gan, encoder_epochs=1)
    with torch.no_grad():
        drawn = 2 * gan.generate(codes) - 1
        real = 2 * images - 1
        pixels = (real - drawn).flatten(1)
        features = gan.critic.features(real) - gan.critic.features(drawn)
        expected = 0.9 * pixels.abs().sum(1) + 0.1 * features.abs().sum(1)
        assert torch.allclose(gan.search_loss(images, codes), expected, rtol=1e-4)
        codes = fast.encoder(images)
        drawn = 2 * fast.generate(codes) - 1
        features = fast.critic.features(real) - fast.critic.features(drawn)
        expected = (real - drawn).square().mean((1, 2, 3)) + 2 * features.square().mean(1)
        assert torch.allclose(fast.score(images), expected, rtol=1e-4)
        assert torch.allclose(fast.localize(images), (images - fast.generate(codes)).abs().mean(1), atol=1e-6)


def test_the_encoder_is_trained_with_the_gan_as_it_is(gan):
    split = data.digits(3)
    fast = methods.FastAnoGAN(latent=8, width=16).fit(split.train, gan=gan, encoder_epochs=3)
    for name in ("generator", "critic"):
        ours, theirs = getattr(fast, name).state_dict(), getattr(gan, name).state_dict()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert len(fast.losses_) == 3
    with pytest.raises(ValueError, match="gan must have latent 4"):
        methods.FastAnoGAN(latent=4, width=16).fit(split.train, gan=gan)
    with pytest.raises(ValueError, match="holds no data yet"):
        methods.FastAnoGAN(latent=8, width=16).fit(split.train, gan=methods.AnoGAN(latent=8, width=16))


@pytest.mark.parametrize(("build", "message"), [
    (lambda: methods.AnoGAN(weight=1.5), "weight"), (lambda: methods.AnoGAN(steps=0), "steps"),
    (lambda: methods.AnoGAN(starts=0), "starts"), (lambda: methods.AnoGAN(search_lr=0), "search_lr"),
    (lambda: methods.FastAnoGAN(kappa=-1), "kappa"), (lambda: methods.FastAnoGAN(latent=0), "latent")])
def test_bad_options_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
