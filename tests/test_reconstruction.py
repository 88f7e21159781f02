"""What all reconstructing detectors share: fitting, tiles, sizes, channels, refusals."""

from itertools import pairwise

import pytest
import torch

import adlearn
from adlearn import methods
from adlearn.nets import LatentDecoder, LatentEncoder
from adlearn.reconstruction import Reconstructor


class Echo(Reconstructor):
    """Draws every image as it is, but for the pixels of its first column of each tile, which come out black."""

    def build(self, channels, side):
        self.seen = []

    def drawn(self, images):
        self.seen.append(tuple(images.shape))
        drawn = images.clone()
        drawn[..., 0] = 0
        return drawn


def echo(channels=1, side=8, patch=None):
    detector = Echo(patch=patch)
    detector.shape_ = torch.tensor([channels, side])
    detector.build(channels, side)
    return detector.eval()


def test_tiles_cover_every_pixel_and_average_where_they_overlap():
    detector = echo(patch=8)
    images = torch.ones(2, 1, 8, 20)
    drawn = detector.reconstruct(images)
    assert drawn.shape == images.shape
    assert detector.seen == [(2, 1, 8, 8)] * 4                           # at 0, 4, 8 and 12
    columns = drawn[0, 0, 0]
    faded = torch.tensor([4, 8, 12])                                     # the first columns of the later tiles
    assert columns[0] == 0                                               # no other tile covers this one
    assert torch.allclose(columns[[i for i in range(1, 20) if i not in faded]], torch.ones(16))
    hann = torch.hann_window(10, periodic=False)[1:-1]
    assert torch.allclose(columns[faded], hann[4] / (hann[4] + hann[0]))  # a tile says little about its own border
    assert columns[4] > 0.85
    heat = detector.localize(images)
    assert torch.allclose(heat[0, 0, faded], hann[0] / (hann[4] + hann[0]))


def test_tiles_are_flush_with_the_border_whatever_the_size():
    detector = echo(patch=8)
    for height, width in ((8, 8), (9, 8), (13, 17), (16, 24), (31, 8)):
        covered = torch.zeros(height, width)
        for top, left in detector.places(torch.rand(1, 1, height, width)):
            covered[top:top + 8, left:left + 8] += 1
        assert covered.shape == (height, width)
        assert covered.amin() >= 1
        assert max(top for top, _ in detector.places(torch.rand(1, 1, height, width))) == height - 8
    places = sorted({left for _, left in detector.places(torch.rand(1, 1, 8, 33))})
    assert all(b - a <= 4 for a, b in pairwise(places))                              # half of a tile at most


def test_images_of_one_tile_are_those_of_the_plain_pass():
    torch.manual_seed(0)
    images = torch.rand(12, 1, 16, 16)
    detector = methods.AutoEncoder(latent=4, width=4).fit(images, epochs=1)
    with torch.no_grad():
        assert torch.equal(detector.reconstruct(images), detector.drawn(images))
        assert torch.equal(detector.embed(images), detector.code(images))


def test_whole_image_detectors_resize_and_map_back():
    detector = echo(side=8)
    large = torch.rand(3, 1, 32, 32)
    assert detector.localize(large).shape == (3, 32, 32)
    assert detector.seen == [(3, 1, 8, 8)]
    with pytest.raises(ValueError, match="square, as those that this Echo was fitted on"):
        detector.localize(torch.rand(2, 1, 8, 16))
    with pytest.raises(ValueError, match="at least 8 pixels"):
        echo(patch=8).localize(torch.rand(2, 1, 6, 16))


def test_grey_and_coloured_images_are_made_to_fit():
    grey, colour = torch.rand(2, 1, 8, 8), torch.rand(2, 3, 8, 8)
    assert echo(channels=3).reconstruct(grey).shape == (2, 3, 8, 8)
    assert echo(channels=1).reconstruct(colour).shape == (2, 1, 8, 8)


def test_patches_are_cut_at_random_places_in_each_step():
    detector = Echo(patch=3)
    torch.manual_seed(0)
    images = torch.arange(100.0).view(1, 1, 10, 10).repeat(500, 3, 1, 1)
    cut = detector.cut(images)
    assert cut.shape == (500, 3, 3, 3)
    corners = cut[:, 0, 0, 0].long()
    assert set((corners // 10).tolist()) == set((corners % 10).tolist()) == set(range(8))
    steps = cut - cut[:, :, :1, :1]
    assert torch.equal(steps[7, 2], torch.tensor([[0.0, 1, 2], [10, 11, 12], [20, 21, 22]]))
    assert not torch.equal(detector.cut(images), cut)


def test_learning_from_patches_needs_no_square_images_and_finds_a_defect_in_larger_ones():
    torch.manual_seed(0)
    wave = 0.5 + 0.4 * torch.sin(torch.arange(48) * 0.8).expand(20, 1, 32, 48)
    images = (wave + 0.02 * torch.randn(20, 1, 32, 48)).clamp(0, 1)
    detector = methods.AutoEncoder(latent=4, width=8, patch=16).fit(images, epochs=150, batch_size=20, lr=3e-3)
    broken = images[:4].clone()
    broken[:, :, 10:16, 20:26] = 0
    heat = detector.localize(broken)
    assert heat.shape == (4, 32, 48)
    assert (heat[:, 10:16, 20:26].mean((1, 2)) > 5 * detector.localize(images[:4]).mean((1, 2))).all()


@pytest.mark.parametrize("method", [methods.VAE, methods.AnoGAN, methods.FastAnoGAN])
def test_every_method_learns_from_patches_of_colour_and_survives_a_file(method, tmp_path):
    torch.manual_seed(0)
    images = torch.rand(6, 3, 12, 20)
    options = {"steps": 3} if method is methods.AnoGAN else {}
    detector = method(latent=2, width=4, patch=8, **options).fit(images, epochs=2)
    scores, maps = detector.score(images), detector.localize(images)
    assert maps.shape == (6, 12, 20)
    detector.save(tmp_path / "detector.pt")
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    loaded = adlearn.load(tmp_path / "detector.pt")
    assert torch.equal(torch.rand(1), expected)                          # loading draws nothing
    assert torch.equal(loaded.score(images), scores)
    assert torch.equal(loaded.localize(images), maps)


@pytest.mark.parametrize(("images", "options", "message"), [
    (torch.rand(4, 1, 8, 16), {}, "must be square"),
    (torch.rand(4, 1, 12, 12), {}, "images of 12×12 pixels: the side must be 8, 16, 32"),
    (torch.rand(4, 1, 16, 16), {"patch": 12}, "12×12 pixels: the side must be 8, 16, 32, 64, ... .* with patch="),
    (torch.rand(4, 1, 16, 16), {"patch": 32}, "patch must be at most"),
    (torch.rand(1, 1, 16, 16), {}, "at least 2"),
])
def test_what_cannot_be_learnt_from_is_refused(images, options, message):
    for method in (methods.AutoEncoder, methods.VAE, methods.AnoGAN, methods.FastAnoGAN):
        with pytest.raises(ValueError, match=message):
            method(**options).fit(images, epochs=1)


def test_a_fit_that_is_interrupted_changes_nothing():
    images = torch.rand(8, 1, 8, 8)
    detector = methods.VAE(latent=2, width=4).fit(images, epochs=1)
    before = detector.score(images)

    def stop(epoch, _):
        if epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        detector.fit(torch.rand(8, 3, 16, 16), epochs=3, callback=stop)
    assert torch.equal(detector.score(images), before)
    assert len(detector.losses_) == 1


def test_the_callback_sees_the_losses_grow_and_can_score():
    seen, few = [], torch.rand(2, 1, 8, 8)
    methods.AutoEncoder(latent=2, width=4).fit(
        torch.rand(8, 1, 8, 8), epochs=3,
        callback=lambda epoch, found: seen.append((epoch, len(found.losses_), found.score(few).shape)))
    assert seen == [(epoch, epoch, (2,)) for epoch in range(4)]


def test_the_mean_image_is_the_mean():
    images = torch.rand(9, 3, 8, 8)
    detector = methods.MeanImage().fit(images)
    assert torch.allclose(detector.reconstruct(images[:2]), images.mean(0).expand(2, -1, -1, -1))
    assert torch.allclose(detector.localize(images), (images - images.mean(0)).square().mean(1), atol=1e-7)


@pytest.mark.parametrize("side", [8, 16, 64])
def test_codes_and_images_have_the_promised_shapes(side):
    encoder = LatentEncoder(channels=3, side=side, latent=5, width=4)
    decoder = LatentDecoder(latent=5, channels=3, side=side, width=4)
    images = torch.rand(2, 3, side, side)
    assert encoder(images).shape == (2, 5)
    assert decoder(encoder(images)).shape == images.shape
    assert encoder.features(images).shape == (2, encoder.code.in_features)


def test_a_critic_has_no_batch_norm():
    critic = LatentEncoder(channels=1, side=16, latent=1, norm=False)
    assert not any(isinstance(part, torch.nn.BatchNorm2d) for part in critic.modules())
    images = torch.rand(4, 1, 16, 16)
    critic.train()
    assert torch.allclose(critic(images)[:1], critic(images[:1]), atol=1e-6)          # an image alone is judged alike
