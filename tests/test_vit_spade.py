"""SPADE on patch tokens: which tokens, at which sizes."""

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

import adlearn
from adlearn.methods import vit
from adlearn.methods.spade import enlarged
from adlearn.methods.vit_spade import ViTSPADE

NAME = "vit_tiny_patch16_224"


@pytest.fixture(autouse=True)
def weights(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    net = timm.create_model(NAME, pretrained=False, num_classes=0)
    save_file(net.state_dict(), folder / f"{NAME}.safetensors")
    monkeypatch.setenv("ADLEARN_WEIGHTS", str(folder))
    return net.state_dict()


@pytest.fixture
def images():
    torch.manual_seed(1)
    return torch.rand(5, 1, 40, 40)


def test_tokens_are_normalised_joined_and_without_the_class_token(weights, images):
    detector = ViTSPADE(backbone=NAME, layers=(2, 5), sizes=(64,))
    ours = vit.vit_tiny().eval()                                                  # which stretches positions itself
    ours.load_state_dict(weights)
    seen = F.interpolate(images.expand(-1, 3, -1, -1), (64, 64), mode="bilinear", antialias=True)
    seen = (seen - detector.network.mean) / detector.network.std
    with torch.inference_mode():
        whole, (tokens,) = detector.describe(images)
        early, late = ours.maps(seen, (2, 5))
    assert tokens.shape == (5, 2 * 192, 4, 4)
    expected = torch.cat([F.normalize(early, dim=1), F.normalize(late, dim=1)], dim=1)
    assert torch.allclose(tokens.float(), expected, atol=1e-3)
    assert torch.allclose(whole, late.mean((2, 3)), atol=1e-3)


def test_maps_are_the_mean_over_sizes(images):
    both, *alone = (ViTSPADE(backbone=NAME, layers=(5,), sizes=sizes, neighbors=4, sigma=0).fit(images[:4])
                    for sizes in ((64, 96), (64,), (96,)))
    with torch.inference_mode():
        whole, levels = both.describe(images[4:])
        found = both.compare(levels, [both.level_0_, both.level_1_])
        parts = [each.distances(level, each.level_0_) for each, level in zip(alone, levels, strict=True)]
    assert [part.shape for part in parts] == [(4, 4), (6, 6)]
    expected = torch.stack([enlarged(part[None, None], (96, 96)) for part in parts]).mean(0)
    assert torch.allclose(found, expected, atol=1e-5)
    assert whole.shape == (1, 192)
    assert torch.equal(whole, both.embed(images[4:]))


def test_finds_what_is_planted_and_is_kept(images, tmp_path):
    torch.manual_seed(0)
    plain = 0.5 + 0.02 * torch.randn(7, 1, 64, 64)
    detector = ViTSPADE(backbone=NAME, layers=(3,), sizes=(64,), neighbors=3, sigma=0).fit(plain[:6].clamp(0, 1))
    bad = plain[6:].clone()
    bad[:, :, 16:32, 32:48] = 1
    heat = detector.localize(bad.clamp(0, 1))
    assert heat.flatten().argmax() in [64 * r + c for r in range(12, 36) for c in range(28, 52)]
    detector.save(tmp_path / "detector.pt")
    assert torch.equal(adlearn.load(tmp_path / "detector.pt").localize(bad.clamp(0, 1)), heat)


@pytest.mark.parametrize(("options", "complaint"), [
    ({"sizes": ()}, "sizes"),
    ({"sizes": (64, 64)}, "sizes"),
    ({"sizes": (65,)}, "multiple of the patch"),
    ({"layers": (5, 3)}, "layers must be ascending"),
    ({"layers": (30,)}, "layers"),
    ({"sizes": 64}, "sizes must name"),
    ({"sizes": (64, 16)}, "size must be"),
    ({"layers": 5}, "layers must be ascending"),
    ({"backbone": "efficientnet_lite0", "layers": (3,)}, "backbone must be a ViT"),
    ({"neighbors": 0}, "neighbors"),
])
def test_refuses(options, complaint):
    with pytest.raises(ValueError, match=complaint):
        ViTSPADE(**{"backbone": NAME} | options)
