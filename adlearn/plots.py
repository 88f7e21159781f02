"""Static figures. They draw and compute nothing: what they show was computed by the caller.

One palette for the whole book, safe for colour-blind readers (Okabe and Ito), and a second cue wherever a colour
carries meaning: normal is a blue circle, anomalous an orange cross.

Every function returns its matplotlib figure; with `ax` it draws there and returns the figure of that frame. What cannot
be drawn truly (NaN, another range, another length, nothing at all) is refused with a ``ValueError``.
"""

from __future__ import annotations

from contextlib import contextmanager
from functools import cache

import numpy as np
from torch import Tensor

from adlearn import checks

NORMAL, ANOMALOUS = "#0072B2", "#D55E00"
ACCENTS = ("#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
INK, FAINT = "#333333", "#BBBBBB"


@contextmanager
def style():
    """The book's look. White paper, so that a figure reads the same on a dark page."""
    plt = _pyplot()
    settings = {
        "figure.facecolor": "white", "axes.facecolor": "white", "savefig.facecolor": "white", "figure.dpi": 110,
        "font.size": 10, "axes.titlesize": 10.5, "axes.titlelocation": "left", "axes.edgecolor": FAINT,
        "axes.labelcolor": INK, "text.color": INK, "xtick.color": INK, "ytick.color": INK,
        "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False,
        "lines.linewidth": 2, "figure.constrained_layout.use": True, "image.cmap": "gray",
    }
    with plt.rc_context(settings):
        yield plt


def images(batch: Tensor, titles=None, *, columns: int = 4, side: float = 1.6):
    """A grid of images (N, C, H, W) in [0, 1], C of 1 or 3; `titles` are none or N, `side` is in inches.

    Raises:
        ValueError: `batch` is no such tensor, there are not N titles, or `columns` or `side` is no positive number.
    """
    batch = checks.images(batch, "batch")
    checks.positive_int(columns, "columns")
    titles = _names(titles, len(batch), "titles")
    _positive(side, "side")
    rows = -(-len(batch) // columns)
    with style() as plt:
        figure, axes = plt.subplots(rows, min(columns, len(batch)), squeeze=False,
                                    figsize=(side * min(columns, len(batch)), rows * (side + (0.22 if titles else 0))))
        for i, axis in enumerate(axes.flat):
            axis.axis("off")
            if i < len(batch):
                axis.imshow(_picture(batch[i]), vmin=0, vmax=1)
                if titles is not None:
                    axis.set_title(titles[i], fontsize=8.5, loc="center")
    return figure


def maps(batch: Tensor, heat: dict[str, Tensor], masks: Tensor | None = None, titles=None, *, side: float = 1.5,
         top: float = 1.0, limits: tuple[float, float] | None = None):
    """One column an image: the image, the outline of its mask, and one row of heat for each detector.

    Args:
        batch: (N, C, H, W) in [0, 1].
        heat: name of a detector to its maps (N, h, w), finite; h × w may be coarser than the images. Each detector has
            one colour scale over all images.
        masks: (N, H, W) bool, or 0 and 1, outlined on the images.
        titles: none or N.
        side: of one picture, in inches.
        top: quantile of a detector's values, above 0, that has the brightest colour; below 1 a few glaring pixels
            leave the rest visible.
        limits: the values of the darkest and of the brightest colour, for all detectors and whatever `top` says; None
            for each one's own.

    Raises:
        ValueError: images outside [0, 1]; maps or masks of another number or size; values that are not finite;
            limits that are not two ascending numbers.
    """
    batch = checks.images(batch, "batch")
    count = len(batch)
    titles = _names(titles, count, "titles")
    _positive(side, "side")
    checks.between(top, 0, 1, "top")
    heat = {name: _stack(values, f"heat[{name!r}]", (count, None, None)) for name, values in heat.items()}
    for name, values in heat.items():
        checks.finite(values, f"heat[{name!r}]")
    if masks is not None:
        masks = checks.binary(_stack(masks, "masks", (count, *batch.shape[2:])), "masks")
    if limits is not None:
        _ends(limits)
    scales = [limits if limits is not None else (values.min().item(), np.quantile(values.float().cpu().numpy(), top))
              for values in heat.values()]
    with style() as plt:
        figure, axes = plt.subplots(1 + len(heat), len(batch), squeeze=False,
                                    figsize=(side * len(batch) + 0.3, side * (1 + len(heat)) + 0.25))
        for column, image in enumerate(batch):
            axes[0, column].imshow(_picture(image), vmin=0, vmax=1)
            if masks is not None and masks[column].any():
                axes[0, column].contour(masks[column].cpu().numpy(), levels=[0.5], colors=[ANOMALOUS], linewidths=1)
            if titles is not None:
                axes[0, column].set_title(titles[column], fontsize=8.5, loc="center")
            for row, (values, (low, high)) in enumerate(zip(heat.values(), scales, strict=True), start=1):
                axes[row, column].imshow(values[column].float().cpu().numpy(), cmap="magma", vmin=low, vmax=high)
        for row, name in enumerate(["image", *heat]):
            axes[row, 0].set_ylabel(name, fontsize=9)
        _bare(axes)
    return figure


def histogram(scores: Tensor, labels: Tensor, *, threshold: float | None = None, title: str = "", ax=None,
              bins: int = 30, limits: tuple[float, float] | None = None):
    """How the scores of normal and anomalous images overlap; both are scaled to an area of one.

    Args:
        scores, labels: (N,) finite, and (N,) of 0 and 1; one of the two kinds may be missing.
        threshold: drawn as a line.
        limits: the range that is divided into `bins`; by default that of the scores. Scores outside are not shown.

    Raises:
        ValueError: shapes differ, a score is not finite, a label is not 0 or 1, no score lies within `limits`.
    """
    scores = checks.scores(scores).detach().cpu().double()
    labels = checks.labels(labels, len(scores), both=False).cpu()
    checks.positive_int(bins, "bins")
    if limits is not None:
        scores, labels = (part[_inside(scores, limits)] for part in (scores, labels))
    if threshold is not None and not checks.is_number(threshold):
        raise ValueError(f"threshold must be a finite number, or None to draw none, got {threshold!r}")
    with style() as plt:
        figure, ax = _axis(plt, ax, (5, 2.8))
        edges = np.histogram_bin_edges(scores.numpy(), bins, limits)
        for chosen, colour, name, hatch in ((~labels, NORMAL, "normal", ""), (labels, ANOMALOUS, "anomalous", "///")):
            if chosen.any():
                ax.hist(scores[chosen].numpy(), edges, density=True, color=colour, edgecolor=colour, alpha=0.45,
                        label=name, hatch=hatch, histtype="stepfilled")
        if threshold is not None:
            ax.axvline(threshold, color=INK, linestyle="--", linewidth=1.2)
            ax.text(threshold, ax.get_ylim()[1], " threshold", va="top", fontsize=9)
        ax.set(xlabel="anomaly score", ylabel="density", title=title)
        ax.legend(fontsize=9)
    return figure


def curves(lines: dict[str, tuple], *, xlabel: str, ylabel: str, title: str = "", ax=None, diagonal: bool = False,
           limits: tuple[float, float] = (0, 1)):
    """Several lines in one frame, in the palette's order and with dashes that tell them apart too.

    Args:
        lines: name to (x, y), two sequences of finite numbers of one length.
        diagonal: also the line of chance from (0, 0) to (1, 1).
        limits: the ends of the x-axis; the y-axis goes from 0 to 1.

    Raises:
        ValueError: no lines, an x and y of different lengths, or a value that is not finite.
    """
    _ends(limits)
    lines = {name: _line(values, f"lines[{name!r}]") for name, values in _filled(lines, "lines").items()}
    with style() as plt:
        figure, ax = _axis(plt, ax, (4, 3.6))
        if diagonal:
            ax.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle=":")
        dashes = ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)))
        for i, (name, (x, y)) in enumerate(lines.items()):
            colour = (NORMAL, ANOMALOUS, *ACCENTS)[i % 7]
            ax.plot(x, y, label=name, color=colour, linestyle=dashes[i % 6])
        ax.set(xlabel=xlabel, ylabel=ylabel, title=title, xlim=limits, ylim=(0, 1.02))
        ax.legend(fontsize=9, loc="lower right")
    return figure


def space(points: Tensor, labels: Tensor, *, names=("normal", "anomalous"), title: str = "", ax=None, limits=None):
    """A feature space in two dimensions, coloured and marked by label.

    Args:
        points: (N, 2), finite; `projection` gives them.
        labels: (N,) whole numbers from 0 to len(names) − 1.
        limits: the ends of both axes, ((left, right), (bottom, top)).

    Raises:
        ValueError: points or labels of another shape, a point that is not finite, a label without a name.
    """
    points, labels = _points(points, labels, names)
    for pair in limits or ():
        _ends(pair)
    with style() as plt:
        figure, ax = _axis(plt, ax, (3.6, 3.4))
        colours, marks = (NORMAL, ANOMALOUS, *ACCENTS), "oxs^vD*"
        for i, name in enumerate(names):
            chosen = points[labels == i]
            ax.scatter(chosen[:, 0], chosen[:, 1], s=16, c=colours[i % 7], marker=marks[i % 7], alpha=0.7,
                       linewidths=1.1 if marks[i % 7] == "x" else 0, label=name)
        ax.set(title=title, xticks=[], yticks=[])
        if limits is not None:
            ax.set(xlim=limits[0], ylim=limits[1])
        ax.legend(fontsize=8.5, loc="best", handletextpad=0.2)
    return figure


def before_after(before: Tensor, after: Tensor, labels: Tensor, *, names=("normal", "anomalous"),
                 titles=("before training", "after training")):
    """The same N items in two feature spaces, side by side: each (N, 2), with labels (N,) and names as for `space`.

    Raises:
        ValueError: as `space`; not two titles.
    """
    titles = _names(titles or ("", ""), 2, "titles")
    before, after = (_points(points, labels, names)[0] for points in (before, after))
    with style() as plt:
        figure, axes = plt.subplots(1, 2, figsize=(7.6, 3.5))
        for axis, points, title in zip(axes, (before, after), titles, strict=True):
            space(points, labels, names=names, title=title, ax=axis)
    return figure


def bars(values: dict[str, float], *, intervals: dict[str, tuple] | None = None, xlabel: str = "AUROC",
         title: str = "", limits=(0.5, 1.0), colours: dict[str, str] | None = None,
         chance: float | None = None):
    """Horizontal bars with their numbers, in the order given.

    Args:
        values: name to a finite number.
        intervals: name to (low, high), for any of the bars.
        limits: the ends of the x-axis.
        colours: name to a colour, for any of the bars.
        chance: where a dotted line stands for what a guess would reach.

    Raises:
        ValueError: no bars; a value that is no finite number; an interval or a colour without a bar.
    """
    _ends(limits)
    for name, value in _filled(values, "values").items():
        if not checks.is_number(value):
            raise ValueError(f"values[{name!r}] must be a finite number, got {value!r}: leave it out")
    for name, given in {"intervals": intervals or {}, "colours": colours or {}}.items():
        if unknown := [key for key in given if key not in values]:
            raise ValueError(f"{name} must belong to bars, {', '.join(map(repr, values))}, got {unknown}")
    for name, pair in (intervals or {}).items():
        _ends(pair, f"intervals[{name!r}]", equal=True)
    with style() as plt:
        figure, ax = plt.subplots(figsize=(6.2, 0.36 * len(values) + 0.9))
        for i, (name, value) in enumerate(reversed(values.items())):
            colour = (colours or {}).get(name, NORMAL)
            ax.barh(i, value - limits[0], left=limits[0], color=colour, height=0.62, alpha=0.85)
            end = value
            if intervals and name in intervals:
                low, high = intervals[name]
                ax.plot([low, high], [i, i], color=INK, linewidth=1.4)
                end = max(value, high)
            ax.text(end + 0.01 * (limits[1] - limits[0]), i, f"{value:.3f}", va="center", fontsize=9,
                    bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})
        if chance is not None:
            ax.axvline(chance, color=INK, linestyle=":", linewidth=1.2)
        ax.set_yticks(range(len(values)), list(reversed(values)))
        ax.set(xlim=limits, xlabel=xlabel, title=title)
        ax.tick_params(axis="y", length=0)
    return figure


def matrix(values, rows, columns, *, title: str = "", xlabel: str = "", ylabel: str = "", limits=(0.5, 1.0)):
    """A table of numbers as a heat map, each number written in its cell.

    Args:
        values: (R, C); NaN leaves its cell empty, for what is missing.
        rows, columns: R and C names.
        limits: the numbers of the darkest and of the brightest colour.

    Raises:
        ValueError: `values` is no table of R × C numbers, or holds infinity.
    """
    import seaborn

    _ends(limits)
    values = _stack(values, "values", (len(rows), len(columns))).detach().cpu().double()
    if values.numel() == 0 or values.isinf().any():
        raise ValueError(f"values must hold numbers, not infinity, at least one, got shape {tuple(values.shape)}: "
                         "mark what is missing as NaN")
    with style() as plt:
        figure, ax = plt.subplots(figsize=(0.95 * len(columns) + 2.2, 0.5 * len(rows) + 1.2))
        seaborn.heatmap(values.numpy(), ax=ax, annot=True, fmt=".2f", vmin=limits[0], vmax=limits[1], cbar=False,
                        cmap="cividis", xticklabels=columns, yticklabels=rows, linewidths=1)
        ax.set(title=title, xlabel=xlabel, ylabel=ylabel)
        ax.tick_params(axis="y", rotation=0, length=0)
        ax.tick_params(axis="x", length=0)
    return figure


@cache
def _pyplot():
    """pyplot with its backend loaded: a backend that is loaded inside `rc_context` loses its interactive mode there."""
    import matplotlib.pyplot as plt

    plt.switch_backend(plt.get_backend())
    return plt


def _axis(plt, ax, size):
    return (ax.figure, ax) if ax is not None else plt.subplots(figsize=size)


def _picture(image: Tensor) -> np.ndarray:
    image = image.detach().float().cpu()
    return image[0].numpy() if image.shape[0] == 1 else image.permute(1, 2, 0).numpy()


def _bare(axes) -> None:
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        for spine in axis.spines.values():
            spine.set_visible(False)


# What the figures refuse -------------------------------------------------------------------------------------


def _names(names, count: int, name: str) -> list[str] | None:
    names = None if names is None else list(names)
    if names is not None and len(names) != count:
        raise ValueError(f"{name} must be {count}, one a picture, got {len(names)}")
    return names


def _positive(value, name: str) -> None:
    if not (checks.is_number(value) and value > 0):
        raise ValueError(f"{name} must be a positive number of inches, got {value!r}")


def _filled(items, name: str) -> dict:
    if not isinstance(items, dict) or not items:
        raise ValueError(f"{name} must be a dictionary with at least one entry, got {items!r}")
    return items


def _points(points, labels, names) -> tuple[np.ndarray, np.ndarray]:
    points = checks.rows(points, "points", width=2).detach().cpu().double()
    return points.numpy(), checks.classes(labels, len(points), len(names)).cpu().numpy()


def _stack(values, name: str, shape: tuple) -> Tensor:
    """A tensor of this shape; None stands for any size."""
    values = checks.tensor(values, name)
    if values.ndim != len(shape) or any(n not in (None, m) for n, m in zip(shape, values.shape, strict=True)):
        wanted = ", ".join("any" if n is None else str(n) for n in shape)
        raise ValueError(f"{name} must have shape ({wanted}), got {tuple(values.shape)}")
    return values


def _line(values, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The two sequences of a line as arrays, (T,) each."""
    parts = [checks.tensor(part, name).detach().cpu().double() for part in values]
    shapes = [tuple(part.shape) for part in parts]
    if len(parts) != 2 or len(shapes[0]) != 1 or shapes[0] != shapes[1]:
        raise ValueError(f"{name} must be (x, y), two sequences of one length, got shapes {shapes}")
    for part in parts:
        checks.finite(part, name)
    return tuple(part.numpy() for part in parts)


def _ends(pair, name: str = "limits", *, equal: bool = False) -> None:
    pair = [*pair] if np.iterable(pair) else [pair]
    ordered = len(pair) == 2 and all(map(checks.is_number, pair)) and pair == sorted(pair)
    if not ordered or (pair[0] == pair[1] and not equal):
        raise ValueError(f"{name} must be two numbers, the smaller first, got {pair!r}")


def _inside(scores: Tensor, limits) -> Tensor:
    _ends(limits)
    inside = (scores >= limits[0]) & (scores <= limits[1])
    if not inside.any():
        raise ValueError(f"limits must leave some scores to draw, got {limits!r} for scores from "
                         f"{scores.min().item():.4g} to {scores.max().item():.4g}")
    return inside
