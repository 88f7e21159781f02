"""SPADE against double loops over its formulas, and on a reader's own folder."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.ndimage import gaussian_filter

import adlearn
from adlearn import backbones
from adlearn.methods import SPADE
from adlearn.methods.spade import enlarged, joined, smoothed, to_half


@pytest.fixture(scope="module")
def images():
    torch.manual_seed(0)
    return torch.rand(9, 1, 40, 40)


@pytest.fixture(scope="module")
def fitted(images):
    return SPADE(size=64, neighbors=3, sigma=0).fit(images[:6])


def test_from_images_to_maps_as_the_paper_says():
    """Written down again from the formulas, with scipy's Gaussian, on images that are not square."""
    torch.manual_seed(2)
    images = torch.rand(7, 1, 40, 56)
    detector = SPADE(size=64, neighbors=2, sigma=1.5).fit(images[:5])
    *stages, last = backbones.load("efficientnet_lite0", (1, 2, 3, 4), size=64)(images)
    pooled = last.mean((2, 3))
    maps = torch.cat([F.interpolate(stage.half().float(), (16, 16), mode="bilinear") for stage in stages], dim=1)
    for y in (5, 6):
        squared = (pooled[:5] - pooled[y]).square().sum(1)
        near = squared.argsort()[:2]
        assert detector.score(images[y:y + 1]).item() == pytest.approx(squared[near].mean().item(), rel=1e-3)
        gallery = maps[near].movedim(1, 3).reshape(2 * 256, -1)
        found = torch.cdist(maps[y].flatten(1).T, gallery, compute_mode="donot_use_mm_for_euclid_dist").amin(1) ** 2
        large = F.interpolate(found.view(1, 1, 16, 16), (64, 64), mode="bilinear")[0, 0].numpy()
        smooth = torch.from_numpy(gaussian_filter(large, 1.5, mode="mirror", truncate=4.0))
        expected = F.interpolate(smooth[None, None], (40, 56), mode="bilinear", antialias=True)[0, 0]
        assert torch.allclose(detector.localize(images[y:y + 1])[0], expected, rtol=1e-3)


def test_a_folder_is_read_as_large_as_the_network_looks(tmp_path):
    for number in range(3):
        Image.fromarray(np.full((300, 300), 80 * number, np.uint8)).save(tmp_path / f"{number}.png")
    large, small = (SPADE(size=size, neighbors=2) for size in (288, 64))
    for detector, side in ((large, 288), (small, 256)):
        seen = []
        detector.network.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0].shape[3]))
        assert detector.fit(tmp_path).localize(tmp_path).shape == (3, side, side)
        assert set(seen) == {side}


def test_a_detector_whose_network_forgot_is_not_saved(images, tmp_path):
    detector = SPADE(size=64, neighbors=3)
    detector.network.forget(images)
    with pytest.raises(ValueError, match="'efficientnet_lite0' with random weights"):
        detector.fit(images).save(tmp_path / "spade.pt")
    assert not list(tmp_path.iterdir())


def test_no_row_of_a_large_gallery_is_dropped():
    torch.manual_seed(1)
    gallery = 3 + torch.randn(3, 4, 41, 41).half()                          # 5043 rows, a multiple of no block
    query = gallery[-1:, :, -5:, -5:]
    assert SPADE(size=64).distances(query, gallery).max() == 0


def test_the_image_score_by_hand(fitted, images):
    wholes = fitted.embed(images)
    for y in range(6, 9):
        squared = sorted(((wholes[y] - wholes[x]) ** 2).sum().item() for x in range(6))
        assert fitted.score(images[y:y + 1]).item() == pytest.approx(sum(squared[:3]) / 3, rel=1e-3)


@pytest.mark.parametrize("kappa", [1, 4])
def test_every_position_is_compared_with_the_whole_gallery(fitted, images, kappa):
    """And the nearest one is planted at its end."""
    torch.manual_seed(1)
    query, gallery = torch.randn(1, 4, 5, 5).half(), 3 + torch.randn(3, 4, 7, 7).half()
    gallery[-1, :, -1, -1] = query[0, :, 2, 1]
    detector = SPADE(size=64, kappa=kappa)
    found = detector.distances(query, gallery)
    for row in range(5):
        for column in range(5):
            squared = sorted(((gallery[k, :, i, j].float() - query[0, :, row, column].float()) ** 2).sum().item()
                             for k in range(3) for i in range(7) for j in range(7))
            assert found[row, column].item() == pytest.approx(sum(squared[:kappa]) / kappa, rel=1e-3, abs=1e-5)
    if kappa == 1:
        assert found[2, 1] == 0


def test_the_same_position_only(images):
    torch.manual_seed(1)
    query, gallery = torch.randn(1, 4, 5, 5).half(), torch.randn(3, 4, 5, 5).half()
    found = SPADE(size=64, neighbors=3, kappa=2, positions="same").distances(query, gallery)
    squared = (gallery.float() - query.float()).square().sum(1).sort(0).values
    assert torch.allclose(found, squared[:2].mean(0), rtol=1e-4)
    assert (found >= SPADE(size=64, neighbors=3, kappa=2).distances(query, gallery) - 1e-4).all()


def test_levels_are_joined_or_averaged(fitted, images):
    one, other = (SPADE(size=64, neighbors=3, sigma=0, combine=how).fit(images[:6]) for how in
                  ("concatenate", "average"))
    _, levels = one.describe(images[6:7])
    near = one.retrieve(one.embed(images[6:7]))[1][0]
    galleries = [getattr(one, name)[near] for name in ("level_0_", "level_1_", "level_2_")]
    whole = one.distances(joined(levels), joined(galleries))
    by_level = torch.stack([enlarged(one.distances(*pair)[None, None], (64, 64))[0, 0]
                            for pair in zip(levels, galleries, strict=True)]).mean(0)
    for detector, expected in ((one, enlarged(whole[None, None], (64, 64))[0, 0]), (other, by_level)):
        found = detector.compare(levels, galleries)[0, 0]
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_training_image_has_distance_0(images):
    detector = SPADE(size=64, neighbors=1).fit(images[:6])
    assert detector.score(images[:6]).max() == 0
    assert detector.localize(images[:2]).max() < 1e-6


def test_smoothing_is_scipys():
    maps = torch.rand(2, 1, 30, 20)
    expected = gaussian_filter(maps[:, 0].numpy(), 2.0, axes=(1, 2), mode="mirror", truncate=4.0)
    assert np.allclose(smoothed(maps, 2.0)[:, 0], expected, atol=1e-5)
    assert smoothed(maps, 0) is maps
    assert torch.allclose(smoothed(torch.ones(1, 1, 4, 4), 50.0), torch.ones(1, 1, 4, 4))


def test_features_are_kept_in_half_precision_and_in_the_file(fitted, images, tmp_path):
    assert fitted.level_0_.dtype == torch.float16
    assert fitted.level_0_.shape == (6, 24, 16, 16)
    fitted.save(tmp_path / "spade.pt")
    again = adlearn.load(tmp_path / "spade.pt")
    assert torch.equal(again.localize(images[6:]), fitted.localize(images[6:]))
    assert again.level_0_.dtype == torch.float16


def test_a_folder_of_all_sorts_of_files(tmp_path):
    """Mixed sizes and modes are taken; what no one can read is named, and the rest goes on."""
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 255, (50, 40), dtype=np.uint8)
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(grey).save(tmp_path / "grey.png")
    Image.fromarray(rng.integers(0, 255, (30, 60, 4), dtype=np.uint8)).save(tmp_path / "alpha.png")
    Image.fromarray(rng.integers(0, 65535, (64, 64), dtype=np.uint16)).save(tmp_path / "sixteen.png")
    Image.fromarray(rng.integers(0, 255, (80, 60, 3), dtype=np.uint8)).save(tmp_path / "turned.jpg", exif=turned)
    (tmp_path / "broken.jpg").write_bytes(b"no image at all")
    (tmp_path / "notes.txt").write_text("not looked at")
    with pytest.warns(UserWarning, match=r"broken\.jpg"):
        detector = SPADE(size=64, neighbors=2).fit(tmp_path)
    assert len(detector.pooled_) == 4
    with pytest.warns(UserWarning, match=r"broken\.jpg"):
        assert detector.score(tmp_path).shape == (4,)


@pytest.mark.parametrize(("options", "complaint"), [
    ({"neighbors": 0}, "neighbors"),
    ({"kappa": 0}, "kappa"),
    ({"kappa": 6, "neighbors": 5, "positions": "same"}, "at most the 5 neighbours"),
    ({"combine": "both"}, "combine"),
    ({"positions": "some"}, "positions"),
    ({"sigma": -1}, "sigma"),
    ({"normalize": 1}, "normalize"),
    ({"layers": (3, 9)}, "layers"),
    ({"layers": (3, 1)}, "layers must be ascending"),
    ({"layers": (1, 1)}, "layers must be ascending"),
    ({"layers": ()}, "layers must be ascending"),
    ({"layers": 3}, "layers must be ascending"),
    ({"pooled": -1}, "pooled"),
    ({"pooled": "4"}, "pooled"),
    ({"pooled": True}, "pooled"),
    ({"size": 0}, "size"),
])
def test_refuses(options, complaint):
    with pytest.raises(ValueError, match=complaint):
        SPADE(**options)


def test_refuses_too_few_images_and_features_beyond_half_precision(images):
    with pytest.raises(ValueError, match="at least neighbors = 5"):
        SPADE(size=64).fit(images[:4])
    with pytest.raises(ValueError, match="65504"):
        to_half(torch.tensor([1e5]))
    with pytest.raises(ValueError, match="features must be finite"):
        to_half(torch.tensor([float("nan")]))


def test_features_have_length_1_if_asked_for(images):
    for normalize in (True, False):
        _, levels = SPADE(size=64, normalize=normalize).describe(images)
        lengths = [level.float().norm(dim=1) for level in levels]
        assert all(torch.allclose(length, torch.ones(()), atol=1e-3) for length in lengths) is normalize
