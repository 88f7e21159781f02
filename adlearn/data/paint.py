"""The painter: anti-aliased drawing of a whole batch at once, in NumPy, with nothing random that is not handed in.

A shape is a signed distance: an array that says for each pixel centre how far the shape's edge is, negative inside.
Shapes combine by minimum and maximum, and `cover` turns a distance into the share of the pixel that is covered.
Coordinates run from -1 to 1 over the image, x to the right and y downwards; arrays are (B, H, W), parameters are
numbers or (B, 1, 1). All is float64: after rounding to grey levels the result is then the same on every machine.
"""

from __future__ import annotations

from functools import reduce
from itertools import pairwise

import numpy as np
from numpy import ndarray

LUMA = np.array([0.299, 0.587, 0.114])          # the weight of red, green and blue in perceived brightness


def grid(size: int) -> tuple[ndarray, ndarray]:
    """Pixel centres of a square image: x and y, both (1, size, size)."""
    centres = (np.arange(size) + 0.5) * (2 / size) - 1
    x, y = np.meshgrid(centres, centres)
    return x[None], y[None]


def turned(x, y, angle, about=(0.0, 0.0)) -> tuple[ndarray, ndarray]:
    """The coordinates of a frame that stands at `about` and is turned clockwise by `angle` radians."""
    dx, dy = x - about[0], y - about[1]
    cos, sin = np.cos(angle), np.sin(angle)
    return cos * dx + sin * dy, cos * dy - sin * dx


# Shapes: signed distances ------------------------------------------------------------------------------------


def disc(x, y, cx, cy, radius) -> ndarray:
    return np.sqrt((x - cx) ** 2 + (y - cy) ** 2) - radius


def ring(x, y, cx, cy, outer, inner) -> ndarray:
    middle, half = (outer + inner) / 2, (outer - inner) / 2
    return np.abs(disc(x, y, cx, cy, middle)) - half


def box(x, y, cx, cy, half_width, half_height, corner=0.0) -> ndarray:
    """An upright rectangle whose corners are rounded with the radius `corner`."""
    dx = np.abs(x - cx) - half_width + corner
    dy = np.abs(y - cy) - half_height + corner
    outside = np.sqrt(np.maximum(dx, 0) ** 2 + np.maximum(dy, 0) ** 2)
    return outside + np.minimum(np.maximum(dx, dy), 0) - corner


def segment(x, y, start, end, radius=0.0) -> ndarray:
    """A straight line with round ends, `radius` to each side."""
    (ax, ay), (bx, by) = start, end
    ex, ey = bx - ax, by - ay
    along = np.clip(((x - ax) * ex + (y - ay) * ey) / (ex * ex + ey * ey + 1e-12), 0, 1)
    return np.sqrt((x - ax - along * ex) ** 2 + (y - ay - along * ey) ** 2) - radius


def polyline(x, y, points, radius) -> ndarray:
    """Segments from point to point."""
    return union(*(segment(x, y, a, b, radius) for a, b in pairwise(points)))


def arc(x, y, cx, cy, radius, start, end, half_width, end_half_width=None) -> ndarray:
    """Part of a circle, clockwise from angle `start` to `end` (0 points right), its width changing on the way."""
    gap = (2 * np.pi - (end - start)) / 2       # what lies in the gap belongs to the nearer end
    angle = (np.arctan2(y - cy, x - cx) - start + gap) % (2 * np.pi) - gap
    along = np.clip(angle / (end - start), 0, 1)
    nearest = start + along * (end - start)
    away = np.sqrt((x - cx - radius * np.cos(nearest)) ** 2 + (y - cy - radius * np.sin(nearest)) ** 2)
    return away - half_width - along * ((half_width if end_half_width is None else end_half_width) - half_width)


def polygon(x, y, corners) -> ndarray:
    """Any simple polygon: the distance to the nearest side, negative where a ray crosses an odd number of sides."""
    distance, inside = np.inf, False
    for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1], strict=True):
        distance = np.minimum(distance, segment(x, y, (ax, ay), (bx, by)))
        with np.errstate(divide="ignore", invalid="ignore"):        # a level side: no crossing, whatever the quotient
            crossed = ((ay > y) != (by > y)) & (x < ax + (y - ay) * (bx - ax) / (by - ay))
        inside = inside ^ crossed
    return np.where(inside, -distance, distance)


def union(*shapes) -> ndarray:
    return reduce(np.minimum, shapes)


def minus(shape, *holes) -> ndarray:
    return reduce(lambda rest, hole: np.maximum(rest, -hole), holes, shape)


def inside(*shapes) -> ndarray:
    return reduce(np.maximum, shapes)


def cover(distance, width) -> ndarray:
    """The share of a pixel that the shape covers: 1 inside, 0 outside, an S-curve of `width` across the edge."""
    t = np.clip(0.5 - distance / width, 0, 1)
    return t * t * (3 - 2 * t)


# Textures: random fields -------------------------------------------------------------------------------------


def noise(rng: np.random.Generator, count: int, size: int, rows: int, columns: int | None = None) -> ndarray:
    """Smooth noise in [-1, 1], (count, size, size): random knots, `rows` by `columns` cells, S-curves between them."""
    columns = rows if columns is None else columns
    knots = rng.uniform(-1, 1, (count, rows + 1, columns + 1))
    return _weights(size, rows) @ knots @ _weights(size, columns).T


def clouds(rng: np.random.Generator, count: int, size: int, cells: int = 3, octaves: int = 3) -> ndarray:
    """Noise over noise, each layer twice as fine and half as strong, about in [-1, 1]."""
    return sum(noise(rng, count, size, cells * 2**k) / 2**k for k in range(octaves)) * 0.7


def _weights(size: int, cells: int) -> ndarray:
    """(size, cells + 1): how much each knot of a line counts at each pixel centre."""
    place = (np.arange(size) + 0.5) * cells / size
    left = np.minimum(place.astype(int), cells - 1)
    t = place - left
    t = t * t * (3 - 2 * t)
    weights = np.zeros((size, cells + 1))
    weights[np.arange(size), left] = 1 - t
    weights[np.arange(size), left + 1] = t
    return weights


# Colour and light: images are (B, 3, H, W) ---------------------------------------------------------------------


def colours(rng: np.random.Generator, brightness: ndarray, chroma: float = 0.55) -> ndarray:
    """Random hues of a given brightness (B,): (B, 3, 1, 1) in [0, 1]."""
    hue = rng.uniform(0, 2 * np.pi, (len(brightness), 1)) + np.array([0, 2, 4]) * np.pi / 3
    tint = 1 + rng.uniform(0, chroma, (len(brightness), 1)) * np.cos(hue)
    tint /= (tint @ LUMA)[:, None]
    return np.clip(tint * brightness[:, None], 0, 1)[:, :, None, None]


def bevel(distance, light, width, pixel) -> ndarray:
    """Light on a rounded edge, in [-1, 1]: positive where the edge faces `light`, a pair of (B, 1, 1), 0 further in."""
    slope_y, slope_x = np.gradient(distance, axis=(1, 2))
    facing = np.clip((slope_x * light[0] + slope_y * light[1]) / pixel, -1, 1)
    return facing * np.clip(1 + distance / width, 0, 1)


def over(image, alpha, colour) -> ndarray:
    """Lay `colour` on the image (B, 3, H, W) where `alpha` (B, H, W) says so."""
    return image + alpha[:, None] * (colour - image)


def to_bytes(image) -> ndarray:
    """Round [0, 1] to uint8 grey levels: the last step of all that is drawn."""
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
