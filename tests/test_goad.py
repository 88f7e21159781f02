"""GOAD: the loss and the score against loops, the transformations, rows."""

import pytest
import torch
import torch.nn.functional as F

from adlearn import augment, data, methods, metrics
from adlearn.methods import goad
from adlearn.methods.goad import centre_triplet, goad_loss, log_probability


def features(M=5, B=4, D=3, seed=0):
    return torch.randn(M, B, D, generator=torch.Generator().manual_seed(seed))


def test_the_centre_triplet_loss_against_loops():
    f, margin = features(), 0.7
    centres = f.mean(1)
    total = 0.0
    for m in range(5):
        for i in range(4):
            own = (f[m, i] - centres[m]).square().sum()
            others = min((f[m, i] - centres[k]).square().sum() for k in range(5) if k != m)
            total += max(0.0, (own + margin - others).item())
    assert centre_triplet(f, margin).item() == pytest.approx(total / 20, rel=1e-5)


def test_the_centres_of_the_loss_have_gradients():
    f = features().requires_grad_()
    free, = torch.autograd.grad(centre_triplet(f, 5.0), f)
    g = features()
    squares = ((g.requires_grad_()[:, :, None] - features().mean(1)) ** 2).sum(3)       # centres held fixed
    own = squares.diagonal(dim1=0, dim2=2).T
    nearest = squares.masked_fill(torch.eye(5, dtype=torch.bool)[:, None], torch.inf).amin(2)
    fixed, = torch.autograd.grad((own + 5.0 - nearest).clamp(min=0).mean(), g)
    assert not torch.allclose(free, fixed)


def test_probabilities_against_the_formula_and_epsilon_bounds_them():
    squares = 3 * torch.rand(4, 6, 4, generator=torch.Generator().manual_seed(0))
    for epsilon in (0.0, 1e-3):
        found = log_probability(squares, epsilon)
        for m in range(4):
            for i in range(6):
                parts = torch.exp(-squares[m, i]) + epsilon
                assert found[m, i].item() == pytest.approx((parts[m] / parts.sum()).log().item(), rel=1e-4)
    far = torch.full((4, 1, 4), 1e4)
    assert torch.allclose(log_probability(far, 1e-6), torch.tensor(0.25).log())         # far from all: uncertain
    assert torch.allclose(log_probability(far, 0.0), torch.tensor(0.25).log(), atol=1e-3)


def test_the_objective_is_cross_entropy_and_its_company():
    f, logits = features(), torch.randn(5, 4, 5, generator=torch.Generator().manual_seed(1))
    entropy = sum(F.cross_entropy(logits[m], torch.full((4,), m)) for m in range(5)) / 5
    expected = entropy + 0.1 * centre_triplet(f, 0.2) + 10 * f.square().mean()
    assert torch.allclose(goad_loss(f, logits, margin=0.2, weight=0.1, squares=10.0), expected)


def test_distances_keep_their_precision_under_autocast():
    f = 0.1 * features(M=8, B=16, D=64) + 3 * features(M=8, B=1, D=64, seed=1)
    expected = centre_triplet(f, 0.1)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.allclose(centre_triplet(f, 0.1), expected, rtol=1e-5)


def test_fit_hands_its_settings_on(monkeypatch):
    seen = []

    def watched(f, logits, **settings):
        seen.append((f.shape[:2], settings))
        return goad_loss(f, logits, **settings)

    monkeypatch.setattr(goad, "goad_loss", watched)
    methods.GOAD(margin=0.3, weight=0.7).fit(torch.rand(12, 1, 16, 16), epochs=1, batch_size=4)
    assert seen == [((4, 4), {"margin": 0.3, "weight": 0.7, "squares": 10.0})] * 3       # four copies of four images
    monkeypatch.setenv("ADLEARN_PROFILE", "paper")
    paper = methods.GOAD()
    assert paper.shift == "geometric"
    assert paper.epochs(None, 5000, paper.batch_sizes["paper"], paper.training_steps) == 16


def test_the_72_transformations():
    x = torch.rand(2, 1, 16, 16)
    found = augment.geometric(x)
    assert found.shape == (144, 1, 16, 16)
    assert torch.equal(found[:2], x)
    assert len(found[::2].flatten(1).unique(dim=0)) == 72
    assert torch.equal(found[2:4], torch.rot90(x, 1, (2, 3)))
    plain = augment.rotations(x)
    assert all((found == one).flatten(1).all(1).any() for one in plain)
    moved = F.pad(x, (4,) * 4, mode="reflect")[:, :, :16, 4:20]                         # down by a quarter
    assert any(torch.equal(found[i:i + 2], moved) for i in range(0, 144, 2))


def test_all_copies_of_an_image_share_its_batch_and_the_score_is_their_sum():
    detector = methods.GOAD(shift="rotations").fit(torch.rand(12, 1, 16, 16), epochs=2, batch_size=4)
    x = torch.rand(5, 1, 16, 16)
    with torch.no_grad():
        copies = detector.copies(x)
        for turn in range(4):
            assert torch.allclose(copies[turn], detector.net(2 * torch.rot90(x, turn, (2, 3)) - 1), atol=1e-5)
        squares = torch.cdist(copies, detector.centres_.expand(4, -1, -1)).square()
    assert torch.allclose(detector.score(x), -log_probability(squares, detector.epsilon).sum(0), rtol=1e-3, atol=1e-4)


def test_the_centres_are_those_of_the_trained_network():
    x = torch.rand(12, 1, 16, 16)
    detector = methods.GOAD().fit(x, epochs=2, batch_size=4)
    with torch.no_grad():
        assert torch.allclose(detector.centres_, detector.copies(x).mean(1), atol=1e-5)


def test_ones_own_shift_is_a_function(tmp_path):
    import adlearn

    shift = augment.beside(lambda x: 1 - x)
    detector = methods.GOAD(shift=shift).fit(torch.rand(12, 1, 16, 16), epochs=1)
    assert detector.linear.out_features == 2
    detector.save(tmp_path / "d.pt")
    assert torch.equal(adlearn.load(tmp_path / "d.pt", shift=shift).score(torch.zeros(2, 1, 16, 16)),
                       detector.score(torch.zeros(2, 1, 16, 16)))
    with pytest.raises(ValueError, match="shift must be one of"):
        methods.GOAD(shift="mirrors")


def test_rows_of_numbers():
    split = data.tabular("breast_cancer")
    torch.manual_seed(0)
    detector = methods.TabularGOAD(transforms=64).fit(split.train, epochs=2)
    assert metrics.auroc(split.labels, detector.score(split.test)) > 0.93
    assert len(detector.losses_) == 2
    plain = methods.TabularGOAD(transforms=64, shifted=False).fit(split.train, epochs=2)
    assert plain.offsets_.abs().max() == 0
    assert plain.centres_.norm(dim=1).max() < 1e-4 < detector.centres_.norm(dim=1).min()     # rows of mean 0
    before, kept = detector.score(split.test), []

    def stop(epoch, new):
        kept.append(new.score(split.test[:3]))
        if epoch:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        detector.fit(split.train[:50], callback=stop)
    with pytest.raises(ValueError, match="rows must be at least 2"):
        detector.fit(split.train[:1])
    assert torch.equal(detector.score(split.test), before)
    assert len(kept) == 2
    again = []
    for which in (detector, methods.TabularGOAD(transforms=64)):                         # a second fit begins anew
        torch.manual_seed(5)
        again.append(which.fit(split.train).score(split.test))
    assert torch.equal(*again)
    other = methods.TabularGOAD(transforms=64)
    with pytest.raises(ValueError, match="no data yet"):
        other.score(split.test)
    other.load_state_dict(detector.state_dict())
    assert torch.equal(other.score(split.test), detector.score(split.test))
    with pytest.raises(ValueError, match="30 columns"):
        detector.score(split.test[:, :5])
