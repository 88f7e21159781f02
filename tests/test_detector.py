"""Saving and loading refuse what they cannot trust; the classic methods in detail."""

import pytest
import torch

import adlearn
from adlearn import cache, methods


@pytest.fixture
def images():
    return torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def saved(images, tmp_path):
    methods.NearestNeighbors(k=2, backbone=None).fit(images).save(tmp_path / "d.pt")
    return tmp_path / "d.pt"


def test_load_refuses_missing_damaged_and_foreign_files(saved, tmp_path):
    with pytest.raises(FileNotFoundError, match="no detector at"):
        adlearn.load(tmp_path / "none.pt")
    whole = saved.read_bytes()
    for content in (whole[:-200], b"", b"hello"):
        saved.write_bytes(content)
        with pytest.raises(ValueError, match="damaged, or was not written by adlearn"):
            adlearn.load(saved)
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    saved.write_bytes(flipped)
    with pytest.raises(ValueError, match="damaged"):
        adlearn.load(saved)


@pytest.mark.parametrize(("change", "message"), [
    ({"method": "os:system"}, "not one of this adlearn's methods"),
    ({"method": "adlearn.methods.classic:knn"}, "not one of this adlearn's methods"),
    ({"method": "adlearn.methods.nothing:KDE"}, "not one of this adlearn's methods"),
    ({"options": {"neighbours": 3}}, "cannot be built again"),
    ({"state": {}}, "does not fit this version"),
    ({"extra": 1}, "no saved detector"),
])
def test_load_refuses_what_does_not_fit(saved, change, message):
    cache.seal(saved, cache.unseal(saved) | change)
    with pytest.raises(ValueError, match=message):
        adlearn.load(saved)


def test_load_refuses_modules_that_the_detector_does_not_take(saved):
    with pytest.raises(ValueError, match="hand over the modules"):
        adlearn.load(saved, encoder=torch.nn.Identity())


def test_an_unfitted_detector_is_not_saved(tmp_path):
    with pytest.raises(ValueError, match="not fitted"):
        methods.KDE(backbone=None).eval().save(tmp_path / "d.pt")


def test_load_refuses_other_backbone_weights(images, tmp_path):
    methods.NearestNeighbors(k=2).fit(images).save(tmp_path / "d.pt")
    kept = cache.unseal(tmp_path / "d.pt")
    kept["backbones"]["network"]["sha256"] = "0" * 64
    cache.seal(tmp_path / "d.pt", kept)
    with pytest.raises(ValueError, match="other weights of 'efficientnet_lite0'"):
        adlearn.load(tmp_path / "d.pt")


def test_a_failing_save_keeps_the_old_file(saved, images, monkeypatch):
    before = saved.read_bytes()

    def refuse(*_):
        raise OSError("disk full")

    monkeypatch.setattr(cache.os, "replace", refuse)
    with pytest.raises(OSError, match="disk full"):
        methods.NearestNeighbors(k=1, backbone=None).fit(images).save(saved)
    assert saved.read_bytes() == before
    assert len(list(saved.parent.iterdir())) == 1


def test_nearest_neighbours_on_pixels_by_hand(images):
    detector = methods.NearestNeighbors(k=3, backbone=None).fit(images[:8])
    rows = images.flatten(1)
    expected = torch.cdist(rows[8:], rows[:8]).sort(1).values[:, :3].mean(1)
    assert torch.allclose(detector.score(images[8:]), expected, atol=1e-5)
    with pytest.raises(ValueError, match="at least k = 3"):
        methods.NearestNeighbors(k=3, backbone=None).fit(images[:2])


def test_features_are_kept_when_asked_for(images, cache_folder, monkeypatch):
    plain = methods.NearestNeighbors(k=2).fit(images)
    assert cache.files() == []
    detector = methods.NearestNeighbors(k=2, keep_features=True).fit(images)
    scores = detector.score(images)
    assert len(cache.files()) == 1
    assert torch.allclose(scores, plain.score(images), atol=1e-4)
    again = methods.NearestNeighbors(k=2, keep_features=True)
    monkeypatch.setattr(again.network, "forward", lambda *_: pytest.fail("the network ran again"))
    assert torch.equal(again.fit(images.flip(0)).score(images), scores)


def test_fit_and_score_again_on_fewer_images(images):
    """Refitting replaces everything that was learnt."""
    detector = methods.KMeans(k=2, backbone=None).fit(images)
    fresh = methods.KMeans(k=2, backbone=None)
    torch.manual_seed(1)
    first = detector.fit(images[:6]).score(images)
    torch.manual_seed(1)
    assert torch.equal(first, fresh.fit(images[:6]).score(images))


def test_feature_dictionary_map_by_hand():
    """The score at one position, from the definition; images of the grid's own size need no interpolation."""
    images = torch.rand(6, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    detector = methods.FeatureDictionary(k=8, m=2, patch=1).fit(images)
    patch = detector.patches(images[:1])[0, :, 5, 7]
    reduced = (patch - detector.mean_) @ detector.axes_
    expected = (detector.entries_ - reduced).norm(dim=1).sort().values[:2].mean()
    assert torch.allclose(detector.anomaly_map(images[:1])[0, 5, 7], expected, rtol=1e-3)
    kept = detector.axes_.shape[1]
    assert torch.allclose(detector.axes_.T @ detector.axes_, torch.eye(kept), atol=1e-4)


@pytest.mark.parametrize(("options", "message"), [
    ({"k": 2, "m": 3}, "m must be at most k"), ({"patch": 2}, "patch must be odd"),
    ({"variance": 0.0}, "variance must be above 0"), ({"k": 0}, "k must be a whole number"),
])
def test_feature_dictionary_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        methods.FeatureDictionary(**options)
