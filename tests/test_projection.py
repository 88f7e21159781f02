"""The 2-D views: principal components against scikit-learn, films that do not jump."""

import sys

import pytest
import torch
from sklearn.decomposition import PCA

from adlearn.projection import Projection, aligned, project

features = torch.randn(60, 7, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 8)


def test_pca_equals_scikit_learn_up_to_sign():
    view, peer = Projection(), PCA(2)
    ours, theirs = view.fit_transform(features), torch.from_numpy(peer.fit_transform(features.double()))
    torch.testing.assert_close(ours.abs().double(), theirs.abs(), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(view.explained_, torch.from_numpy(peer.explained_variance_ratio_))
    assert ours.shape == (60, 2)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(project(features), ours)
    torch.testing.assert_close(view.transform(features[:5]), ours[:5])
    assert view.fit(features) is view


def test_signs_are_fixed():
    axes = Projection().fit(features).axes_
    assert (axes.gather(0, axes.abs().argmax(dim=0)[None]) > 0).all()
    torch.testing.assert_close(project(features.flip(0)), project(features).flip(0))


def test_collapsed_features_give_one_point():
    view = Projection()
    assert view.fit_transform(torch.ones(5, 3)).abs().max() == 0
    assert torch.isfinite(view.explained_).all()


def test_aligned_undoes_turns_and_mirrors():
    turn, _ = torch.linalg.qr(torch.randn(7, 7, generator=torch.Generator().manual_seed(1)))
    wider = torch.cat([-features, torch.zeros(60, 3)], dim=1)
    frames = aligned([features, features @ turn + 3, wider])
    assert len(frames) == 3
    for frame in frames[1:]:
        torch.testing.assert_close(frame, frames[0], rtol=1e-4, atol=1e-4)


def test_aligned_keeps_distances():
    moved = features + 0.3 * torch.randn(60, 7, generator=torch.Generator().manual_seed(1))
    frame = aligned([features, moved])[1]
    torch.testing.assert_close(torch.pdist(frame), torch.pdist(project(moved)), rtol=1e-4, atol=1e-4)


def test_umap_is_handed_the_features_and_a_seed_from_torch(monkeypatch):
    class Stub:
        def __init__(self, **options):
            self.options = options

        def fit_transform(self, rows):
            return rows[:, :2]

        transform = fit_transform

    monkeypatch.setitem(sys.modules, "umap", type(sys)("umap"))
    sys.modules["umap"].UMAP = Stub
    torch.manual_seed(5)
    view = Projection("umap")
    torch.testing.assert_close(view.fit_transform(features), features[:, :2])
    torch.testing.assert_close(view.transform(features[:3]), features[:3, :2])
    torch.manual_seed(5)
    assert view.reducer_.options["random_state"] == int(torch.randint(2**31, (1,)))


def test_umap_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(ImportError, match="pip install umap-learn"):
        project(features, "umap")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: project(features, "tsne"), "method must be one of"),
        (lambda: project(features[:2]), "at least 3 rows"),
        (lambda: project(features[:, :1]), "2 columns"),
        (lambda: project(features / 0), "features must be finite"),
        (lambda: Projection().fit(features).transform(features[:, :6]), "7 columns"),
        (lambda: aligned([features, features[:5]]), "same items"),
        (lambda: aligned([]), "same items"),
        (lambda: aligned(5), "snapshots must be a list"),
        (lambda: aligned([5]), "features must have shape"),
        (lambda: Projection().transform(features), "call fit"),
        (lambda: Projection("umap").transform(features), "call fit"),
        (lambda: Projection(["pca"]), "method must be one of"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
