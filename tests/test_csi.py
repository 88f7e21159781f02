"""CSI: the loss and the score against the formulas, the pitfalls, OOD-ness."""

import pytest
import torch
import torch.nn.functional as F

import adlearn
from adlearn import augment, losses, methods, metrics, nets
from adlearn.methods.csi import ood_ness


def images(count=16, seed=0):
    return torch.rand(count, 1, 16, 16, generator=torch.Generator().manual_seed(seed))


def encoder():
    torch.manual_seed(0)
    return nets.Encoder(channels=1, widths=(4, 8))


def fitted(**options):
    torch.manual_seed(1)
    return methods.CSI(encoder=encoder(), **options).fit(images(), epochs=2, batch_size=8)


def test_the_loss_is_nt_xent_over_all_shifted_copies_and_the_shifts_cross_entropy():
    detector, batch = fitted(), images(4, 2)
    with torch.no_grad():
        copies = augment.rotations(batch)
        h = detector.model.embed(copies)
        expected = losses.info_nce(detector.model.head(h), detector.model.head(h), temperature=0.5)
        turns = torch.arange(4).repeat_interleave(4)
        expected = expected + F.cross_entropy(detector.linear(h), turns)
        assert torch.allclose(detector.objective(batch, augment.rotations), expected, rtol=1e-4)


def test_the_score_against_the_formula():
    """Same-shift neighbours, lengths that are not normalised, logits, both balances, larger is more anomalous."""
    detector, train, asked = fitted(views=1), images(), images(3, 4)
    with torch.no_grad():
        scores = torch.zeros(3)
        for turn in range(4):
            h_train, h = (detector.model.embed(torch.rot90(x, turn, (2, 3))) for x in (train, asked))
            z_train, z = detector.model.head(h_train), detector.model.head(h)
            cosine = F.normalize(z, dim=1) @ F.normalize(z_train, dim=1).T
            of_length = 1 / z_train.norm(dim=1).mean()
            of_logit = 1 / detector.linear(h_train)[:, turn].mean().clamp(min=1e-3)
            scores -= (of_length * cosine.amax(1) * z.norm(dim=1) + of_logit * detector.linear(h)[:, turn]) / 4
    assert torch.allclose(detector.score(asked), scores, rtol=1e-3, atol=1e-4)


def test_a_training_image_is_its_own_neighbour():
    near, length, logits = fitted().terms(images())
    assert near.shape == length.shape == logits.shape == (4, 16)
    assert torch.allclose(near, torch.ones(4, 16), atol=1e-4)


def test_the_ensemble_averages_outputs_over_crops_of_one_area():
    detector = fitted(views=3)
    _, _, height, width = detector.boxes_.unbind(1)
    assert detector.boxes_.shape == (3, 4)
    assert ((height * width / 256 - 0.54).abs() < 0.08).all()
    x = images(2, 5)
    with torch.no_grad():
        parts = [detector.model(torch.cat([F.interpolate(
            augment.rotations(x)[i:i + 1, :, t:t + h, c:c + w], (16, 16), mode="bilinear", align_corners=False)
            for i in range(8)])) for t, c, h, w in detector.boxes_.tolist()]
        expected = sum(parts) / 3
    assert torch.allclose(detector.outputs(x)[0].flatten(0, 1), expected, atol=1e-4)


def test_without_a_shift_it_is_simclr():
    detector = fitted(shift=None, parts=("con",))
    assert detector.bank_.shape[0] == 1
    assert detector.score(images(3, 4)).shape == (3,)


def test_parts_of_the_score():
    for part, expected in (("con", 0), ("cls", 1)):
        detector = fitted(parts=(part,), views=1)
        near, length, logits = detector.terms(images(3, 4))
        values = near * length if part == "con" else logits
        assert torch.allclose(detector.score(images(3, 4)), -(detector.balance_[expected, :, None] * values).mean(0))
    with pytest.raises(ValueError, match="parts must be one of"):
        methods.CSI(parts=("contrast",))


def test_ones_own_shift_is_one_line_and_must_be_handed_over_again(tmp_path):
    blur = augment.beside(lambda x: augment.gaussian_blur(x, 2.0, 5))
    detector = fitted(shift=blur)
    assert detector.linear.out_features == 2
    detector.save(tmp_path / "d.pt")
    loaded = adlearn.load(tmp_path / "d.pt", shift=blur, encoder=encoder())
    assert torch.equal(loaded.score(images(3)), detector.score(images(3)))


def test_a_callback_changes_nothing_and_can_score():
    seen = []
    torch.manual_seed(1)
    watched = methods.CSI(encoder=encoder()).fit(
        images(), epochs=2, batch_size=8, callback=lambda epoch, d: seen.append(d.score(images(2)).isfinite().all()))
    assert len(seen) == 3
    assert all(seen)
    assert torch.equal(watched.score(images(5, 3)), fitted().score(images(5, 3)))


def test_ood_ness_ranks_shifts_from_normal_images():
    class Brightness(adlearn.detector.Detector):
        def anomaly_score(self, x):
            return x.mean((1, 2, 3))

    detector, x = Brightness().eval(), images(20)
    shifts = {"nothing": augment.beside(lambda x: x), "brighter": augment.beside(lambda x: 0.5 + 0.5 * x),
              "turned": "rotations"}
    found = ood_ness(detector, shifts, x)
    assert next(iter(found)) == "brighter"
    assert found["brighter"] == 1
    assert found["nothing"] == 0.5
    assert found["turned"] == pytest.approx(metrics.auroc(
        torch.tensor([0] * 20 + [1] * 60), detector.score(augment.rotations(x))))


def test_the_papers_optimiser_is_used_in_its_profile(monkeypatch):
    monkeypatch.setenv("ADLEARN_PROFILE", "paper")
    detector = methods.CSI(encoder=encoder()).fit(images(), epochs=1, batch_size=8)
    assert detector.score(images(2)).isfinite().all()
