"""Two stages: each alone and together, what counts as an instance, the rule on unit features."""

import pytest
import torch
import torch.nn.functional as F

from adlearn import augment, density, losses, methods, nets
from adlearn.methods import two_stage


def images(count=16, seed=0):
    return torch.rand(count, 1, 16, 16, generator=torch.Generator().manual_seed(seed))


def encoder():
    torch.manual_seed(0)
    return nets.Encoder(channels=1, widths=(4, 8))


def same(batch):
    return batch


def test_rotations_are_told_by_their_turn():
    torch.manual_seed(0)
    ramp = torch.linspace(0, 1, 16).expand(1, 1, 16, 16) * (0.5 + 0.5 * torch.rand(40, 1, 1, 1))
    model, found = two_stage.learn_rotations(encoder(), ramp, views=same, layers=2, epochs=60, batch_size=20, lr=1e-2)
    with torch.no_grad():
        logits = model(augment.rotations(ramp))
    assert (logits.argmax(1) == torch.arange(4).repeat_interleave(40)).float().mean() > 0.95
    assert found[-1] < found[0]
    assert not model.training


@pytest.mark.parametrize("augmentation", [None, "rotations"])
def test_copies_are_instances_of_their_own_and_the_loss_goes_one_way(augmentation, monkeypatch):
    seen = []
    monkeypatch.setattr(losses, "info_nce_one_way",
                        lambda u, v, temperature: seen.append((u, v, temperature)) or (u * v).sum())
    two_stage.learn_contrast(encoder(), images(8), augmentation=augmentation, views=same, layers=1, epochs=1,
                             batch_size=8)
    (u, v, temperature), = seen
    assert u.shape == v.shape == ((8 if augmentation is None else 32), 128)
    assert temperature == 0.2
    assert torch.allclose(u, v, atol=1e-5)               # row by row the same instance under the same turn


def test_a_view_mirrors_before_the_turn(monkeypatch):
    order = []
    monkeypatch.setattr(augment.RandomHorizontalFlip, "apply", lambda self, x, g: order.append(len(x)) or x)
    view = augment.views_of_shifts("rotations")
    assert view(images(3)).shape == (12, 1, 16, 16)
    assert order == [3]                                  # the three images, not their twelve copies
    assert augment.views_of_shifts(None, same)(images(3)).shape == (3, 1, 16, 16)
    assert torch.equal(augment.views_of_shifts("rotations", same)(images(3)), augment.rotations(images(3)))


@pytest.mark.parametrize("classifier", two_stage.CLASSIFIERS)
def test_the_score_is_the_rule_on_unit_features(classifier):
    own = encoder().eval()
    detector = methods.TwoStage(pretext="none", classifier=classifier, encoder=own).fit(images())
    with torch.no_grad():
        rows, asked = (F.normalize(own(x), dim=1) for x in (images(), images(5, 1)))
    rule = {"kde": density.KDE, "ocsvm": density.OneClassSVM, "gaussian": density.Gaussian}[classifier]()
    assert torch.allclose(detector.score(images(5, 1)), rule.fit(rows).score(asked), rtol=1e-4)
    assert torch.allclose(detector.embed(asked_images := images(5, 1)).norm(dim=1), torch.ones(len(asked_images)))


@pytest.mark.parametrize("pretext", ["rotation", "contrastive", "augmented"])
def test_every_pretext_trains_a_copy_and_leaves_the_given_encoder(pretext):
    own = encoder()
    before = own.state_dict()
    before = {key: value.clone() for key, value in before.items()}
    seen = []
    detector = methods.TwoStage(pretext=pretext, encoder=own).fit(
        images(), epochs=2, batch_size=8, callback=lambda epoch, d: seen.append((epoch, d.score(images(2)).shape)))
    assert all(torch.equal(value, before[key]) for key, value in own.state_dict().items())
    assert [epoch for epoch, _ in seen] == [0, 1, 2]
    assert len(detector.losses_) == 2
    moved = [not torch.equal(a, b) for a, b in zip(own.parameters(), detector.net.parameters(), strict=True)]
    assert all(moved)


def test_a_second_stage_can_be_fitted_alone():
    detector = methods.TwoStage(pretext="none", encoder=encoder()).fit(images())
    before = detector.score(images(3, 1))
    detector.detect(images(16, 2))
    assert not torch.equal(detector.score(images(3, 1)), before)


@pytest.mark.parametrize(("options", "message"), [
    ({"pretext": "jigsaw"}, "pretext must be one of"), ({"classifier": "svdd"}, "classifier must be one of"),
    ({"augmentation": "noise"}, "shift must be one of")])
def test_unknown_names_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        methods.TwoStage(**options)


def test_the_papers_head_is_deep_and_normalised():
    model = two_stage._with_head(encoder(), out=128, layers=9)
    kinds = [type(part).__name__ for part in model.head]
    assert kinds.count("Linear") == 9
    assert kinds.count("BatchNorm1d") == 8
