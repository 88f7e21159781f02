"""Figures that a reader moves: in Jupyter, in Colab (ipywidgets 7.7) and in a page with no kernel.

Every frame is a picture that is drawn beforehand; a slider and a Play button choose which one is seen. The choice
is wired in the browser (`jslink`), so that it works where no Python is running.
"""

from __future__ import annotations

import base64
import html
import io

from adlearn import checks

COLOURS, DPI = 48, 90          # a plot needs few colours; the page stays light


def frames(figures, labels, *, alt, name: str = "epoch", interval: int = 400, start: int = 0):
    """A slider and a Play button over prepared frames.

    Args:
        figures: matplotlib figures, or PNG files as bytes, all of one size. Each figure is closed when it has become
            a picture, so a generator that draws them one by one needs little memory.
        labels: what each frame is called, shown beside the slider's name.
        alt: what each frame shows, for readers who do not see it: one text each, or one for all.
        name: what the slider moves through.
        interval: milliseconds a frame while playing.
        start: the frame that is seen first, from 0.

    Returns:
        An ipywidgets box. Last in a cell, it is displayed.

    Raises:
        ValueError: no frame; a frame that is neither figure nor PNG; another number of labels or alt texts than of
            frames; an empty alt text; an interval below 1; a start that is no frame.
    """
    import ipywidgets as widgets

    checks.positive_int(interval, "interval")
    checks.positive_int(start, "start", 0)
    pictures = [figure if isinstance(figure, bytes) else png(figure) for figure in figures]
    labels, alts = list(labels), [alt] * len(pictures) if isinstance(alt, str) else list(alt)
    if not pictures:
        raise ValueError("figures must not be empty")
    if not all(picture.startswith(b"\x89PNG\r\n\x1a\n") for picture in pictures):
        raise ValueError("figures must be matplotlib figures or PNG files, got bytes that are no PNG: save them as PNG")
    if not all(isinstance(text, str) and text.strip() for text in alts):
        raise ValueError(f"alt must say what each frame shows, got {alt!r}: write one sentence each, or one for all")
    if start >= len(pictures):
        raise ValueError(f"start must be one of the {len(pictures)} frames, counted from 0, got {start}")
    counts = [len(pictures), len(labels), len(alts)]
    if len(set(counts)) > 1:
        raise ValueError(f"figures, labels and alt must be equally many, got {counts}")
    pages = [widgets.HTML(_page(*page)) for page in zip(pictures, labels, alts, strict=True)]
    stack = getattr(widgets, "Stack", widgets.Tab)(pages)         # ipywidgets 7 has no Stack; its tabs do the same
    stack.selected_index = start
    last = len(pages) - 1
    play = widgets.Play(min=0, max=last, value=start, interval=interval)
    slider = widgets.IntSlider(min=0, max=last, value=start, description=name, readout=False,
                               layout=widgets.Layout(width="70%"))
    widgets.jslink((play, "value"), (slider, "value"))
    widgets.jslink((slider, "value"), (stack, "selected_index"))
    return widgets.VBox([widgets.HBox([play, slider]), stack])


def png(figure) -> bytes:
    """A matplotlib figure as a small PNG; the figure is closed.

    Raises:
        ValueError: not a figure.
    """
    import matplotlib.pyplot as plt
    from PIL import Image

    if not hasattr(figure, "savefig"):
        raise ValueError(f"figure must be a matplotlib figure, got {type(figure).__name__}: pass axes.figure")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    plt.close(figure)
    small = Image.open(buffer).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    buffer = io.BytesIO()
    small.save(buffer, format="png", optimize=True)
    return buffer.getvalue()


def _page(picture: bytes, label, alt: str) -> str:
    data = base64.b64encode(picture).decode()
    caption = f'<div style="font-size:90%;color:#444">{html.escape(str(label))}</div>'
    return (f'<figure style="margin:0">{caption}<img alt="{html.escape(alt)}" src="data:image/png;base64,{data}" '
            'style="max-width:100%;height:auto"></figure>')
