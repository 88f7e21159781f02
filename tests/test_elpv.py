"""The solar cells, plain and painted."""

import hashlib
import sys
from importlib import resources

import numpy as np
import pytest
import torch
from PIL import Image

from adlearn.data import elpv, elpv_doubtful, paint

module = sys.modules["adlearn.data.elpv"]       # the package's attribute of that name is the function
BANDS, PAINTERS = module.BANDS, module.PAINTERS

# Defects of certainly defective cells, marked by hand at 128 pixels: the row of the cell in labels.csv, then x and y
# of points along a line (cracks, fingers), of corners (areas), or of a centre and then a radius (spots). Lines and
# spots were then moved to the darkest place within three pixels.
MARKS = {
    "crack": """
        389: 25.8 4.4 88 65; 510: 76 6 10 69; 489: 54.7 -0.4 124.9 64; 1107: 5 22 55 59.1; 1107: 62 63.8 110 101.5;
        1588: 114.6 101 128 114.9; 1142: 32.2 5.1 65.3 37.6; 427: 124 66.1 77.9 106; 405: 35.6 36 102.3 103.8;
        456: 99.1 106 117.8 127; 528: 97.7 21.3 31.2 94.3; 475: 63 44.5 74.4 48; 0: 30.4 52 33.4 66.9 30.9 77;
        850: 18 33 48 71; 230: 84.7 19.3 93.6 39 110.7 45.6 124 49; 1638: 46.4 29.3 78 44.7 98 59;
        2073: 86.4 4 98.7 21.8; 891: 70.1 34 103.4 75.7; 145: 0.6 80.8 52.5 88.2 128 102.1; 836: 56.6 75 101 109.2;
        712: 17 66.9 53.6 41.8 98 22; 699: 45 0.9 27.8 19; 319: 17.4 64.5 63 38.2
    """,
    "finger failure": """
        510: 57.4 36.3 57.5 51; 489: 33.6 76 32.1 95.1; 1085: 31.6 34.7 31.2 64; 1085: 53.6 36.3 53.5 53.4;
        1085: 75.4 63.3 75.6 90.3; 1040: 101.6 29 101.2 49.2; 1040: 26.4 72.9 26.5 96.9; 1040: 83.4 36.7 83.8 48.7;
        1588: 45.1 -0.9 45.6 10; 1588: 62.7 -0.6 62.4 18; 995: 34.5 28.6 34.5 55.6; 995: 37.6 63.8 37.5 101.3;
        456: 28.5 32.5 28.4 44; 456: 63.4 63 63.6 100.5; 456: 91.6 63 91.5 91.3; 475: 108.6 64 108.5 80.4;
        475: 114.4 65 115.1 83.8; 1045: 21 40.3 20.4 53; 195: 67.5 81.4 67.6 97; 850: 101.6 68 101.3 90.9;
        816: 66.3 79.5 66.5 98; 816: 74.6 74.8 74.2 85.6; 319: 66.3 32 66.5 60.3; 2073: 114.5 5 114.4 21.3;
        1638: 17.6 71 16.5 99; 1617: 79 68.3 79 90.8; 1047: 99.8 2 99.3 12.5
    """,
    "dark area": """
        514: 86 81 100 68 110 76 109 92 102 97; 47: 8 86 90 86 110 95 105 108 8 106; 39: 19 88 53 86 35 103;
        39: 62 90 78 82 82 87 69 95; 405: 3 37 35 37 19 55; 528: 80 2 110 2 95 16;
        195: 35 114 50 113 63 124 36 124; 1614: 67 32 83 28 86 35 70 46;
        1614: 44 92 57 72 66 70 110 69 90 76 84 94; 319: 90 27 101 6 125 3 125 22; 1617: 43 45 50 37 61 47;
        252: 46 78 60 77 90 82 75 84; 891: 100 124 124 100 124 124
    """,
    "spot": """
        1040: 70 39 1.5; 1388: 106.5 40.5 7; 995: 25 36 1.5; 477: 106 46 1.3; 477: 108 51 1.3; 0: 63.5 38.2 1.8;
        195: 43.5 112.5 2.6; 199: 12 8.5 2.4; 836: 60 41.5 2.3; 123: 54.5 56.5 2.2
    """,
}


def marked(kind):
    """Each marked cell, (128, 128) grey levels, with the mask of its mark."""
    x, y = paint.grid(128)
    for entry in MARKS[kind].split(";"):
        row, numbers = entry.split(":")
        values = np.array(numbers.split(), float)
        with Image.open(resources.files("elpv_dataset") / "data" / "images" / f"cell{int(row) + 1:04d}.png") as image:
            cell = np.asarray(image.resize((128, 128), Image.Resampling.BILINEAR))
        points = [tuple(p / 64 - 1) for p in values[: len(values) // 2 * 2].reshape(-1, 2)]
        if kind == "spot":
            distance = paint.disc(x, y, *points[0], values[2] / 64)
        elif kind == "dark area":
            distance = paint.polygon(x, y, points)
        else:
            distance = paint.polyline(x, y, points, 0.9 / 64)
        yield cell, distance[0] < 0


@pytest.fixture(scope="module")
def mono():
    return elpv("mono", size=64)


@pytest.fixture(scope="module")
def painted():
    return elpv("mono", size=64, painted=True)


def test_split(mono):
    assert (len(mono.train), len(mono.calibration), len(mono.test)) == (294, 58, 236 + 313)
    assert mono.train.shape[1:] == (1, 64, 64)
    assert mono.train.dtype == torch.float32
    assert mono.train.min() >= 0
    assert mono.train.max() <= 1
    assert mono.labels.tolist() == [0] * 236 + [1] * 313
    assert mono.kinds == ["good"] * 236 + ["defective"] * 313
    assert mono.masks is None
    assert mono.licence == "CC BY-NC-SA 4.0"


def test_splits_are_disjoint_and_follow_the_seed(mono):
    parts = [mono.train, mono.calibration, mono.test[mono.labels == 0]]
    cells = [{image.numpy().tobytes() for image in part} for part in parts]
    whole = set.union(*cells)
    assert len(whole) == sum(map(len, cells))
    other = elpv("mono", size=64, seed=1)
    assert not torch.equal(other.train, mono.train)
    good = [other.train, other.calibration, other.test[other.labels == 0]]
    assert {image.numpy().tobytes() for part in good for image in part} == whole


def test_n_takes_the_first_cells(mono):
    few = elpv("mono", size=64, n=50)
    assert (len(few.train), len(few.calibration)) == (50, 10)
    assert few.labels.bincount().tolist() == [40, round(313 * 100 / 588)]
    assert torch.equal(few.train, mono.train[:50])


def test_cells_are_those_of_the_wheel():
    with Image.open(resources.files("elpv_dataset") / "data" / "images" / "cell0001.png") as image:
        first = torch.from_numpy(np.asarray(image.resize((64, 64), Image.Resampling.BILINEAR)) / np.float32(255))
    data = elpv("mono", size=64)                # row 1 of labels.csv: mono, probability 1
    assert (data.test[data.labels == 1, 0] == first).flatten(1).all(1).sum() == 1


def test_doubtful_cells():
    images, probability = elpv_doubtful("mono", size=64)
    assert images.shape == (117 + 56, 1, 64, 64)
    assert probability.dtype == torch.float32
    assert [round(3 * p) for p in probability.unique().tolist()] == [1, 2]
    assert (probability > 0.5).sum() == 56


def test_painted_record(mono, painted):
    assert torch.equal(painted.train, mono.train)
    assert torch.equal(painted.calibration, mono.calibration)
    assert painted.labels.tolist() == [0] * 118 + [1] * 118
    assert painted.masks.shape == (236, 64, 64)
    assert painted.masks.dtype == torch.bool
    assert torch.equal(painted.masks.flatten(1).any(1), painted.labels == 1)
    assert {kind.split(", ")[0] for kind in painted.kinds[118:]} == set(PAINTERS)
    counts = [sum(kind.startswith(name) for kind in painted.kinds) for name in PAINTERS]
    assert max(counts) - min(counts) <= 1


def test_paint_stays_inside_its_mask_and_in_its_band(mono, painted):
    """The unpainted twin of each painted cell is the cell at its place in the plain test set."""
    before = (mono.test[118:236, 0] * 255).round().numpy()
    after = (painted.test[118:, 0] * 255).round().numpy()
    masks = painted.masks[118:].numpy()
    assert (before == after)[~masks].all()
    assert (after <= before).all()              # a defect takes light away
    changed = [(b != a)[m].mean() for b, a, m in zip(before, after, masks, strict=True)]
    assert np.mean(changed) > 0.93
    assert min(changed) > 0.5
    for b, a, m, kind in zip(before, after, masks, painted.kinds[118:], strict=True):
        low, high = BANDS[kind.split(", ")[1]]
        assert low <= module.contrast_to_noise(a, m, before=b) < high, kind


def test_bands_are_even_where_the_cells_are_calm(painted):
    bands = [kind.split(", ")[1] for kind in painted.kinds[118:]]
    assert all(bands.count(band) > 30 for band in BANDS)


def test_paint_is_fixed(painted):
    levels = (painted.test[118:] * 255).round().to(torch.uint8)
    assert torch.equal(levels / 255, painted.test[118:])
    assert hashlib.sha256(levels.numpy().tobytes()).hexdigest()[:16] == "57a5264ef47f0322", (
        "pixels changed: raise PAINT_VERSION; on another platform, a difference of one grey level is rounding")


@pytest.mark.parametrize("kind", PAINTERS)
def test_every_painter_on_every_sort_of_cell(kind):
    rng = np.random.default_rng(0)
    calm = np.full((96, 96), 150.0) + rng.normal(0, 2, (96, 96))
    restless = 120 + 60 * paint.clouds(rng, 1, 96, 6)[0]
    dark = np.full((96, 96), 12.0)
    for cell in (calm, restless, dark):
        cell = np.clip(cell, 0, 255).astype(np.uint8)
        for poly in (False, True):
            shown, mask, band = module.paint_defect(cell, kind, "obvious", poly, np.random.default_rng(1))
            assert (shown == cell)[~mask].all()
            assert (shown != cell).any()
            assert band in BANDS


def test_contrast_to_noise_of_a_known_patch():
    rng = np.random.default_rng(0)
    before = rng.normal(150, 4, (128, 128))
    mask = np.zeros((128, 128), bool)
    mask[50:70, 50:70] = True
    after = before - 20 * mask
    assert module.contrast_to_noise(after, mask, before=before) == pytest.approx(5, rel=0.06)
    assert module.contrast_to_noise(after, mask) == pytest.approx(5, rel=0.1)          # as of a real defect


def test_busbars_are_found():
    cell = np.full((128, 128), 180.0)
    cell[[21, 22, 63, 64, 105, 106]] = 60
    assert np.sort(module.busbars(cell)) == pytest.approx([-0.66, 0, 0.66], abs=0.02)


@pytest.mark.parametrize(
    ("kind", "poly", "low", "middle", "high"),
    [
        ("crack", False, 7.6, 9.0, 19.5),
        ("crack", True, 1.7, 2.8, 4.4),
        ("finger failure", None, 3.0, 6.1, 15.4),
        ("dark area", None, 3.1, 9.0, 49.2),
        ("spot", None, 6.5, 8.8, 12.6),
    ],
)
def test_the_table_of_real_defects(kind, poly, low, middle, high):
    """The figures in the module's opening are what the marks give."""
    cells = list(marked(kind))
    if kind == "crack":                         # the marks name 13 cracks of mono cells first
        cells = cells[13:] if poly else cells[:13]
    found = [module.contrast_to_noise(cell, mask) for cell, mask in cells]
    assert np.percentile(found, [10, 50, 90]) == pytest.approx([low, middle, high], abs=0.06)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "thin"}, "kind must be one of 'mono', 'poly', 'all', got 'thin'"),
        ({"kind": ["mono"]}, "kind must be one of 'mono', 'poly', 'all'"),
        ({"size": 15}, "size must be a whole number of at least 16, got 15"),
        ({"seed": 0.5}, "seed must be"),
        ({"size": 64, "n": 4}, "n must be a whole number of at least 5"),
        ({"size": 64, "n": 295}, "n must be above 4 and at most 294"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        elpv(**options)


def test_a_missing_wheel_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "elpv_dataset", None)
    with pytest.raises(ImportError, match="pip install elpv-dataset"):
        module._read("mono", 16)
