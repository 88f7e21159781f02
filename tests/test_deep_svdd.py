"""Deep SVDD: what the network may not have, the centre, both objectives, collapse."""

import pytest
import torch
from torch import nn

from adlearn import methods
from adlearn.methods import deep_svdd
from adlearn.methods.deep_svdd import LeNet, centre_of, contrast_normalised, mirror, refuse_shortcuts, shrink, spread


def net(**options):
    torch.manual_seed(0)
    return LeNet(channels=1, side=16, widths=(4, 8, 8), dim=6, **options)


def images(count=40, seed=0):
    return torch.rand(count, 1, 16, 16, generator=torch.Generator().manual_seed(seed))


def test_the_papers_network_has_no_bias_no_affine_norm_and_gives_the_origin_without_weights():
    own = LeNet(channels=3, side=32)
    refuse_shortcuts(own)
    assert own(torch.rand(2, 3, 32, 32)).shape == (2, 128)
    assert all(name.endswith("weight") for name, _ in own.named_parameters())
    assert sum(p.numel() for p in own.parameters()) == 5 * 5 * (3 * 32 + 32 * 64 + 64 * 128) + 128 * 16 * 128
    for parameter in own.parameters():
        nn.init.zeros_(parameter)
    assert own.eval()(torch.rand(2, 3, 32, 32)).abs().max() == 0


@pytest.mark.parametrize(("part", "message"), [
    (nn.Linear(4, 4), "bias"), (nn.Conv2d(1, 1, 3), "bias"), (nn.BatchNorm2d(4), "affine=False"),
    (nn.GroupNorm(1, 4), "affine=False"), (nn.LayerNorm(4), "elementwise_affine=False"), (nn.PReLU(), "take it out"),
    (nn.Sigmoid(), "saturates"), (nn.Tanh(), "saturates"),
    (nn.ELU(), "saturates"), (nn.Embedding(3, 4), "weight"),
])
def test_a_network_with_a_shortcut_is_refused_and_named(part, message):
    own = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.Sequential(nn.ReLU(), part))
    with pytest.raises(ValueError, match=rf"{type(part).__name__} '1.1'.*{message}"):
        refuse_shortcuts(own)
    own.dim = 4
    with pytest.raises(ValueError, match="encoder must not be able to collapse"):
        methods.DeepSVDD(encoder=own)


def test_a_free_parameter_is_a_shortcut():
    class Token(nn.Module):
        def __init__(self):
            super().__init__()
            self.token = nn.Parameter(torch.zeros(4))

    with pytest.raises(ValueError, match="'token'"):
        refuse_shortcuts(Token())


def test_no_coordinate_of_the_centre_is_near_zero():
    class Given(nn.Module):
        def forward(self, x):
            return torch.tensor([[0.0, 0.05, -0.05, 0.1, -2.0]]).expand(len(x), 5)

    assert centre_of(Given(), images(3)).tolist() == pytest.approx([0.1, 0.1, -0.1, 0.1, -2.0])


def test_the_centre_is_the_mean_of_the_first_pass_and_training_leaves_it_alone():
    own, x = net().eval(), images()
    centre = centre_of(own, x)
    with torch.no_grad():
        mean = own(x).mean(0)
    far = mean.abs() >= 0.1
    assert torch.allclose(centre[far], mean[far], atol=1e-6)
    before = centre.clone()
    losses, radius2 = shrink(own, x, centre, epochs=5, batch_size=20, lr=1e-3)
    assert torch.equal(centre, before)
    assert losses[-1] < losses[0]
    assert radius2 == 0


def test_the_soft_boundary_against_its_formula_and_its_warm_up():
    """A network without a batch's statistics, at rate 0: losses are those of the formula, R 0 and then the quantile."""
    own = nn.Sequential(nn.Flatten(), nn.Linear(256, 3, bias=False))
    x, nu = images(40), 0.25
    centre = centre_of(own, x)
    squares = (own(x).detach() - centre).square().sum(1)
    losses, radius2 = shrink(own, x, centre, objective="soft-boundary", nu=nu, warmup=2, epochs=4, batch_size=40,
                             lr=1e-12, weight_decay=0.0)
    quantile = squares.quantile(1 - nu).item()
    inside = quantile + (squares - quantile).clamp(min=0).mean().item() / nu
    assert losses == pytest.approx([squares.mean().item() / nu] * 3 + [inside], rel=1e-4)
    assert radius2 == pytest.approx(quantile, rel=1e-4)


@pytest.mark.parametrize("nu", [0.1, 0.4])
def test_the_radius_leaves_a_share_nu_of_the_training_images_outside(nu):
    radii = []
    detector = methods.DeepSVDD(objective="soft-boundary", nu=nu, widths=(4, 4), dim=4).fit(
        images(102), epochs=4, pretrain_epochs=1, batch_size=100, callback=lambda _, d: radii.append(d.radius_.item()))
    outside = (detector.score(images(102)) > detector.radius_.square()).float().mean()
    assert outside == pytest.approx(nu, abs=0.02)
    assert len(radii) == 5
    assert min(radii) > 0


def test_pretraining_can_be_left_out_and_bad_numbers_are_refused_before_anything_is_trained(monkeypatch):
    called = []
    monkeypatch.setattr(deep_svdd, "pretrain", lambda *a, **k: called.append(k["epochs"]))
    detector = methods.DeepSVDD(widths=(4, 4), dim=4)
    detector.fit(images(), epochs=1, pretrain_epochs=0)
    assert called == []
    detector.fit(images(), epochs=1, pretrain_epochs=3)
    assert called == [3]
    with pytest.raises(ValueError, match="epochs"):
        detector.fit(images(), epochs=0)
    assert called == [3]
    with pytest.raises(ValueError, match="objective must be one of"):
        shrink(net(), images(), torch.ones(6), objective="soft", epochs=1)


def test_a_bias_that_only_forward_knows_is_found():
    class Hidden(nn.Module):
        dim = 4

        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(256, 4, bias=False)

        def forward(self, x):
            return torch.sigmoid(self.linear(x.flatten(1)))

    refuse_shortcuts(Hidden())
    with pytest.raises(ValueError, match="without weights it gives something else than 0"):
        methods.DeepSVDD(encoder=Hidden()).fit(images(), epochs=1)


def test_contrast_normalisation_forgets_brightness_and_contrast():
    x = images(3)
    assert torch.allclose(contrast_normalised(0.5 * x + 0.2), contrast_normalised(x), atol=1e-4)
    assert torch.allclose(contrast_normalised(x).abs().mean((1, 2, 3)), torch.ones(3), atol=1e-5)
    assert contrast_normalised(torch.full((1, 1, 4, 4), 0.5)).abs().max() == 0


def test_the_range_comes_from_the_training_images_alone():
    detector = methods.DeepSVDD(widths=(4, 4, 4), dim=4).fit(images(), epochs=1, pretrain_epochs=1)
    prepared = detector.prepared(images())
    assert prepared.amin() == 0
    assert prepared.amax() == pytest.approx(1)
    spiked = images(1)
    spiked[0, 0, 0, 0], spiked[0, 0, 1:] = 1, 0.5
    assert detector.prepared(spiked).amax() > 1


def test_pretraining_learns_to_draw():
    own, x = net(), images(60)
    decoder = mirror(own)
    assert decoder(own(x)).shape == x.shape
    refuse_shortcuts(decoder)
    losses = deep_svdd.pretrain(own, x, epochs=15, batch_size=20)
    assert losses[-1] < losses[0]


def test_the_score_is_the_squared_distance_and_a_custom_network_is_copied():
    own = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2, bias=False), nn.ReLU(), nn.Flatten(),
                        nn.Linear(4 * 49, 5, bias=False))
    own.dim = 5
    before = [p.clone() for p in own.parameters()]
    detector = methods.DeepSVDD(encoder=own).fit(images(), epochs=3, lr=1e-3)
    assert all(torch.equal(a, b) for a, b in zip(before, own.parameters(), strict=True))
    with torch.no_grad():
        expected = (detector.net(detector.prepared(images())) - detector.centre_).square().sum(1)
    assert torch.allclose(detector.score(images()), expected, rtol=1e-4)


def test_a_collapse_is_noticed():
    class Constant(nn.Module):
        dim = 3

        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(1, 3, bias=False)

        def forward(self, x):
            return self.linear(torch.ones(len(x), 1) + 1e-6 * x.mean((1, 2, 3))[:, None])

    with pytest.warns(UserWarning, match="collapsed"):
        methods.DeepSVDD(encoder=Constant()).fit(images(), epochs=1)
    assert spread(torch.ones(5, 3)) == 0
    assert spread(torch.randn(500, 3) + 10) > 0.05


def test_bad_settings_are_refused():
    for options, message in (({"objective": "hard"}, "objective"), ({"nu": 0}, "nu"), ({"nu": 1.5}, "nu"),
                             ({"dim": 0}, "dim")):
        with pytest.raises(ValueError, match=message):
            methods.DeepSVDD(**options)
    with pytest.raises(ValueError, match="multiple of 8"):
        methods.DeepSVDD().fit(torch.rand(4, 1, 12, 12))
    with pytest.raises(ValueError, match="something on them"):
        methods.DeepSVDD().fit(torch.full((4, 1, 16, 16), 0.5))
