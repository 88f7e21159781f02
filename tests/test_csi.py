"""CSI: the loss and the score against the formulas, the pitfalls, OOD-ness."""

import pytest
import torch
import torch.nn.functional as F

import adlearn
from adlearn import augment, methods, metrics, nets, training
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
    """Against a loop over images and shifts: the positive is the other view of the same image under the same shift."""
    detector, batch = fitted(), images(4, 2)

    def view(x):
        return augment.rotations(torch.cat([x[:4], x[4:].square()]))                    # two views that differ

    with torch.no_grad():
        h = detector.model.embed(torch.cat([augment.rotations(batch), augment.rotations(batch.square())]))
        z = F.normalize(detector.model.head(h), dim=1).view(2, 4, 4, -1)                # view, shift, image
        total = 0.0
        for own in range(2):
            for shift in range(4):
                for i in range(4):
                    against = torch.exp(z.view(32, -1) @ z[own, shift, i] / 0.5).sum() - torch.exp(torch.tensor(2.0))
                    total -= (z[own, shift, i] @ z[1 - own, shift, i] / 0.5 - against.log()).item() / 32
        turns = torch.arange(4).repeat_interleave(4).repeat(2)
        total += F.cross_entropy(detector.linear(h), turns).item()
        assert detector.objective(batch, view).item() == pytest.approx(total, rel=1e-4)


def test_the_score_against_the_formula():
    """Same-shift neighbours, lengths that are not normalised, logits, both balances, larger is more anomalous."""
    detector, train, asked = fitted(crops=1), images(), images(3, 4)
    with torch.no_grad():
        scores = torch.zeros(3)
        for turn in range(4):
            h_train, h = (detector.model.embed(torch.rot90(x, turn, (2, 3))) for x in (train, asked))
            z_train, z = detector.model.head(h_train), detector.model.head(h)
            cosine = F.normalize(z, dim=1) @ F.normalize(z_train, dim=1).T
            of_length = 1 / z_train.norm(dim=1).mean()
            of_logit = 1 / detector.linear(h_train)[:, turn].abs().mean()
            scores -= (of_length * cosine.amax(1) * z.norm(dim=1) + of_logit * detector.linear(h)[:, turn]) / 4
    assert torch.allclose(detector.score(asked), scores, rtol=1e-3, atol=1e-4)


def test_a_training_image_is_its_own_neighbour():
    near, length, logits = fitted().terms(images())
    assert near.shape == length.shape == logits.shape == (4, 16)
    assert torch.allclose(near, torch.ones(4, 16), atol=1e-4)


def test_the_ensemble_averages_outputs_over_crops_of_one_area():
    detector = fitted(crops=3)
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
    detector = fitted(shift=None)
    assert detector.bank_.shape[0] == 1
    assert torch.equal(detector.score(images(3, 4)), fitted(shift=None, parts=("con",)).score(images(3, 4)))
    near, length, _ = detector.terms(images(3, 4))
    assert torch.allclose(detector.score(images(3, 4)), -(detector.balance_[0] * near * length)[0])


def test_shifts_that_cannot_be_told_apart_do_not_drown_the_score():
    ring = (torch.hypot(*torch.meshgrid(torch.arange(16) - 7.5, torch.arange(16) - 7.5, indexing="ij")) - 5).abs() < 1
    rings = (ring * torch.rand(24, 1, 1, 1, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    torch.manual_seed(0)
    detector = methods.CSI(encoder=encoder()).fit(rings, epochs=4, batch_size=8, lr=1e-4)
    with torch.no_grad():
        _, _, logits = detector.terms(rings)
    assert (detector.balance_[1, :, None] * logits).abs().mean() == pytest.approx(1, abs=0.01)


def test_parts_of_the_score():
    for part, expected in (("con", 0), ("cls", 1)):
        detector = fitted(parts=(part,), crops=1)
        near, length, logits = detector.terms(images(3, 4))
        values = near * length if part == "con" else logits
        assert torch.allclose(detector.score(images(3, 4)), -(detector.balance_[expected, :, None] * values).mean(0))
    for wrong in (("contrast",), (), "con", ("con", "con")):
        with pytest.raises(ValueError, match="parts must be"):
            methods.CSI(parts=wrong)
    with pytest.raises(ValueError, match="no shift to recognise"):
        methods.CSI(shift=None, parts=("cls",))


def test_ones_own_shift_is_one_line_and_must_be_handed_over_again(tmp_path):
    blur = augment.beside(lambda x: augment.gaussian_blur(x, 2.0, 5))
    detector = fitted(shift=blur)
    assert detector.linear.out_features == 2
    detector.save(tmp_path / "d.pt")
    loaded = adlearn.load(tmp_path / "d.pt", shift=blur, encoder=encoder())
    assert torch.equal(loaded.score(images(3)), detector.score(images(3)))
    with pytest.raises(ValueError, match="own shift: hand over"):
        adlearn.load(tmp_path / "d.pt", encoder=encoder())
    with pytest.raises(ValueError, match="does not fit what was handed over"):
        adlearn.load(tmp_path / "d.pt", shift="rotations", encoder=encoder())


@pytest.mark.parametrize(("shift", "message"), [
    (lambda x: 1 - x, "as they are first"), (lambda x: x[:1], "shift must turn images"), (lambda x: x, "at least 2"),
    (lambda x: torch.cat([x, x + 1]), "what shift returns"),
    (lambda x: torch.stack([x, 1 - x], dim=1).flatten(0, 1), "all of them shifted in one way")])
def test_a_function_that_is_no_shift_is_refused(shift, message):
    for method in (methods.CSI, methods.GOAD):
        with pytest.raises(ValueError, match=message):
            method(shift=shift, encoder=encoder()).fit(images(), epochs=1)
    with pytest.raises(ValueError, match=message):
        ood_ness(fitted(), {"own": shift}, images())


@pytest.mark.parametrize("build", [
    lambda own: methods.CSI(encoder=own), lambda own: methods.GOAD(encoder=own),
    lambda own: methods.TwoStage(encoder=own)])
def test_a_handed_over_encoder_is_left_alone(build):
    own = encoder().train()
    before = {key: value.clone() for key, value in own.state_dict().items()}
    detector = build(own)

    def stop(epoch, _):
        if epoch == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        detector.fit(images(), epochs=2, batch_size=8, callback=stop)
    detector.fit(images(), epochs=1, batch_size=8)
    other = build(own).fit(images(8, 5), epochs=1, batch_size=8)
    other.load_state_dict(detector.state_dict())
    assert own.training
    assert all(torch.equal(value, before[key]) for key, value in own.state_dict().items())
    assert torch.equal(other.score(images(3, 4)), detector.score(images(3, 4)))
    assert not any(name.startswith("encoder.") for name in detector.state_dict())


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


def test_the_papers_schedule(monkeypatch):
    made, lars = [], training.LARS
    monkeypatch.setattr(training, "LARS", lambda *a, lr: made.append(lr) or lars(*a, lr=lr))
    monkeypatch.setenv("ADLEARN_PROFILE", "paper")
    detector = methods.CSI(encoder=encoder()).fit(images(), epochs=1)
    assert made == [1.0]
    assert detector.crops == 10
    assert detector.epochs(None, 5000, detector.batch_sizes["paper"], detector.training_steps) == pytest.approx(
        1000, rel=0.03)
