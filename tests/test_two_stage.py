"""Two stages: each alone and together, what counts as an instance, the rule on unit features."""

import pytest
import torch
import torch.nn.functional as F

from adlearn import augment, density, losses, methods, nets
from adlearn.methods import csi, two_stage


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


@pytest.mark.parametrize("shift", [None, "rotations"])
def test_copies_are_instances_of_their_own_and_the_loss_goes_one_way(shift, monkeypatch):
    seen = []

    def views(x):
        first, second = x.unflatten(0, (-1, 2, 8)).unbind(1)
        return torch.stack([first, 1 - second], dim=1).flatten(0, 2)

    monkeypatch.setattr(losses, "info_nce_one_way",
                        lambda u, v, temperature: seen.append((u, v, temperature)) or (u * v).sum())
    model, _ = two_stage.learn_contrast(encoder(), images(8), shift=shift, layers=1, epochs=1, batch_size=8,
                                        views=views, lr=1e-9)
    (u, v, temperature), = seen
    assert u.shape == v.shape == ((8 if shift is None else 32), 128)
    assert temperature == 0.2
    model.train()                                        # batch norm saw both views together
    order = torch.cat([u, v])
    with torch.no_grad():
        copies = images(8) if shift is None else augment.rotations(images(8))
        both = model(torch.cat([copies, 1 - copies]))
    nearest = torch.cdist(order, both).argmin(1)         # the order of the batch is drawn, row i's views are partners
    assert torch.equal(nearest[:len(u)] + len(u), nearest[len(u):])
    assert len(nearest.unique()) == len(order)


def test_a_view_mirrors_before_the_turn(monkeypatch):
    """Arrows that point up or down and never sideways: behind a mirror after the turn left and right would mix."""
    flipped = []
    monkeypatch.setattr(augment.RandomHorizontalFlip, "apply", lambda self, x, g: flipped.append(len(x)) or x.flip(3))
    x = images(3)
    found = augment.views_of_shifts("rotations", recipe=same)(x)
    assert flipped == [3]                                # the three images, not their twelve copies
    assert torch.equal(found, augment.rotations(x.flip(3)))
    own = {"views": same, "recipe": torch.zeros_like}
    assert torch.equal(augment.views_of_shifts("rotations", **own)(x), augment.rotations(x))
    assert torch.equal(augment.views_of_shifts(None, **own)(x), x)
    assert torch.equal(augment.views_of_shifts("geometric", recipe=same)(x), augment.geometric(x))           # has them
    for recipe in (two_stage.VIEWS, csi.VIEWS):
        assert not any(getattr(part, "mirror", 0) for part in recipe.transforms)


@pytest.mark.parametrize("classifier", two_stage.CLASSIFIERS)
def test_the_score_is_the_rule_on_unit_features(classifier):
    own = encoder().eval()
    detector = methods.TwoStage(pretext="none", classifier=classifier, encoder=own).fit(images())
    with torch.no_grad():
        rows, asked = (F.normalize(own(x), dim=1) for x in (images(), images(5, 1)))
    rule = {"kde": density.KDE, "ocsvm": density.OneClassSVM, "gaussian": density.Gaussian}[classifier]()
    assert torch.allclose(detector.score(images(5, 1)), rule.fit(rows).score(asked), rtol=1e-4)
    assert torch.allclose(detector.embed(images(5, 1)).norm(dim=1), torch.ones(5))


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


def test_a_second_stage_can_be_fitted_alone_and_forgets_the_threshold():
    detector = methods.TwoStage(pretext="none", encoder=encoder()).fit(images()).calibrate(images(20, 3))
    before = detector.score(images(3, 1))
    detector.remember(images(16, 2))
    assert not torch.equal(detector.score(images(3, 1)), before)
    assert detector.threshold_.isnan()
    with pytest.raises(ValueError, match="call fit first"):
        methods.TwoStage().remember(images())


@pytest.mark.parametrize(("pretext", "copies"), [("contrastive", 32), ("augmented", 128)])
def test_fit_hands_its_settings_on(pretext, copies, monkeypatch):
    sizes, views = [], []
    monkeypatch.setattr(losses, "info_nce_one_way", lambda u, v, temperature: sizes.append(len(u)) or (u * v).mean())
    methods.TwoStage(pretext=pretext, encoder=encoder(), views=lambda x: views.append(len(x)) or x).fit(
        images(64), epochs=1)
    assert sizes == [copies] * 2                         # the paper's batches of 32
    assert views == [2 * copies] * 2


def test_the_papers_optimiser_is_used_in_its_profile(monkeypatch):
    made, sgd = [], two_stage.SGD
    monkeypatch.setattr(two_stage, "SGD", lambda parameters, lr: made.append(lr) or sgd(parameters, lr=lr))
    monkeypatch.setenv("ADLEARN_PROFILE", "paper")
    detector = methods.TwoStage(encoder=encoder()).fit(images(), epochs=1)
    assert made == [0.01]
    assert sgd.keywords == {"momentum": 0.9, "weight_decay": 3e-4}
    assert detector.epochs(None, 5000, 32, detector.training_steps) == pytest.approx(2048, rel=0.01)


@pytest.mark.parametrize(("options", "message"), [
    ({"pretext": "jigsaw"}, "pretext must be one of"), ({"classifier": "svdd"}, "classifier must be one of"),
    ({"shift": "noise"}, "shift must be one of"), ({"shift": None}, "shift must be a shift"),
    ({"pretext": "none"}, "encoder must be a trained network")])
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        methods.TwoStage(**options)


def test_an_encoder_that_does_not_suit_the_images_is_refused():
    with pytest.raises(ValueError, match=r"encoder must take images \(3, 16, 16\)"):
        methods.TwoStage(encoder=encoder()).fit(torch.rand(4, 3, 16, 16))
    wrong = encoder()
    wrong.dim = 9
    with pytest.raises(ValueError, match=r"encoder must give \(2, 9\)"):
        methods.TwoStage(encoder=wrong).fit(images())


def test_the_papers_head_is_deep_and_normalised():
    model = two_stage._with_head(encoder(), out=128, layers=9)
    kinds = [type(part).__name__ for part in model.head]
    assert kinds.count("Linear") == 9
    assert kinds.count("BatchNorm1d") == 8
