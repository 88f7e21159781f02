"""Drawn small parts: bolts, keys, gears, ... in an upright pose, in free colours, on varied backgrounds.

Small enough to learn in seconds, yet not solved by comparing pixels: colour, background and light are drawn
independently of the class, so only the shape tells what an image shows. `SYMMETRIC` names the two classes that look
the same after a quarter turn, `UPRIGHT` the others: a method that learns by predicting rotations has nothing to learn
from the two.

An image is fixed by (seed, split, class, index) and by the size; it does not depend on what else is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy import ndarray

from adlearn import cache, checks
from adlearn.data import paint
from adlearn.data.base import Labelled, OneClass
from adlearn.data.paint import arc, box, disc, inside, minus, polygon, polyline, ring, segment, union

VERSION = 1                                     # raise it when any pixel changes
CHUNK = 32                                      # images drawn at once: one random stream each, bounded memory
VISIBLE = 6                                     # grey levels by which damage must change a pixel to be masked
SPLITS = ("train", "calibration", "test", "damage")
SYMMETRIC = ("washer", "gear")


# The classes: each takes local coordinates and three shape factors, (B, 1, 1) in [-1, 1], and returns the signed
# distance of the body and that of the lines on it (threads, facets) or None.


def bolt(x, y, a, b, c):
    width, head = 0.2 + 0.025 * a, 0.43 + 0.04 * b
    thread = 0.03 * np.abs((y / 0.17) % 2 - 1) * (y > 0.02 + 0.1 * c)
    shank = inside(np.abs(x) - width + thread, np.abs(y - 0.2) - 0.54)
    lines = inside(np.abs((y + 0.15 * x) % 0.17 - 0.085) - 0.03, np.abs(x) - width, 0.02 + 0.1 * c - y)
    facets = inside(np.abs(np.abs(x) - 0.2) - 0.02, np.abs(y + 0.54) - 0.2)
    return union(box(x, y, 0, -0.54, head, 0.2, 0.08), shank), union(lines, facets)


def screw(x, y, a, b, c):
    top, neck = 0.42 + 0.04 * a, 0.12 + 0.015 * b
    head = polygon(x, y, [(-top, -0.75), (top, -0.75), (neck, -0.42), (-neck, -0.42)])
    core = polygon(x, y, [(-neck, -0.45), (neck, -0.45), (0.09, 0.45), (0, 0.8), (-0.09, 0.45)])
    turns = [(k, (0.21 + 0.02 * c) * (1 - 0.11 * k)) for k in range(5)]
    thread = union(*(segment(x, y, (-r, -0.2 + 0.19 * k), (r, -0.27 + 0.19 * k), 0.035) for k, r in turns))
    return minus(union(head, core, thread), box(x, y, 0, -0.75, 0.06, 0.1)), None


def washer(x, y, a, b, c):
    return ring(x, y, 0, 0, 0.66 + 0.06 * a, 0.31 + 0.06 * b), None


def gear(x, y, a, b, c):
    angle, radius = np.arctan2(y, x), np.sqrt(x * x + y * y)
    teeth = np.clip(3 * np.cos(8 * angle), -1, 1) * (0.085 + 0.01 * a)
    body = 0.9 * (radius - 0.61 - teeth)        # teeth are steeper than a circle: 0.9 keeps this close to a distance
    return minus(body, disc(x, y, 0, 0, 0.22 + 0.04 * b)), np.abs(radius - 0.4 - 0.02 * c) - 0.02


def wrench(x, y, a, b, c):
    jaw, eye = 0.35 + 0.03 * a, 0.23 + 0.02 * b
    u, v = paint.turned(x, y, 0.26, (0, -0.48))
    head = minus(disc(u, v, 0, 0, jaw), box(u, v, 0, -0.26, 0.15 + 0.02 * c, 0.3, 0.06))
    eyelet = ring(x, y, 0, 0.57, eye, 0.11)
    handle = box(x, y, 0, 0.05, 0.1, 0.38)
    return union(head, handle, eyelet), box(x, y, 0, 0.08, 0.03, 0.22, 0.03)


def key(x, y, a, b, c):
    bow = ring(x, y, 0, -0.45, 0.34 + 0.03 * a, 0.17 + 0.02 * b)
    shaft = box(x, y, 0, 0.33, 0.075, 0.46)
    bits = union(box(x, y, 0.15, 0.38, 0.15 + 0.03 * c, 0.06), box(x, y, 0.17, 0.67, 0.17 - 0.03 * c, 0.1))
    return union(bow, shaft, bits), None


def spring(x, y, a, b, c):
    """A tension spring: an eye at the top, six coils, a straight end at the foot."""
    width, pitch = 0.36 + 0.03 * a, 0.165 + 0.008 * b
    rows = [-0.27 + pitch * k for k in range(6)]
    fronts = [segment(x, y, (-width, r), (width, r - 0.07), 0.055) for r in rows]
    backs = [segment(x, y, (width, r - 0.07), (-width, r + pitch), 0.03) for r in rows[:-1]]
    eye = union(arc(x, y, 0, -0.58, 0.17 + 0.02 * c, -3.6, 1.6, 0.05), segment(x, y, (0, -0.4), (-width, -0.27), 0.05))
    end = polyline(x, y, [(width, rows[-1] - 0.07), (0.3, 0.72), (0.62, 0.75)], 0.05)
    return union(*fronts, *backs, eye, end), None


def bracket(x, y, a, b, c):
    upright, foot = 0.17 + 0.02 * a, 0.16 + 0.02 * b
    arm = box(x, y, -0.48, 0, upright, 0.7, 0.05)
    base = box(x, y, 0, 0.7 - foot, 0.65, foot, 0.05)
    rib = polygon(x, y, [(-0.4, -0.05), (0.2 + 0.05 * c, 0.55), (-0.4, 0.55)])
    holes = [disc(x, y, -0.48, h, 0.085) for h in (-0.5, -0.15)] + [disc(x, y, 0.42, 0.7 - foot, 0.085)]
    return minus(union(arm, base, rib), *holes), None


def hook(x, y, a, b, c):
    eye = ring(x, y, 0, -0.56, 0.2 + 0.02 * a, 0.09)
    stem = segment(x, y, (0, -0.4), (0, 0.02), 0.11 + 0.01 * c)
    return union(eye, stem, arc(x, y, 0, 0.33, 0.32 + 0.03 * b, -1.6, 3.3, 0.15, 0.06)), None


def padlock(x, y, a, b, c):
    body = box(x, y, 0, 0.3, 0.5 + 0.04 * a, 0.4, 0.09)
    reach = 0.32 + 0.03 * b
    legs = segment(np.abs(x), y, (reach, -0.25), (reach, 0), 0.08)
    shackle = union(arc(x, y, 0, -0.25, reach, -np.pi, 0, 0.08), legs)
    hole = union(disc(x, y, 0, 0.22, 0.11 + 0.01 * c), box(x, y, 0, 0.38, 0.05, 0.16))
    return minus(union(body, shackle), hole), None


CLASSES: dict[str, Callable] = {
    f.__name__: f for f in (bolt, screw, washer, gear, wrench, key, spring, bracket, hook, padlock)
}
UPRIGHT = tuple(name for name in CLASSES if name not in SYMMETRIC)


# Drawing -----------------------------------------------------------------------------------------------------


@dataclass
class Scene:
    """Everything that was drawn by lot for a chunk of images: the same scene can be rendered whole and damaged."""

    shape: Callable                             # one of CLASSES
    x: ndarray                                  # (B, S, S) local coordinates of the part
    y: ndarray
    unit: ndarray                               # (B, 1, 1) scale: local distance times `unit` is image distance
    factors: ndarray                            # (3, B, 1, 1) shape factors
    light: ndarray                              # (2, B, 1, 1) direction towards the light
    glow: ndarray                               # (B, S, S) brightness of the light over the image
    gloss: ndarray                              # (B, 1, 1) strength of bevels
    grain: ndarray                              # (B, S, S) texture of the part's surface
    colour: ndarray                             # (B, 3, 1, 1)
    ground: ndarray                             # (B, 3, S, S)

    @property
    def pixel(self) -> float:
        return 2 / self.x.shape[-1]

    @property
    def ix(self) -> ndarray:
        """Image coordinates, (1, S, S)."""
        return paint.grid(self.x.shape[-1])[0]

    @property
    def iy(self) -> ndarray:
        return paint.grid(self.x.shape[-1])[1]

    def distance(self, x: ndarray, y: ndarray) -> tuple[ndarray, ndarray | None]:
        body, lines = self.shape(x, y, *self.factors)
        return body * self.unit, None if lines is None else lines * self.unit


def scene(shape: Callable, rng: np.random.Generator, count: int, size: int) -> Scene:
    """Draw pose, colours, background and light by lot."""

    def lot(low, high):
        return rng.uniform(low, high, (count, 1, 1))

    unit, angle = lot(0.78, 1.04), lot(-1, 1) * np.pi / 18
    x, y = paint.turned(*paint.grid(size), angle, (lot(-0.2, 0.2), lot(-0.2, 0.2)))
    towards = lot(0, 2 * np.pi)
    light = np.stack([np.cos(towards), np.sin(towards)])
    gx, gy = paint.grid(size)
    glow = 1 + lot(0.05, 0.5) * (gx * light[0] + gy * light[1])
    back = rng.uniform(0.15, 0.85, count)
    step = rng.uniform(0.26, 0.5, count) * rng.choice([-1, 1], count)
    front = np.where((back + step > 0.95) | (back + step < 0.06), back - step, back + step)
    texture = background(rng, count, size) * lot(0.25, 0.8) * np.minimum(back, 1 - back)[:, None, None]
    texture += 0.3 * lot(0, 1) * paint.noise(rng, count, size, 2)
    return Scene(
        shape, x / unit, y / unit, unit, rng.uniform(-1, 1, (3, count, 1, 1)), light, glow, lot(0.25, 0.6),
        paint.noise(rng, count, size, 24, 3) * lot(0.02, 0.08), paint.colours(rng, front),
        paint.colours(rng, back) + texture[:, None],
    )


def background(rng: np.random.Generator, count: int, size: int) -> ndarray:
    """(count, S, S) textures of seven kinds in [-1, 1], any of them also turned by a quarter."""
    kind = rng.integers(len(TEXTURES), size=count)
    out = np.empty((count, size, size))
    for k, texture in enumerate(TEXTURES):
        chosen = np.flatnonzero(kind == k)
        out[chosen] = texture(rng, len(chosen), size)
    return np.where(rng.integers(2, size=(count, 1, 1)) == 1, out.transpose(0, 2, 1), out)


def brushed(rng, count, size):
    return 0.6 * paint.noise(rng, count, size, 40, 2) + 0.4 * paint.noise(rng, count, size, 90, 3)


def sand(rng, count, size):
    return paint.clouds(rng, count, size, 16, 3)


def blotches(rng, count, size):
    return paint.clouds(rng, count, size, 3, 3)


def wood(rng, count, size):
    _, y = paint.grid(size)
    wave = y * rng.uniform(9, 16, (count, 1, 1)) + 4 * paint.noise(rng, count, size, 2, 2)
    return 0.7 * np.sin(wave) + 0.3 * paint.noise(rng, count, size, 40, 4)


def planks(rng, count, size):
    _, y = paint.grid(size)
    across = (y * 2.5 + rng.uniform(0, 1, (count, 1, 1))) % 1
    tone = 0.5 * paint.noise(rng, count, size, 5, 1) + 0.4 * paint.noise(rng, count, size, 30, 3)
    return tone - 1.2 * (across < 0.09)


def weave(rng, count, size):
    x, y = paint.grid(size)
    pitch = rng.uniform(12, 24, (count, 1, 1))
    return np.sin(pitch * x) * np.sin(pitch * y) + 0.2 * paint.clouds(rng, count, size)


def plain(rng, count, size):
    return 0.25 * paint.clouds(rng, count, size, 6, 2)


TEXTURES = (brushed, sand, blotches, wood, planks, weave, plain)


def render(scene: Scene, *, bend=None, cut=None, patch=None, crumb=None) -> ndarray:
    """The images, (B, 3, S, S) uint8, of a scene whose part may be damaged.

    Args:
        bend: maps the local coordinates (x, y) to those of the straight part.
        cut: (B, S, S) signed distance of what is missing from the part, in image units.
        patch: alpha (B, S, S) and colour of what lies flat on the part.
        crumb: signed distance and colour of what lies loose on the scene.
    """

    def part(x, y):
        body, lines = scene.distance(*(bend(x, y) if bend else (x, y)))
        return (body if cut is None else minus(body, cut)), lines

    body, lines = part(scene.x, scene.y)
    shadow, _ = part(scene.x + 0.09 * scene.light[0], scene.y + 0.09 * scene.light[1])
    image = scene.ground * (1 - 0.45 * paint.cover(shadow, 0.22)[:, None])
    surface = scene.colour * (1 + scene.grain[:, None])
    if lines is not None:
        surface = surface * (1 - 0.45 * paint.cover(lines, scene.pixel)[:, None])
    if patch is not None:
        surface = paint.over(surface, *patch)
    edge = paint.bevel(body, scene.light, 0.1, scene.pixel)
    image = paint.over(image, paint.cover(body, scene.pixel), surface * (1 + scene.gloss * edge)[:, None])
    if crumb is not None:
        image = paint.over(image, 0.5 * paint.cover(crumb[0] - 0.02, 0.1), 0.0)
        edge = paint.bevel(crumb[0], scene.light, 0.08, scene.pixel)
        image = paint.over(image, paint.cover(crumb[0], scene.pixel), crumb[1] * (1 + 0.4 * edge)[:, None])
    return paint.to_bytes(image * scene.glow[:, None])


# Damage: each kind takes a scene and returns what `render` needs to show it ---------------------------------------


def crack(scene, rng):
    """A thin jagged gap that runs through the part."""
    px, py, along = _place(scene, rng, depth=0.3)
    u, v = paint.turned(scene.ix, scene.iy, along + rng.uniform(-0.6, 0.6, px.shape), (px, py))
    jag = 0.05 * np.abs((u / rng.uniform(0.12, 0.2, px.shape) + rng.uniform(0, 1, px.shape)) % 2 - 1)
    return {"cut": inside(np.abs(v - jag + 0.025) - rng.uniform(0.02, 0.035, px.shape), np.abs(u) - 0.55)}


def chip(scene, rng):
    """A bite out of the edge: missing material."""
    px, py, _ = _place(scene, rng, depth=0)
    size = rng.uniform(0.1, 0.17, px.shape)
    return {"cut": _lump(scene, rng, px, py, size)}


def hole(scene, rng):
    """A drilled hole where none belongs."""
    px, py, _ = _place(scene, rng, depth=0.8)
    return {"cut": disc(scene.ix, scene.iy, px, py, rng.uniform(0.065, 0.11, px.shape))}


def bend(scene, rng):
    """The lower or the upper end is bent to one side."""
    strength = rng.uniform(0.5, 0.9, scene.unit.shape) * rng.choice([-1, 1], scene.unit.shape)
    end = rng.choice([-1, 1], scene.unit.shape)
    return {"bend": lambda x, y: (x - strength * np.maximum(end * y + 0.05, 0) ** 1.6, y)}


def scratch(scene, rng):
    """A thin bright line over the surface, with a darker lip."""
    px, py, along = _place(scene, rng, depth=0.6)
    u, v = paint.turned(scene.ix, scene.iy, along + np.pi / 2 + rng.uniform(-0.7, 0.7, px.shape), (px, py))
    line = np.maximum(np.abs(v + 0.3 * u * u) - 0.018, np.abs(u) - rng.uniform(0.2, 0.35, px.shape))
    dark = scene.colour.mean(axis=1, keepdims=True) > 0.55          # a light part is scratched dark
    return {"patch": (0.9 * paint.cover(line, scene.pixel), np.where(dark, 0.1, 0.95) + 0 * scene.colour)}


def stain(scene, rng):
    """Rust: a soft, blotchy brown film."""
    px, py, _ = _place(scene, rng, depth=0.5)
    lump = _lump(scene, rng, px, py, rng.uniform(0.17, 0.26, px.shape))
    film = 0.85 * paint.cover(lump, 0.16) * (0.75 + 0.25 * paint.noise(rng, len(px), scene.x.shape[-1], 20))
    rust = np.array([0.42, 0.2, 0.07])[:, None, None] * rng.uniform(0.6, 1.2, (len(px), 1, 1, 1))
    return {"patch": (film, rust)}


def splash(scene, rng):
    """A drop of paint of another colour, with a sharp edge."""
    px, py, _ = _place(scene, rng, depth=0.5)
    lump = _lump(scene, rng, px, py, rng.uniform(0.09, 0.15, px.shape))
    return {"patch": (paint.cover(lump, scene.pixel), _other_colour(scene, rng))}


def crumb(scene, rng):
    """A foreign particle that lies loose on the part."""
    px, py, _ = _place(scene, rng, depth=0.2)
    return {"crumb": (_lump(scene, rng, px, py, rng.uniform(0.07, 0.11, px.shape)), _other_colour(scene, rng))}


DAMAGES: dict[str, Callable] = {
    f.__name__: f for f in (crack, chip, hole, bend, scratch, stain, splash, crumb)
}


def _place(scene: Scene, rng: np.random.Generator, depth: float) -> tuple[ndarray, ndarray, ndarray]:
    """A random spot of each part and the direction, as an angle, in which its edge is nearest, all (B, 1, 1).

    `depth` is how deep inside the part: 0 on its edge, 1 at its thickest place.
    """
    body, _ = scene.distance(scene.x, scene.y)
    deepest = body.min(axis=(1, 2), keepdims=True)
    low, high = (deepest * depth, 0) if depth == 0 else (deepest, deepest * depth)
    fit = -np.maximum(np.maximum(low - body, body - high), 0) / scene.pixel         # 0 where the depth is right
    count, size = body.shape[0], body.shape[-1]
    spot = (np.maximum(fit, -8) + rng.uniform(0, 0.7, body.shape)).reshape(count, -1).argmax(axis=1)
    slope_y, slope_x = np.gradient(body, axis=(1, 2))
    row, column = spot // size, spot % size
    index = (np.arange(count), row, column)
    angle = np.arctan2(slope_y[index], slope_x[index])
    centre = (np.stack([column, row]) + 0.5) * scene.pixel - 1
    return centre[0][:, None, None], centre[1][:, None, None], angle[:, None, None]


def _lump(scene: Scene, rng: np.random.Generator, px, py, radius) -> ndarray:
    """An irregular blob: a disc whose edge wanders."""
    u, v = scene.ix - px, scene.iy - py
    angle = np.arctan2(v, u)
    waves = sum(rng.uniform(-0.2, 0.2, px.shape) * np.cos(k * angle + rng.uniform(0, 6, px.shape)) for k in (2, 3, 5))
    return np.sqrt(u * u + v * v) - radius * (1 + waves)


def _other_colour(scene: Scene, rng: np.random.Generator) -> ndarray:
    """A colour whose brightness differs from the part's."""
    own = np.tensordot(paint.LUMA, scene.colour[:, :, 0, 0], (0, 1))
    step = rng.uniform(0.3, 0.45, len(own))
    return paint.colours(rng, np.where(own > 0.5, own - step, own + step), 0.9)


# The data sets -----------------------------------------------------------------------------------------------


def parts(normal: str = "bolt", *, size: int = 32, n: int = 600, defects: bool = False, seed: int = 0) -> OneClass:
    """One class of drawn parts as normal; the other classes, or damaged parts, as anomalies.

    Args:
        normal: one of `CLASSES`.
        size: height and width in pixels, at least 16.
        n: training images, at least 1. There are n // 4 calibration images and n // 2 normal test images (never
            fewer than there are kinds of anomaly), and as many anomalous test images, shared out evenly by kind.
        defects: False: the anomalies are the other classes, without masks. True: they are damaged parts of the
            normal class, one of `DAMAGES` each, with masks of exactly the pixels that the damage changed.
        seed: the same arguments give the same pixels; train and calibration do not depend on `defects`.

    Returns:
        RGB images; `kinds` names "good" and the class or damage of each test image.

    Raises:
        ValueError: an unknown class, or a size or number that is too small.
    """
    checks.choice(normal, CLASSES, "normal")
    size, n, seed = _numbers(size, n, seed)
    kinds = list(DAMAGES) if defects else [name for name in CLASSES if name != normal]
    half = max(n // 2, len(kinds))
    shares = [half // len(kinds) + (k < half % len(kinds)) for k in range(len(kinds))]

    def build() -> dict[str, torch.Tensor]:
        found = {"train": whole(normal, "train", size, n, seed)}
        found["calibration"] = whole(normal, "calibration", size, max(n // 4, 1), seed)
        test = [whole(normal, "test", size, half, seed)]
        masks = [np.zeros((half, size, size), bool)]
        for kind, share in zip(kinds, shares, strict=True):
            if defects:
                image, _, mask = damaged(normal, kind, size, share, seed)
                masks.append(mask)
            else:
                image = whole(kind, "test", size, share, seed)
            test.append(image)
        found["test"] = np.concatenate(test)
        if defects:
            found["masks"] = np.concatenate(masks)
        return {name: torch.from_numpy(array) for name, array in found.items()}

    key = {"version": VERSION, "normal": normal, "size": size, "n": n, "defects": bool(defects), "seed": seed}
    found = cache.tensors("parts", key, build)
    return OneClass(
        train=found["train"] / 255, calibration=found["calibration"] / 255, test=found["test"] / 255,
        labels=torch.tensor([0] * half + [1] * half), masks=found.get("masks"),
        kinds=["good"] * half + [kind for kind, share in zip(kinds, shares, strict=True) for _ in range(share)],
        name=f"parts: {normal}{', damaged' if defects else ''}", licence="MIT", source="drawn by adlearn.data.parts",
    )


def parts_labelled(
    *, size: int = 32, n: int = 60, classes: list[str] | None = None, seed: int = 0
) -> Labelled:
    """Drawn parts with class labels.

    Args:
        size: height and width in pixels, at least 16.
        n: training images of each class, at least 1; there are max(n // 2, 1) test images of each.
        classes: which of `CLASSES`, in the order of their labels; None takes all of them.
        seed: the same arguments give the same pixels, those that `parts` gives for the class and split.

    Returns:
        RGB images, class by class.

    Raises:
        ValueError: an unknown class or one named twice, or a size or number that is too small.
    """
    if isinstance(classes, str) or not isinstance(classes, Iterable | None):
        raise ValueError(f"classes must be a list of names, or None for all, got {classes!r}")
    classes = list(CLASSES) if classes is None else list(classes)
    for name in classes:
        checks.choice(name, CLASSES, "classes")
    if len(set(classes)) != len(classes) or not classes:
        raise ValueError(f"classes must name at least one class and none of them twice, got {classes!r}")
    size, n, seed = _numbers(size, n, seed)
    counts = {"train": n, "test": max(n // 2, 1)}

    def build() -> dict[str, torch.Tensor]:
        return {
            split: torch.from_numpy(np.concatenate([whole(name, split, size, count, seed) for name in classes]))
            for split, count in counts.items()
        }

    key = {"version": VERSION, "classes": classes, "size": size, "n": n, "seed": seed}
    found = cache.tensors("parts-labelled", key, build)
    labels = {split: torch.arange(len(classes)).repeat_interleave(count) for split, count in counts.items()}
    return Labelled(
        train=found["train"] / 255, train_labels=labels["train"], test=found["test"] / 255,
        test_labels=labels["test"], classes=classes, name="parts", licence="MIT", source="drawn by adlearn.data.parts",
    )


def whole(name: str, split: str, size: int, count: int, seed: int) -> ndarray:
    """The first `count` images of a class and split, (count, 3, size, size) uint8."""
    return _chunks(count, lambda rng: (render(scene(CLASSES[name], rng, CHUNK, size)),), seed, split, name)[0]


def damaged(name: str, kind: str, size: int, count: int, seed: int) -> tuple[ndarray, ndarray, ndarray]:
    """The first `count` damaged parts, the same parts before, both uint8, and the masks (count, size, size).

    The two images differ exactly where the mask is True: by at least `VISIBLE` grey levels of some colour.
    """

    def draw(rng):
        drawn = scene(CLASSES[name], rng, CHUNK, size)
        before, after = render(drawn), render(drawn, **DAMAGES[kind](drawn, rng))
        mask = np.abs(after.astype(int) - before).max(axis=1) >= VISIBLE
        shown = mask.sum(axis=(1, 2)) >= max(4, 0.002 * size * size)        # a crumb of its own colour: not used
        return np.where(mask[:, None], after, before)[shown], before[shown], mask[shown]

    return _chunks(count, draw, seed, "damage", name, kind)


def _chunks(count: int, draw: Callable, seed: int, split: str, name: str, kind: str | None = None) -> tuple:
    """Call `draw` with one random stream a chunk until there are `count` images; the surplus is cut off."""
    key = [seed, SPLITS.index(split), list(CLASSES).index(name), 0 if kind is None else list(DAMAGES).index(kind)]
    pieces, have = [], 0
    while have < count:
        pieces.append(draw(np.random.default_rng([*key, len(pieces)])))
        have += len(pieces[-1][0])
    return tuple(np.concatenate(arrays)[:count] for arrays in zip(*pieces, strict=True))


def _numbers(size, n, seed) -> tuple[int, int, int]:
    size = checks.positive_int(size, "size", 16)
    return size, checks.positive_int(n, "n"), checks.seed(seed)
