"""Static figures. They draw and compute nothing: what they show was computed by the caller.

One palette for the whole book, safe for colour-blind readers (Okabe and Ito), and a second cue wherever a colour
carries meaning: normal is a blue circle, anomalous an orange cross.
"""

from __future__ import annotations

from contextlib import contextmanager
from functools import cache

import numpy as np
import torch
from torch import Tensor

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
    """A grid of images (N, C, H, W) in [0, 1], each with an optional title."""
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


def maps(batch: Tensor, heat: dict[str, Tensor], masks: Tensor | None = None, titles=None, *, side: float = 1.5):
    """One column an image: the image, the outline of its mask, and one row of heat for each detector.

    Args:
        batch: (N, C, H, W) in [0, 1].
        heat: name of a detector to its maps (N, H, W); each detector has one colour scale over all images.
        masks: (N, H, W) bool, outlined on the images.
    """
    with style() as plt:
        figure, axes = plt.subplots(1 + len(heat), len(batch), squeeze=False,
                                    figsize=(side * len(batch) + 0.3, side * (1 + len(heat)) + 0.25))
        for column, image in enumerate(batch):
            axes[0, column].imshow(_picture(image), vmin=0, vmax=1)
            if masks is not None and masks[column].any():
                axes[0, column].contour(masks[column].cpu().numpy(), levels=[0.5], colors=[ANOMALOUS], linewidths=1)
            if titles is not None:
                axes[0, column].set_title(titles[column], fontsize=8.5, loc="center")
            for row, values in enumerate(heat.values(), start=1):
                axes[row, column].imshow(values[column].cpu().numpy(), cmap="magma",
                                         vmin=values.min().item(), vmax=values.max().item())
        for row, name in enumerate(["image", *heat]):
            axes[row, 0].set_ylabel(name, fontsize=9)
        _bare(axes)
    return figure


def histogram(scores: Tensor, labels: Tensor, *, threshold: float | None = None, title: str = "", ax=None,
              bins: int = 30, limits: tuple[float, float] | None = None):
    """How the scores of normal and anomalous images overlap; both are scaled to an area of one."""
    with style() as plt:
        figure, ax = _axis(plt, ax, (5, 2.8))
        scores, labels = torch.as_tensor(scores).cpu(), torch.as_tensor(labels).cpu().bool()
        edges = np.linspace(*(limits or (scores.min().item(), scores.max().item())), bins + 1)
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
    """Several lines (x, y) in one frame, in the palette's order and with dashes that tell them apart too."""
    with style() as plt:
        figure, ax = _axis(plt, ax, (4, 3.6))
        if diagonal:
            ax.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle=":")
        dashes = ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)))
        for i, (name, (x, y)) in enumerate(lines.items()):
            colour = (NORMAL, ANOMALOUS, *ACCENTS)[i % 7]
            ax.plot(np.asarray(x), np.asarray(y), label=name, color=colour, linestyle=dashes[i % 6])
        ax.set(xlabel=xlabel, ylabel=ylabel, title=title, xlim=limits, ylim=(0, 1.02))
        ax.legend(fontsize=9, loc="lower right")
    return figure


def space(points: Tensor, labels: Tensor, *, names=("normal", "anomalous"), title: str = "", ax=None, limits=None):
    """A feature space in two dimensions, (N, 2), coloured and marked by label (0 .. len(names) − 1)."""
    with style() as plt:
        figure, ax = _axis(plt, ax, (3.6, 3.4))
        points, labels = torch.as_tensor(points).cpu().numpy(), torch.as_tensor(labels).cpu().numpy()
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
    """The same images in two feature spaces, side by side; each is (N, 2)."""
    with style() as plt:
        figure, axes = plt.subplots(1, 2, figsize=(7.6, 3.5))
        for axis, points, title in zip(axes, (before, after), titles, strict=True):
            space(points, labels, names=names, title=title, ax=axis)
    return figure


def bars(values: dict[str, float], *, intervals: dict[str, tuple] | None = None, xlabel: str = "AUROC",
         title: str = "", limits=(0.5, 1.0), colours: dict[str, str] | None = None):
    """Horizontal bars with their numbers, in the order given, and intervals where there are any."""
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
            ax.text(end + 0.01 * (limits[1] - limits[0]), i, f"{value:.3f}", va="center", fontsize=9)
        ax.set_yticks(range(len(values)), list(reversed(values)))
        ax.set(xlim=limits, xlabel=xlabel, title=title)
        ax.tick_params(axis="y", length=0)
    return figure


def matrix(values, rows, columns, *, title: str = "", xlabel: str = "", ylabel: str = "", limits=(0.5, 1.0)):
    """A table of numbers as a heat map, each number written in its cell: (R, C), with names for rows and columns."""
    import seaborn

    with style() as plt:
        figure, ax = plt.subplots(figsize=(0.95 * len(columns) + 2.2, 0.5 * len(rows) + 1.2))
        seaborn.heatmap(np.asarray(values), ax=ax, annot=True, fmt=".2f", vmin=limits[0], vmax=limits[1], cbar=False,
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
    image = image.detach().cpu()
    return image[0].numpy() if image.shape[0] == 1 else image.permute(1, 2, 0).numpy()


def _bare(axes) -> None:
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        for spine in axis.spines.values():
            spine.set_visible(False)
