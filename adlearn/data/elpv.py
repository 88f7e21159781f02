"""Solar cells in electroluminescence: the ELPV data set, and good cells with a painted defect and its mask.

A current through the cell makes it glow; what does not take part in the current stays dark. The cells carry one label
each, the probability of a defect as experts saw it: 0, 1/3, 2/3 or 1. The two ends make the data set of `elpv`; the
doubtful thirds are left out of it and kept in `elpv_doubtful`. The real defects have no masks, so `painted=True`
draws defects whose every pixel is known, on good cells, as faint and as strong as the real ones are.

How strong that is was measured on real defects, never on any method's result. A defect's contrast is compared with
the texture that it hides in: `contrast_to_noise` below. On 73 defects, marked by hand in 39 cells that experts call
certainly defective (at 128 pixels; only good cells are painted, so none of these is in a painted test set):

    defect             number   10 %   median   90 %
    crack, mono            13    7.6      9.0   19.5      straight, along the crystal's diagonals
    crack, poly            10    1.7      2.8    4.4      bent, often lost among the grains
    finger failure         27    3.0      6.1   15.4      dark streaks that leave a busbar at a right angle
    dark area              13    3.1      9.0   49        sharp on the side of a crack, streaked along the fingers
    spot                   10    6.5      8.8   12.6      dots and smudges

Below 2 the eye lost them, up to 4 it hesitated, above 8 it saw them at a glance: hence `BANDS`. In a restless cell a
strong contrast cannot be had: there the painted cracks, too, stay below it. Real areas that are quite dead are far
darker than any painted one; areas with no intact cell around them could not be measured and are not in the table.
The marks are in `tests/test_elpv.py`.
"""

from __future__ import annotations

from importlib import resources
from itertools import pairwise

import numpy as np
import torch
from numpy import ndarray
from PIL import Image
from torch import Tensor

from adlearn import cache, checks
from adlearn.data import paint
from adlearn.data.base import OneClass

PAINT_VERSION = 1                               # raise it when any painted pixel changes
BANDS = {"obvious": (8.0, 16.0), "visible": (4.0, 8.0), "faint": (2.0, 4.0)}      # contrast-to-noise, from .. to
LICENCE = "CC BY-NC-SA 4.0"
SOURCE = (
    "the wheel elpv-dataset; Buerhop-Lutz et al., A benchmark for visual identification of defective solar cells in "
    "electroluminescence imagery, EU PVSEC 2018; Deitsch et al., Automatic classification of defective photovoltaic "
    "module cells in electroluminescence images, Solar Energy 185, 2019"
)
_TYPES = {"mono": ("mono",), "poly": ("poly",), "all": ("mono", "poly")}


def elpv(
    kind: str = "mono", *, size: int = 128, painted: bool = False, n: int | None = None, seed: int = 0
) -> OneClass:
    """Functional cells as normal; certainly defective cells, or painted defects, as anomalies.

    Of the functional cells half are for training, a tenth for calibration, and the rest for the test.

    Args:
        kind: "mono" (588 functional, 313 defective cells), "poly" (920, 402) or "all".
        size: height and width in pixels, at least 16; the originals have 300.
        painted: False: all defective cells are in the test, named "defective", without masks. True: every second
            functional test cell gets one defect of `PAINTERS`; its kind is, say, "crack, faint", with the band of
            `BANDS` that its contrast lies in. Outside the mask the cell is untouched; as it was before, it stands
            at the same place in the test set of `painted=False`.
        n: the number of training cells, where fewer than half of the functional ones are wanted; all other parts
            shrink by the same share.
        seed: of the split and of the painting: the same arguments give the same pixels.

    Returns:
        Images of one channel; licence CC BY-NC-SA 4.0.

    Raises:
        ValueError: an unknown kind, a size below 16, an n below 5 or above half of the functional cells.
        ImportError: the wheel is not installed.
    """
    types = _TYPES[checks.choice(kind, _TYPES, "kind")]
    seed = checks.seed(seed)
    cells, probability, poly = _cells(types, size)
    order = np.random.default_rng([seed, 0]).permutation(len(cells))
    good, bad = order[probability[order] == 0], order[probability[order] == 1]
    if n is not None:
        n = checks.positive_int(n, "n", 5)
        checks.between(n, 4, len(good) // 2, "n")
        good, bad = good[: 2 * n], bad[: max(1, round(len(bad) * 2 * n / len(good)))]
    train, calibration, test = np.split(good, [len(good) // 2, len(good) * 6 // 10])
    masks = None
    if painted:
        clean, drawn = np.split(test, [(len(test) + 1) // 2])
        key = {"version": PAINT_VERSION, "kind": kind, "size": size, "n": n, "seed": seed}
        found = cache.tensors("elpv-painted", key, lambda: _painted(cells[drawn], poly[drawn], seed))
        anomalous = found["images"]
        masks = torch.cat([torch.zeros(len(clean), size, size, dtype=torch.bool), found["masks"]])
        names = [f"{_KINDS[k]}, {list(BANDS)[band]}" for k, band in found["kinds"].tolist()]
    else:
        clean, anomalous = test, torch.from_numpy(cells[bad])
        names = ["defective"] * len(bad)
    return OneClass(
        train=_images(cells[train]), calibration=_images(cells[calibration]),
        test=torch.cat([_images(cells[clean]), _images(anomalous)]),
        labels=torch.tensor([0] * len(clean) + [1] * len(names)), masks=masks, kinds=["good"] * len(clean) + names,
        name=f"elpv: {kind}{', painted' if painted else ''}", licence=LICENCE, source=SOURCE,
    )


def elpv_doubtful(kind: str = "all", *, size: int = 128) -> tuple[Tensor, Tensor]:
    """The cells that the experts were not sure about.

    Returns:
        Images (N, 1, size, size) in [0, 1], and the probability (N,) that the cell is defective, 1/3 or 2/3.

    Raises:
        As `elpv`.
    """
    cells, probability, _ = _cells(_TYPES[checks.choice(kind, _TYPES, "kind")], size)
    doubtful = (probability > 0) & (probability < 1)
    return _images(cells[doubtful]), torch.from_numpy(probability[doubtful]).float()


def _cells(types: tuple[str, ...], size: int) -> tuple[ndarray, ndarray, ndarray]:
    """All cells of the types: (N, size, size) uint8, the probability of a defect, and whether it is polycrystalline."""
    size = checks.positive_int(size, "size", 16)
    found = [cache.tensors("elpv", {"type": t, "size": size}, lambda t=t: _read(t, size)) for t in types]
    cells, probability = (torch.cat([part[name] for part in found]).numpy() for name in ("cells", "probability"))
    return cells, probability, np.repeat([t == "poly" for t in types], [len(part["cells"]) for part in found])


def _read(cell_type: str, size: int) -> dict[str, Tensor]:
    try:
        root = resources.files("elpv_dataset") / "data"
    except ModuleNotFoundError as missing:
        raise ImportError("the ELPV cells come in a wheel that is not installed: pip install elpv-dataset") from missing
    cells, probability = [], []
    for line in (root / "labels.csv").read_text().splitlines():
        path, share, found = line.split()
        if found == cell_type:
            with Image.open(root / path) as image:          # bilinear in Pillow averages over the whole reduced pixel
                cells.append(np.asarray(image.resize((size, size), Image.Resampling.BILINEAR)))
            probability.append(round(3 * float(share)) / 3)
    return {"cells": torch.from_numpy(np.stack(cells)), "probability": torch.tensor(probability, dtype=torch.float64)}


def _images(cells) -> Tensor:
    return torch.as_tensor(cells)[:, None] / 255                                        # (N, 1, S, S)


# Painting ----------------------------------------------------------------------------------------------------
# A painter returns the share of light that a defect of full strength takes away, (S, S) in [0, 1]. Lengths are in
# half cells (`paint.grid`): 0.0156 is a pixel at 128. Busbars run across the image, fingers up and down.


def crack(cell: ndarray, poly: bool, rng: np.random.Generator) -> ndarray:
    """A thin dark line: along a crystal diagonal, or wandering through the grains; it may branch."""
    size = len(cell)
    x, y = _wandering(size, poly, rng)
    heading = rng.uniform(0, 2 * np.pi) if poly else np.pi / 4 * rng.choice([1, 3, 5, 7]) + rng.normal(0, 0.06)
    path = _walk(rng.uniform(-0.75, 0.75, 2), heading, rng.uniform(0.6, 1.5), 0.25 if poly else 0.025, rng)
    lines = [paint.polyline(x, y, path, 0)]
    if rng.random() < 0.5:
        turn = rng.uniform(0.5, 1.2) if poly else np.pi / 2
        start = path[rng.integers(2, len(path) - 1)]
        branch = _walk(start, heading + rng.choice([-1, 1]) * turn, rng.uniform(0.2, 0.7), 0.2 if poly else 0.02, rng)
        lines.append(paint.polyline(x, y, branch, 0))
    return _opened(paint.union(*lines), size, rng)[0]


def dark_area(cell: ndarray, poly: bool, rng: np.random.Generator) -> ndarray:
    """A piece that cracks have cut off: darker towards one side, streaked along the fingers; some cracks run on."""
    size = len(cell)
    x, y = _wandering(size, poly, rng)
    centre, extent = rng.uniform(-0.8, 0.8, 2), rng.uniform(0.14, 0.45)
    if poly:
        count = rng.integers(3, 6)
        angles = (np.arange(count) + rng.uniform(-0.3, 0.3, count)) * 2 * np.pi / count + rng.uniform(0, 2 * np.pi)
        radii = extent * rng.uniform(0.6, 1.4, count)
    else:                                       # the sides follow the crystal: a box on its point, or half of one
        angles = np.arange(4)[rng.choice([0, 1]):] * np.pi / 2 + rng.integers(4) * np.pi / 2 + rng.normal(0, 0.05)
        radii = np.full(len(angles), extent)
    corners = [tuple(centre + r * np.array([np.cos(t), np.sin(t)])) for t, r in zip(angles, radii, strict=True)]
    area = paint.polygon(x, y, corners)
    below = y - rng.choice(busbars(cell))
    if (area < 0).any():                        # beyond a busbar the current finds its way again: keep the larger part
        area = paint.inside(area, -below * np.sign(below[area < 0].mean()))
    slope = (x - centre[0]) * rng.uniform(-1, 1) + (y - centre[1]) * rng.uniform(-1, 1)
    shade = np.clip(0.8 + 0.35 * slope / extent, 0.45, 1) * (0.85 + 0.15 * paint.noise(rng, 1, size, 1, 45))
    layer = paint.cover(area, 1.2 * _soft(size)) * shade
    for (ax, ay), (bx, by) in pairwise(corners[: rng.integers(1, 4)]):
        on = rng.uniform(0, 0.8)
        line = paint.segment(x, y, (ax, ay), (bx + on * (bx - ax), by + on * (by - ay)))
        layer = np.maximum(layer, 0.8 * _opened(line, size, rng))
    return layer[0]


def finger_failure(cell: ndarray, poly: bool, rng: np.random.Generator) -> ndarray:
    """Dark streaks along one or several fingers, from a busbar towards the next."""
    size = len(cell)
    x, y = paint.grid(size)
    first, layer = rng.uniform(-0.85, 0.85), np.zeros((1, size, size))
    for k in range(rng.integers(1, 5)):
        place = first if k == 0 else first + rng.normal(0, 0.25)
        from_bar = (y - rng.choice(busbars(cell))) * rng.choice([-1, 1])
        start, length = rng.choice([0.03, rng.uniform(0.03, 0.25)]), rng.uniform(0.14, 0.55)
        along = paint.cover(start - from_bar, 0.06) * paint.cover(from_bar - start - length, rng.uniform(0.06, 0.3))
        wide = rng.choice([0.004, rng.uniform(0.004, 0.03)])
        streak = paint.cover(np.abs(x - place) - wide, rng.uniform(1, 1.7) * _soft(size)) * along
        layer = np.maximum(layer, streak * rng.uniform(0.6, 1))
    return (layer * (0.85 + 0.15 * paint.noise(rng, 1, size, 25, 60)))[0]


def spot(cell: ndarray, poly: bool, rng: np.random.Generator) -> ndarray:
    """A dark dot or a soft smudge."""
    size = len(cell)
    x, y = paint.grid(size)
    cx, cy = rng.uniform(-0.85, 0.85, 2)
    radius = np.exp(rng.uniform(np.log(0.032), np.log(0.17)))
    stretch, angle = rng.uniform(0.6, 1), rng.uniform(0, np.pi)
    u, v = paint.turned(x, y, angle, (cx, cy))
    blob = paint.disc(u, v / stretch, 0, 0, radius) + 0.45 * radius * paint.clouds(rng, 1, size, 10, 2)
    mottled = 0.85 + 0.15 * paint.noise(rng, 1, size, 30)
    return (paint.cover(blob, max(_soft(size), rng.uniform(0.3, 1) * radius)) * mottled)[0]


PAINTERS = {"crack": crack, "dark area": dark_area, "finger failure": finger_failure, "spot": spot}
_KINDS = list(PAINTERS)


def busbars(cell: ndarray) -> ndarray:
    """The heights, in [-1, 1], of three rows where busbars lie (or would, where none is to be seen)."""
    from scipy.ndimage import uniform_filter1d  # here and below: SciPy only when something is painted

    profile = np.median(cell, axis=1)
    dip = uniform_filter1d(profile, len(cell) // 5) - profile
    rows = []
    for row in np.argsort(-dip, kind="stable"):
        if 0.08 < row / len(cell) < 0.92 and all(abs(row - other) > len(cell) / 5 for other in rows):
            rows.append(row)
    return (np.array(rows[:3]) + 0.5) * 2 / len(cell) - 1


def contrast_to_noise(cell: ndarray, mask: ndarray, before: ndarray | None = None) -> float:
    """How far a defect stands out of the cell's texture: |level inside - level it should have| / deviation.

    The level inside is the mean over the mask. The level it should have is the mean of the same pixels `before` the
    painting; of a real defect, the median of a ring around it, 2 to 8 pixels off at 128 pixels. The deviation is 1.4826
    times the median absolute deviation of what a moving average along the rows leaves of the cell, before the
    painting if there was one: along the rows, so that busbars do not count as texture. It is at least one grey level.

    Args:
        cell, before: (S, S) grey levels, 0 to 255.
        mask: (S, S) bool.
    """
    from scipy.ndimage import distance_transform_edt, uniform_filter1d

    if before is None:
        off = distance_transform_edt(~mask) * 128 / len(cell)
        level = np.median(cell[(off > 2) & (off <= 8)])
    else:
        level = before[mask].mean()
    source = (cell if before is None else before).astype(float)
    texture = source - uniform_filter1d(source, len(cell) // 16 * 2 + 1, axis=1)
    deviation = max(1.4826 * np.median(np.abs(texture - np.median(texture))), 1.0)
    return float(abs(cell[mask].mean() - level) / deviation)


def paint_defect(
    cell: ndarray, kind: str, band: str, poly: bool, rng: np.random.Generator
) -> tuple[ndarray, ndarray, str]:
    """Paint one defect: the cell (S, S) uint8, its mask (S, S) bool, and the band its contrast lies in.

    Places are drawn anew until the contrast can be had; where a cell is too dark or too restless for the band, the
    next fainter one is taken.
    """
    for name in list(BANDS)[list(BANDS).index(band) :]:
        for _ in range(25):
            layer = PAINTERS[kind](cell, poly, rng)
            found = _at_contrast(cell, layer, BANDS[name], rng)
            if found is not None:
                return *found, name
    raise RuntimeError(f"no place for a {kind} was found on this cell, of mean {cell.mean():.0f}")


def _at_contrast(cell: ndarray, layer: ndarray, band: tuple[float, float], rng) -> tuple[ndarray, ndarray] | None:
    """Paint the layer with the strength at which its measured contrast is a number drawn from the band, or refuse."""
    low, high = band
    target = rng.uniform(low + 0.1, high - 0.1)
    mask = layer >= 0.15                        # fainter rims would be less than a grey level
    if mask.sum() < max(5, 4e-4 * mask.size) or cell[mask].mean() < 0.8 * np.median(cell):
        return None                             # it fell on the frame, or out of the picture
    fully = np.where(mask, cell * (1 - layer), cell)
    strength = target / max(contrast_to_noise(fully, mask, before=cell), 1e-9)          # contrast grows in proportion
    if strength > 0.95:
        return None
    shown = np.where(mask, np.rint(cell * (1 - strength * layer)), cell).astype(np.uint8)
    return (shown, mask) if low <= contrast_to_noise(shown, mask, before=cell) < high else None


def _painted(cells: ndarray, poly: ndarray, seed: int) -> dict[str, Tensor]:
    """Paint each cell; kinds and bands take turns, so that all of their pairs are equally frequent."""
    images, masks, kinds = [], [], []
    for k, cell in enumerate(cells):
        kind, band = k % len(_KINDS), k // len(_KINDS) % len(BANDS)
        rng = np.random.default_rng([seed, 1, int(poly[k]), k])
        image, mask, name = paint_defect(cell, _KINDS[kind], list(BANDS)[band], bool(poly[k]), rng)
        images.append(image)
        masks.append(mask)
        kinds.append((kind, list(BANDS).index(name)))
    return {
        "images": torch.from_numpy(np.stack(images)), "masks": torch.from_numpy(np.stack(masks)),
        "kinds": torch.tensor(kinds),
    }


def _walk(start, heading: float, length: float, wander: float, rng: np.random.Generator) -> list[tuple[float, float]]:
    """A path of twelve steps whose heading drifts by about `wander` radians a step, back to where it was going."""
    point, path, drift = np.array(start, float), [tuple(start)], 0.0
    for _ in range(12):
        drift = 0.7 * drift + rng.normal(0, wander)
        point = point + length / 12 * np.array([np.cos(heading + drift), np.sin(heading + drift)])
        path.append(tuple(point))
    return path


def _wandering(size: int, poly: bool, rng: np.random.Generator) -> tuple[ndarray, ndarray]:
    """Coordinates in which straight lines wander as cracks do between grains; plain ones for a single crystal."""
    sway = (0.045, 0.018) if poly else (0.004, 0.002)
    x, y = paint.grid(size)
    shift = [sum(a * paint.noise(rng, 1, size, c) for a, c in zip(sway, (5, 20), strict=True)) for _ in range(2)]
    return x + shift[0], y + shift[1]


def _opened(line: ndarray, size: int, rng: np.random.Generator) -> ndarray:
    """A crack along a line, here wider and there closed."""
    opening = 0.005 * paint.noise(rng, 1, size, 8) + rng.uniform(-0.002, 0.006)
    return paint.cover(line - opening, 1.4 * _soft(size)) * (0.75 + 0.25 * paint.noise(rng, 1, size, 9))


def _soft(size: int) -> float:
    """The width of an edge: the camera's blur, or a pixel and a half where that is more."""
    return max(0.022, 3 / size)
