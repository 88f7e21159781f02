"""How the shipped weights were made: their patches, their recipe, their record."""

import hashlib
import json
from dataclasses import replace
from functools import partial

import pytest
import torch

from adlearn import backbones, pretrain

SHORT = replace(pretrain.RECIPES["teacher_17_narrow"], steps=8, patches=400)


@pytest.fixture(autouse=True)
def own_cache(cache_folder):
    return cache_folder


@pytest.fixture(scope="module", autouse=True)
def few_drawn():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrain, "DRAWN", 4)
        yield


@pytest.fixture(scope="module")
def sources(few_drawn):
    return pretrain.sources(0)


def test_sources_are_photographs_textures_and_parts(sources):
    assert len(sources) == len(pretrain.PHOTOGRAPHS) + 2 * pretrain.DRAWN
    assert all(image.dtype == torch.uint8 and image.shape[0] == 3 and min(image.shape[1:]) == pretrain.SIDE
               for image in sources)
    assert len({hashlib.sha256(image.numpy().tobytes()).digest() for image in sources}) == len(sources)
    again = pretrain.sources(0)
    assert all(torch.equal(a, b) for a, b in zip(sources, again, strict=True))


def test_patches_are_cut_as_it_is_said(sources):
    patches = pretrain.cut(sources, SHORT)
    assert patches.shape == (400, 3, 17, 17)
    assert patches.dtype == torch.uint8
    assert torch.equal(patches, pretrain.cut(sources, SHORT))
    assert not torch.equal(patches, pretrain.cut(sources, replace(SHORT, seed=1)))
    # of images in which the red channel is the row and the green one the column, a patch shows how large it was
    rows = torch.arange(512).mul(255).div(511, rounding_mode="floor")
    ramps = torch.zeros(3, 512, 512, dtype=torch.uint8)
    ramps[0], ramps[1] = rows[:, None], rows
    found = pretrain.cut([ramps] * len(sources), SHORT).float()
    colour = (found[:, 0] - found[:, 1]).abs().amax((1, 2)) > 0
    assert 0.03 < 1 - colour.float().mean() < 0.2                           # one in ten is grey
    extent = (found[colour, 0, -1, 0] - found[colour, 0, 0, 0]) * 511 / 255 * 17 / 16
    assert extent.min() > 512 / 16 - 8
    assert extent.max() < 512 / 4 + 8
    assert extent.std() > 20
    mirrored = (found[colour, 1, 0, -1] < found[colour, 1, 0, 0]).float().mean()
    assert 0.4 < mirrored < 0.6


def test_a_teacher_is_made_with_its_record(tmp_path, monkeypatch):
    into = tmp_path / "weights"
    record = pretrain.teacher("teacher_17_narrow", SHORT, into)
    weights = into / "teacher_17_narrow.safetensors"
    assert json.loads((into / "teacher_17_narrow.json").read_text()) == record
    assert record["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert record["command"] == "python -m adlearn.pretrain teacher_17_narrow --steps 8 --patches 400"
    assert record["recipe"]["compact"] == pytest.approx(0.1)
    assert record["explained"] < 0.5                                        # of eight steps
    assert sorted(file.name for file in into.iterdir()) == ["teacher_17_narrow.json", weights.name]
    monkeypatch.setattr(backbones, "SHIPPED", into)
    assert backbones.teacher("teacher_17_narrow").origin == "adlearn"
    first = weights.read_bytes()
    assert pretrain.teacher("teacher_17_narrow", SHORT, into)["sha256"] == record["sha256"]         # and the same
    assert weights.read_bytes() == first


def test_an_interrupted_teacher_leaves_nothing(tmp_path, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(pretrain.students, "distil_teacher", stop)
    with pytest.raises(KeyboardInterrupt):
        pretrain.teacher("teacher_17_narrow", SHORT, tmp_path / "weights")
    assert not (tmp_path / "weights").exists()


def test_an_interrupted_training_goes_on(tmp_path, monkeypatch):
    recipe = replace(SHORT, steps=18)                                       # three epochs of 360 patches
    whole = pretrain.teacher("teacher_17_narrow", recipe, tmp_path / "whole")
    keep, kept = pretrain.students.training._Checkpoint.keep, []

    def stop_after_two(self, losses):
        keep(self, losses)
        kept.append(len(losses))
        if len(kept) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(pretrain.students.training._Checkpoint, "keep", stop_after_two)
    with pytest.raises(KeyboardInterrupt):
        pretrain.teacher("teacher_17_narrow", recipe, tmp_path / "rest")
    rest = pretrain.teacher("teacher_17_narrow", recipe, tmp_path / "rest")
    assert kept == [1, 2, 3]
    assert rest["sha256"] == whole["sha256"]
    assert rest["seconds"]["resumed"]
    assert "resumed" not in whole["seconds"]


def test_features_are_standardised_and_kept():
    backbone = backbones.load("efficientnet_lite0", layers=pretrain.STAGES, size=SHORT.look)
    patches, targets, seconds = pretrain.lessons(SHORT, backbone)
    assert targets.shape == (400, sum(backbone.channels))
    assert targets.mean(0).abs().max() < 1e-4
    torch.testing.assert_close(targets.std(0), torch.ones(targets.shape[1]), rtol=1e-4, atol=1e-4)
    again = pretrain.lessons(SHORT, backbone)
    assert again[2] == seconds > 0                                          # from the cache
    assert torch.equal(again[0], patches)


def test_a_command_without_options_makes_what_is_shipped():
    for name, recipe in pretrain.RECIPES.items():
        record = backbones.shipped(name)
        assert record["command"] == pretrain.command(name, recipe) == f"python -m adlearn.pretrain {name}"
        settings = {key: value for key, value in record["recipe"].items() if key != "compact"}
        assert type(recipe)(**settings) == recipe


def test_bad_commands_are_refused(tmp_path, capsys):
    assert pretrain.main(["teacher_18"]) == 2
    assert "name must be one of" in capsys.readouterr().err
    assert pretrain.main(["teacher_17", "--steps", "10"]) == 2
    assert "would replace those that are shipped" in capsys.readouterr().err
    assert pretrain.main(["teacher_17", "--steps", "0", "--into", str(tmp_path)]) == 2
    assert "steps" in capsys.readouterr().err
    assert pretrain.main(["--list"]) == 0
    assert "teacher_65_narrow" in capsys.readouterr().out


def test_pictures_are_new_each_time_and_of_all_kinds(sources):
    torch.manual_seed(0)
    found = pretrain.pictures(sources, 48, 200)
    assert found.shape == (200, 3, 48, 48)
    assert found.min() >= 0
    assert found.max() <= 1
    grey = (found - found.mean(1, keepdim=True)).abs().amax((1, 2, 3)) < 1e-3
    assert 0.15 < grey.float().mean() < 0.5                                 # one in four, and the grey photographs
    assert not torch.equal(found, pretrain.pictures(sources, 48, 200))
    torch.manual_seed(0)
    assert torch.equal(found, pretrain.pictures(sources, 48, 200))


@pytest.fixture
def small_pictures(monkeypatch):
    monkeypatch.setattr(pretrain.ViTRecipe, "plan", property(lambda recipe: {32: recipe.steps // 2, 64: 2}))
    monkeypatch.setattr(pretrain, "LOOKED_AT", 32)
    return replace(pretrain.RECIPES["vit_tiny_distilled"], steps=16, batch_size=8, epoch=32)


def test_a_transformer_is_made_with_its_record(tmp_path, monkeypatch, small_pictures):
    record = pretrain.transformer("vit_tiny_distilled", small_pictures, tmp_path)
    assert json.loads((tmp_path / "vit_tiny_distilled.json").read_text()) == record
    assert record["explained"].keys() == {"stage 1", "stage 2", "stage 3", "stage 4", "whole"}
    assert record["seconds"].keys() == {"training at 32 pixels", "training at 64 pixels"}
    assert (tmp_path / "vit_tiny_distilled.safetensors").stat().st_size < 12e6
    monkeypatch.setenv("ADLEARN_WEIGHTS", str(tmp_path))
    middle, last = backbones.load("vit_tiny_distilled", (5, 11), size=64)(torch.rand(2, 1, 50, 50))
    assert middle.shape == last.shape == (2, 192, 4, 4)
    assert not list((pretrain.cache.folder() / "pretrain").iterdir())


def test_the_pupil_looks_for_each_stage_at_its_place():
    backbone = backbones.load("efficientnet_lite0", list(pretrain.HEARD), size=64)
    torch.manual_seed(0)
    images = torch.rand(6, 3, 64, 64)
    with torch.no_grad():
        said, pupil = backbone(images), pretrain.Pupil(backbone.channels)
        pupil.standardise(backbone, images)
        fine, _, same, coarse, whole = pupil.by_patch(said)
        assert fine.shape == (6, 16, backbone.channels[0])
        assert torch.allclose(fine[0, 6], said[0][0, :, 4:8, 8:12].mean((1, 2)), atol=1e-5)    # row 1, column 2
        assert torch.equal(same[0, 6], said[2][0, :, 1, 2])
        rows, columns = torch.tensor([0.75, 0.25]), torch.tensor([0.25, 0.75])                      # of 2 × 2 places
        assert torch.allclose(coarse[0, 6], (said[3][0] * rows[:, None] * columns).sum((1, 2)), atol=1e-5)
        assert torch.allclose(whole[:, 0], said[3].mean((2, 3)))
        assert coarse.shape == (6, 16, backbone.channels[3])
        for find in pupil.find:
            torch.nn.init.zeros_(find.weight)
            torch.nn.init.zeros_(find.bias)
        assert torch.allclose(pupil.missed(backbone, images)[:4], torch.ones(4), atol=0.05)        # 0 finds nothing


def test_a_pupil_learns_those_tokens_that_its_weights_will_give(tmp_path, monkeypatch):
    """The same blocks, the same normalisation; and the class token for the whole."""
    from safetensors.torch import save_file

    torch.manual_seed(0)
    teacher = backbones.load("efficientnet_lite0", list(pretrain.HEARD), size=64)
    pupil, images, asked = pretrain.Pupil(teacher.channels), torch.rand(3, 3, 64, 64), []
    for find in pupil.find:
        find.register_forward_pre_hook(lambda _, tokens: asked.append(tokens[0].detach()))
    pupil.missed(teacher, images)
    save_file(pupil.net.state_dict(), tmp_path / "vit_tiny_distilled.safetensors")
    monkeypatch.setenv("ADLEARN_WEIGHTS", str(tmp_path))
    backbone = backbones.load("vit_tiny_distilled", (5, 8, 11), size=64)
    found = dict(zip(backbone.layers, backbone(images), strict=True))
    for tokens, block in zip(asked, pretrain.HEARD.values(), strict=False):
        assert torch.allclose(tokens, found[block].flatten(2).mT, atol=1e-4)
    last = pupil.net.encode((images - backbone.mean) / backbone.std)
    assert torch.allclose(asked[4], last[:, :1], atol=1e-4)


def test_a_transformer_of_another_seed_starts_from_the_beginning(tmp_path, monkeypatch, small_pictures):
    monkeypatch.setattr(pretrain.vit, "vit_tiny", partial(pretrain.vit.vit_tiny, dim=24))
    other = replace(small_pictures, seed=1)
    alone = pretrain.transformer("vit_tiny_distilled", other, tmp_path / "alone")
    keep = pretrain.training._Checkpoint.keep

    def stop(self, losses):
        keep(self, losses)
        raise KeyboardInterrupt

    monkeypatch.setattr(pretrain.training._Checkpoint, "keep", stop)
    with pytest.raises(KeyboardInterrupt):
        pretrain.transformer("vit_tiny_distilled", small_pictures, tmp_path / "first")
    monkeypatch.setattr(pretrain.training._Checkpoint, "keep", keep)
    after = pretrain.transformer("vit_tiny_distilled", other, tmp_path / "after")
    assert after["sha256"] == alone["sha256"]
    assert "resumed" not in after["seconds"]


def test_an_interrupted_transformer_goes_on(tmp_path, monkeypatch, small_pictures):
    monkeypatch.setattr(pretrain.vit, "vit_tiny", partial(pretrain.vit.vit_tiny, dim=24))
    whole = pretrain.transformer("vit_tiny_distilled", small_pictures, tmp_path / "whole")
    keep, kept = pretrain.training._Checkpoint.keep, []

    def stop_after_one(self, losses):
        keep(self, losses)
        kept.append(len(losses))
        if len(kept) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(pretrain.training._Checkpoint, "keep", stop_after_one)
    with pytest.raises(KeyboardInterrupt):
        pretrain.transformer("vit_tiny_distilled", small_pictures, tmp_path / "rest")
    assert not (tmp_path / "rest").exists()
    rest = pretrain.transformer("vit_tiny_distilled", small_pictures, tmp_path / "rest")
    assert rest["sha256"] == whole["sha256"]
    assert rest["seconds"]["resumed"]
