"""The loaders that read scikit-learn's sets or the reader's disk."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from adlearn import data
from adlearn.data.cifar10 import CLASSES
from adlearn.data.folder import unit_pixels


def picture(path, value=128, size=(20, 16), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode != "RGB" else (value, 0, 255)).save(path)


def test_digits():
    split = data.digits(3)
    assert split.train.shape[1:] == (1, 8, 8)
    assert split.train.max() == 1
    assert len(split.test) == len(split.labels) == len(split.kinds)
    assert {kind for kind, label in zip(split.kinds, split.labels, strict=True) if label == 0} == {"good"}
    assert len(set(split.kinds)) == 10
    assert torch.equal(data.digits(3).train, split.train)
    assert not torch.equal(data.digits(3, seed=1).train, split.train)
    with pytest.raises(ValueError, match="normal must be one of"):
        data.digits(10)
    for bad in (True, 3.0, "3", -1, [3]):
        with pytest.raises(ValueError, match="normal must be"):
            data.digits(bad)
    assert torch.equal(data.digits(np.int64(3)).train, split.train)


@pytest.mark.parametrize("seed", [-1, 0.5, "0", None, 2**70])
def test_seeds_are_checked(seed, tmp_path):
    for load in (data.digits, data.tabular, data.moons, lambda seed: data.mvtec(tmp_path, "bottle", seed=seed),
                 lambda seed: data.cifar10(root=tmp_path, seed=seed)):
        with pytest.raises(ValueError, match="seed must be"):
            load(seed=seed)


def test_moons():
    moons = data.moons(n=200, labelled=6)
    assert (moons.train_labels >= 0).sum() == 6
    assert (moons.train_labels == 1).sum() == 3
    assert set(moons.test_labels.tolist()) == {0, 1}
    assert not torch.equal(moons.train, moons.test)
    for bad in ({"labelled": 3}, {"noise": -1}, {"noise": "much"}, {"noise": None}, {"n": 0}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            data.moons(**bad)


@pytest.mark.parametrize("name", ["breast_cancer", "wine"])
def test_tabular_is_standardised_by_training_rows_alone(name):
    rows = data.tabular(name)
    assert torch.allclose(rows.train.mean(0), torch.zeros(rows.train.shape[1]), atol=1e-4)
    assert torch.allclose(rows.train.std(0), torch.ones(rows.train.shape[1]), atol=1e-3)
    assert rows.labels.sum() > 0
    with pytest.raises(ValueError, match="name must be one of"):
        data.tabular("iris")


def test_folder_reads_sorted_and_resized(tmp_path):
    picture(tmp_path / "b.png", 255)
    picture(tmp_path / "a.jpg", 0)
    picture(tmp_path / "c" / "grey.png", 100, mode="L")
    Image.fromarray(np.full((9, 9), 40000, np.uint16)).save(tmp_path / "d.png")
    (tmp_path / ".ipynb_checkpoints").mkdir()
    (tmp_path / "folder.png").mkdir()
    for hidden in (".hidden.png", ".ipynb_checkpoints/a-checkpoint.png"):
        picture(tmp_path / hidden, 0)
    images = data.folder(tmp_path, size=24)
    assert [f.name for f in images.files] == ["a.jpg", "b.png", "grey.png", "d.png"]
    assert images[1:3].shape == (2, 3, 24, 24)
    by_name = {f.name: images[[i]] for i, f in enumerate(images.files)}
    assert by_name["b.png"][0, 0].mean() == 1
    assert abs(by_name["d.png"].mean() - 40000 / 65535) < 0.01


@pytest.mark.parametrize(("kind", "value", "expected"), [
    (np.uint16, 1, 0), (np.uint16, 300, 1 / 255), (np.uint16, 65535, 1), (np.int32, 65535, 1), (np.float32, 0.2, 0.2),
    (np.uint8, 1, 1 / 255), (np.int32, 70000, None), (np.int32, -1, None), (np.float32, 200, None),
    (np.float32, np.nan, None), (np.float32, -0.1, None),
])
def test_the_scale_follows_from_the_kind_of_file(tmp_path, kind, value, expected):
    Image.fromarray(np.full((9, 9), value, kind)).save(tmp_path / "a.tif")
    images = data.folder(tmp_path, size=9)
    if expected is None:
        with pytest.raises(ValueError, match=r"a\.tif must hold numbers from 0 to .* rescale"):
            images[:]
    else:
        assert images[:].unique().tolist() == pytest.approx([expected], abs=1e-6)


def test_folder_turns_images_upright(tmp_path):
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:, 8:] = 255                                         # the right half is bright
    exif = Image.Exif()
    exif[0x0112] = 6                                            # turn by a quarter clockwise: right becomes bottom
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    image = data.folder(tmp_path, size=8)[0]
    assert image[:, 6:].mean() > 0.95
    assert image[:, :2].mean() < 0.05


def test_folder_refuses_bombs_and_strange_colours(tmp_path, monkeypatch):
    picture(tmp_path / "a.png", size=(64, 64))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match=r"a\.png cannot be read.*bomb"):
        data.folder(tmp_path)[0]
    with pytest.raises(ValueError, match=r"a\.tif cannot be read as RGB"):
        unit_pixels(Image.new("La", (9, 9)), 9, tmp_path / "a.tif")


def test_sequences_are_indexed_like_tensors():
    tensor = torch.rand(5, 1, 8, 8)
    images = data.as_images(torch.utils.data.TensorDataset(tensor))
    for which in (0, -1, slice(4, None, -2), [0, 0], [-2], np.array([3]), torch.tensor([1, 2]), tensor[:, 0, 0, 0] > 0):
        expected = tensor[[4, 2, 0]] if which == slice(4, None, -2) else tensor[which]
        assert torch.equal(images[which], expected)
    assert len(list(images)) == 5
    for empty in (slice(5, 5), [], None):
        with pytest.raises(ValueError, match="at least one of the 5 images"):
            images[empty]
    with pytest.raises(IndexError):
        images[5]


def test_folder_refuses_missing_empty_and_damaged(tmp_path):
    with pytest.raises(ValueError, match="path must be a path, got None"):
        data.folder(None)
    with pytest.raises(FileNotFoundError, match="existing folder"):
        data.folder(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="found none"):
        data.folder(tmp_path)
    picture(tmp_path / "cut.png")
    content = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(content[:40])
    with pytest.raises(ValueError, match=r"cut\.png cannot be read"):
        data.folder(tmp_path)[:]
    with pytest.raises(ValueError, match=r"of 1 none can: .*cut\.png cannot be read"):
        data.as_images(tmp_path)
    picture(tmp_path / "whole.png")
    with pytest.warns(UserWarning, match=r"1 of 2 images are left out: .*cut\.png cannot be read"):
        images = data.folder(tmp_path, damaged="skip")
    assert [file.name for file in images.files] == ["whole.png"]
    assert images[:].shape == (1, 3, 256, 256)
    with pytest.raises(ValueError, match="damaged must be one of"):
        data.folder(tmp_path, damaged="ignore")
    with pytest.raises(ValueError, match="size must be"):
        data.folder(tmp_path, size=2)


def test_as_images_takes_tensors_datasets_and_folders(tmp_path):
    tensor = torch.rand(5, 1, 8, 8)
    assert data.as_images(tensor) is tensor
    dataset = torch.utils.data.TensorDataset(tensor, torch.arange(5))
    images = data.as_images(dataset)
    assert len(images) == 5
    assert torch.equal(images[1:4], tensor[1:4])
    assert torch.equal(images[[4, 0]], tensor[[4, 0]])
    picture(tmp_path / "a.png")
    assert data.as_images(str(tmp_path))[:].shape == (1, 3, 256, 256)
    with pytest.raises(ValueError, match="ToTensor"):
        data.as_images(torch.utils.data.TensorDataset(torch.zeros(2)))[:1]
    with pytest.raises(ValueError, match=r"images must lie in \[0, 1\]"):
        data.as_images(torch.utils.data.TensorDataset(tensor * 300))[:]
    with pytest.raises(ValueError, match="length 0"):
        data.as_images(torch.utils.data.TensorDataset(tensor[:0]))


def mvtec_folder(root):
    for i in range(12):
        picture(root / f"bottle/train/good/{i:03}.png", i)
    picture(root / "bottle/test/good/000.png")
    picture(root / "bottle/test/hole/000.png")
    mask = np.zeros((16, 20), np.uint8)
    mask[4:8, 10:15] = 255
    (root / "bottle/ground_truth/hole").mkdir(parents=True)
    Image.fromarray(mask).save(root / "bottle/ground_truth/hole/000_mask.png")
    return root


def test_mvtec_layout(tmp_path):
    split = data.mvtec(mvtec_folder(tmp_path), "bottle", size=40)
    assert len(split.train) == 11
    assert len(split.calibration) == 1
    assert split.kinds == ["good", "hole"]
    assert split.labels.tolist() == [0, 1]
    assert split.masks.shape == (2, 40, 40)
    assert not split.masks[0].any()
    assert split.masks[1, 10:20, 20:30].all()
    assert split.masks[1].sum() == 100


def test_mvtec_refuses_what_does_not_fit(tmp_path):
    root = mvtec_folder(tmp_path)
    with pytest.raises(FileNotFoundError, match="train/good"):
        data.mvtec(root, "cable")
    mask = root / "bottle/ground_truth/hole/000_mask.png"
    kept = mask.read_bytes()
    Image.new("L", (10, 10)).save(mask)
    with pytest.raises(ValueError, match="a mask must fit its image"):
        data.mvtec(root, "bottle")
    mask.write_bytes(kept[:30])
    with pytest.raises(ValueError, match=r"000_mask\.png cannot be read"):
        data.mvtec(root, "bottle")
    Image.new("L", (20, 16)).save(mask)
    with pytest.raises(ValueError, match=r"000_mask\.png .* marks no pixel at all: repair it"):
        data.mvtec(root, "bottle")
    speck = np.zeros((16, 20), np.uint8)
    speck[0, 0] = 1
    Image.fromarray(speck).save(mask)
    with pytest.raises(ValueError, match="raise size"):
        data.mvtec(root, "bottle", size=8)
    mask.unlink()
    with pytest.raises(ValueError, match=r"has no mask: expected .*000_mask\.png"):
        data.mvtec(root, "bottle")
    mask.write_bytes(kept)
    orphan = root / "bottle/ground_truth/hole/007_mask.png"
    orphan.write_bytes(kept)
    with pytest.raises(ValueError, match=r"1 masks have no image .*007_mask\.png"):
        data.mvtec(root, "bottle")
    orphan.unlink()
    (root / "bottle/test/crack").mkdir()
    with pytest.raises(ValueError, match=r"must hold images .*crack"):
        data.mvtec(root, "bottle")
    with pytest.raises(ValueError, match="category must be a path, got None"):
        data.mvtec(root, None)


@pytest.mark.parametrize("change", [
    lambda mask: Image.fromarray(mask // 255),                                  # 0 and 1
    lambda mask: Image.fromarray(mask > 0),
    lambda mask: Image.fromarray((mask > 0).astype(np.uint16)),
])
def test_mvtec_masks_are_anomalous_where_they_are_not_0(tmp_path, change):
    root = mvtec_folder(tmp_path)
    plain = data.mvtec(root, "bottle", size=40)
    mask = root / "bottle/ground_truth/hole/000_mask.png"
    change(np.array(Image.open(mask))).save(mask)
    assert torch.equal(data.mvtec(root, "bottle", size=40).masks, plain.masks)


def jpeg_file(path, side=32, **change):
    """A CIFAR-10 in the layout of the .npz, with three images a class."""
    keys = {"classes": np.array(CLASSES)}
    for part in ("train", "test"):
        files = []
        for i in range(30):
            buffer = io.BytesIO()
            Image.new("RGB", (side, side), (8 * i, 0, 0)).save(buffer, "jpeg")
            files.append(buffer.getvalue())
        keys |= {f"{part}_bytes": np.frombuffer(b"".join(files), np.uint8), f"{part}_labels": np.arange(30) % 10,
                 f"{part}_offsets": np.cumsum([0, *map(len, files)])}
    np.savez(path, **(keys | change))
    return path


def test_cifar10_from_jpegs(tmp_path):
    split = data.cifar10("bird", root=jpeg_file(tmp_path / "c.npz"))
    assert (len(split.train), len(split.calibration)) == (2, 1)
    assert split.test.shape == (30, 3, 32, 32)
    assert split.labels.sum() == 27
    assert split.kinds[2] == "good"
    assert "JPEG copy" in split.name


@pytest.mark.parametrize("change", [
    {"side": 24},
    {"train_labels": np.arange(30) % 10 - 1},
    {"test_labels": np.arange(30) % 11},
    {"train_labels": np.arange(29) % 10},
    {"train_labels": np.arange(30) / 10},
    {"train_offsets": np.zeros(31, int)},
    {"classes": np.array(["lorry", *CLASSES[1:]])},
])
def test_cifar10_refuses_another_content(tmp_path, change):
    with pytest.raises(ValueError, match="fetch it again"):
        data.cifar10("bird", root=jpeg_file(tmp_path / "c.npz", **change))


def test_cifar10_refuses_an_empty_class(tmp_path):
    for part in ("train", "test"):
        path = jpeg_file(tmp_path / "c.npz", **{f"{part}_labels": np.arange(30) % 2})
        with pytest.raises(ValueError, match="at least 2 training images of normal='bird'"):
            data.cifar10("bird", root=path)


def test_cifar10_refuses(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="normal must be one of"):
        data.cifar10("lorry")
    with pytest.raises(FileNotFoundError, match=r"existing \.npz"):
        data.cifar10(root=tmp_path / "none.npz")
    path = jpeg_file(tmp_path / "c.npz")
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match="fetch it again"):
        data.cifar10(root=path)
    import torchvision.datasets

    def offline(*_, **__):
        raise RuntimeError("no network")

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", offline)
    with pytest.raises(FileNotFoundError, match="cifar-10-batches-py"):
        data.cifar10(root=tmp_path)


def test_loaders_print_nothing(capfd, tmp_path, cache_folder):
    data.digits(1)
    data.moons(n=50)
    data.tabular()
    data.elpv("mono", size=16, n=5, painted=True)
    data.elpv_doubtful("mono", size=16)
    data.parts(n=1, size=16, defects=True)
    data.parts_labelled(n=1, size=16)
    data.folder(mvtec_folder(tmp_path))[:2]
    data.mvtec(tmp_path, "bottle", size=16)
    data.cifar10(root=jpeg_file(tmp_path / "c.npz"))
    assert capfd.readouterr() == ("", "")
