"""Figures that a reader moves: in Jupyter, in Colab (ipywidgets 7.7) and in a page with no kernel.

Every frame is a picture that is drawn beforehand; a slider and a Play button choose which one is seen. The choice
is wired in the browser (`jslink`), so that it works where no Python is running.
"""

from __future__ import annotations

import base64
import html
import io
import zlib

from torch import Tensor

from adlearn import checks
from adlearn.plots import ACCENTS, ANOMALOUS, FAINT, INK, NORMAL

COLOURS, DPI = (48, 256), 90    # a plot needs few colours, and the page stays light; a photograph needs more
SEEN = 0.5                     # mean change of a value, of 255, from which on fewer colours show
SPRITES = 20                   # images in a row of the picture that all points share


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
    stack = _stack(figures, labels, alt, start)
    last = len(stack.children) - 1
    play = widgets.Play(min=0, max=last, value=start, interval=interval)
    slider = widgets.IntSlider(min=0, max=last, value=start, description=name, readout=False,
                               layout=widgets.Layout(width="70%"))
    widgets.jslink((play, "value"), (slider, "value"))
    widgets.jslink((slider, "value"), (stack, "selected_index"))
    return widgets.VBox([widgets.HBox([play, slider]), stack])


def plane(figures, *, alt: str, names=("z₁", "z₂"), labels=None, start: tuple[int, int] | None = None):
    """Two sliders over a grid of prepared frames: the first chooses the row, the second the column.

    Args:
        figures: rows of matplotlib figures or PNG files, equally many in each row.
        alt: what every frame shows.
        names: what the sliders move through.
        labels: what the rows and what the columns are called, shown together above a frame; by default their numbers.
        start: row and column that are seen first; by default the middle.

    Raises:
        ValueError: no frame; rows of different lengths; labels of another number; a start outside; as `frames`.
    """
    import ipywidgets as widgets

    rows = [[figure if isinstance(figure, bytes) else png(figure) for figure in row] for row in figures]
    if not rows or not rows[0] or len({len(row) for row in rows}) > 1:
        raise ValueError(f"figures must be rows of equally many frames, got rows of {[len(row) for row in rows]}")
    labels = [range(len(rows)), range(len(rows[0]))] if labels is None else [list(part) for part in labels]
    if [len(part) for part in labels] != [len(rows), len(rows[0])]:
        raise ValueError(f"labels must name {len(rows)} rows and {len(rows[0])} columns, got "
                         f"{[len(part) for part in labels]}")
    start = (len(rows) // 2, len(rows[0]) // 2) if start is None else tuple(start)
    if len(start) != 2 or not all(0 <= first < len(part) for first, part in zip(start, labels, strict=True)):
        raise ValueError(f"start must be a row of {len(rows)} and a column of {len(rows[0])}, from 0, got {start}")
    if len(names) != 2:
        raise ValueError(f"names must be two, of the rows' and the columns' slider, got {names!r}")
    sliders = [widgets.IntSlider(min=0, max=len(part) - 1, value=first, description=name, readout=False,
                                 layout=widgets.Layout(width="70%"))
               for part, first, name in zip(labels, start, names, strict=True)]
    stacks = []
    for row, of_row in zip(rows, labels[0], strict=True):
        captions = [f"{names[0]} = {of_row}, {names[1]} = {of_column}" for of_column in labels[1]]
        stacks.append(_stack(row, captions, alt, start[1]))
        widgets.jslink((sliders[1], "value"), (stacks[-1], "selected_index"))
    outer = _one_of(stacks, start[0])
    widgets.jslink((sliders[0], "value"), (outer, "selected_index"))
    return widgets.VBox([*sliders, outer])


def picture(image: Tensor, side: int = 240) -> bytes:
    """An image (C, H, W) in [0, 1] as a PNG of up to `side` pixels, or of its own size if that is larger.

    Each pixel of the image becomes a square.

    Raises:
        ValueError: no such image.
    """
    from PIL import Image

    if image.ndim != 3:
        raise ValueError(f"image must have shape (C, H, W), got {tuple(image.shape)}")
    image = checks.images(image[None], "image")[0]
    times = max(1, checks.positive_int(side, "side") // max(image.shape[1:]))
    values = (image.detach().cpu().float() * 255).round().byte().permute(1, 2, 0).squeeze(2).numpy()
    buffer = io.BytesIO()
    large = Image.fromarray(values).resize((values.shape[1] * times, values.shape[0] * times), Image.Resampling.NEAREST)
    large.save(buffer, format="png", optimize=True)
    return buffer.getvalue()


def hover(spaces: dict[str, Tensor], images: Tensor, labels: Tensor, names, *, alt: str, side: int = 300):
    """Feature spaces side by side in which the point under the pointer shows its image, in all of them at once.

    Drawn as SVG with style sheets and no script, so that it works in any page; a tap or a click does the same. The
    points are not stops for the keyboard, which would have to pass hundreds of them.

    Args:
        spaces: title of each panel to its points, (N, 2), finite.
        images: (N, C, H, W) in [0, 1], what each point shows; N of a few hundred keeps the page light.
        labels: (N,) whole numbers from 0, indices into `names`.
        names: of the classes, at most seven, each with a mark and a colour of its own.
        alt: what the figure shows, for readers who do not see it.
        side: of a panel, in pixels.

    Returns:
        An IPython HTML object. Last in a cell, it is displayed.

    Raises:
        ValueError: no panel; points, images and labels of different numbers; bad images; too many names; an empty alt
            text.
    """
    from IPython.display import HTML

    images = checks.images(images)
    if not 1 <= len(names) <= len(SHAPES):
        raise ValueError(f"names must be 1 to {len(SHAPES)}, one a class, got {len(names)}: show fewer classes")
    labels = checks.classes(labels, len(images), len(names)).tolist()
    checks.positive_int(side, "side", minimum=50)
    if not spaces or not isinstance(alt, str) or not alt.strip():
        raise ValueError("spaces must hold at least one panel, and alt must say what they show")
    panels = []
    for title, points in spaces.items():
        points = checks.rows(points, f"spaces[{title!r}]", width=2).detach().cpu().double()
        if len(points) != len(images):
            raise ValueError(f"spaces[{title!r}] must hold a point for each of {len(images)} images, got {len(points)}")
        low = points.amin(0)
        panels.append((12 + (points - low) / (points.amax(0) - low).clamp_min(1e-12) * (side - 24)).tolist())
    return HTML(_hovering(list(spaces), panels, _sprite(images), images.shape[3], images.shape[2], labels, names, alt,
                          side))


# Marks of the classes: a path around (0, 0), and the palette's colour
SHAPES = tuple(zip((NORMAL, ANOMALOUS, *ACCENTS), (
    "M-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0", "M-4,-4L4,4M-4,4L4,-4", "M-3.5,-3.5h7v7h-7z", "M0,-4.5L4.5,3.5H-4.5z",
    "M0,4.5L4.5,-3.5H-4.5z", "M0,-5L4,0L0,5L-4,0z", "M-4.5,0h9M0,-4.5v9"), strict=True))


def _hovering(titles, panels, sprite: str, width: int, height: int, labels, names, alt: str, side: int) -> str:
    """One group a point: its mark in every panel, and its image beside them, seen while the pointer is on a mark."""
    name, across, room = f"h{zlib.crc32(sprite.encode()):08x}", len(panels) * (side + 16), 112
    groups = []
    for i, label in enumerate(labels):
        colour, shape = SHAPES[label]
        places = [(k * (side + 16) + panel[i][0], 24 + side - panel[i][1]) for k, panel in enumerate(panels)]
        marks = "".join(f'<path class="m" transform="translate({x:.1f},{y:.1f})" d="{shape}" stroke="{colour}" '
                        f'fill="{colour}"/>' for x, y in places)
        groups.append(
            f'<g class="p" tabindex="-1">{marks}<g class="i"><svg x="{across}" y="40" width="96" height="96" '
            f'viewBox="{width * (i % SPRITES)} {height * (i // SPRITES)} {width} {height}"><use href="#{name}"/></svg>'
            f'<text x="{across}" y="154">{html.escape(str(names[label]))}</text></g></g>')
    frames = "".join(f'<rect x="{k * (side + 16)}" y="24" width="{side}" height="{side}" class="f"/>'
                     f'<text x="{k * (side + 16)}" y="16">{html.escape(str(title))}</text>'
                     for k, title in enumerate(titles))
    shown = sorted(set(labels))
    legend = "".join(f'<path transform="translate({across + 6},{200 + 18 * row})" d="{SHAPES[label][1]}" class="l" '
                     f'stroke="{SHAPES[label][0]}" fill="{SHAPES[label][0]}"/><text x="{across + 18}" '
                     f'y="{204 + 18 * row}">{html.escape(str(names[label]))}</text>' for row, label in enumerate(shown))
    size = across + room, max(side + 32, 210 + 18 * len(shown))
    style = (f"#{name}-f{{background:white;max-width:100%;height:auto}}"
             f"#{name}-f text{{font:12px sans-serif;fill:{INK}}}"
             f"#{name}-f .f{{fill:none;stroke:{FAINT}}}#{name}-f .m{{stroke-width:1.4;fill-opacity:.55;cursor:pointer}}"
             f"#{name}-f .i{{visibility:hidden}}#{name}-f .p:hover .i,#{name}-f .p:focus .i{{visibility:visible}}"
             f"#{name}-f .p:focus{{outline:none}}#{name}-f .p:hover .m,#{name}-f .p:focus .m"
             f"{{stroke:#000;stroke-width:7;fill-opacity:1;paint-order:stroke}}")
    return (f'<svg id="{name}-f" role="img" aria-label="{html.escape(alt)}" viewBox="0 0 {size[0]} {size[1]}" '
            f'width="{size[0]}" xmlns="http://www.w3.org/2000/svg"><style>{style}</style><defs>'
            f'<image id="{name}" width="{width * min(SPRITES, len(labels))}" '
            f'height="{height * -(-len(labels) // SPRITES)}" '
            f'href="data:image/jpeg;base64,{sprite}"/></defs>{frames}{legend}{"".join(groups)}</svg>')


def _stack(figures, labels, alt, start: int):
    """One page a figure, of which one is seen."""
    import ipywidgets as widgets

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
    return _one_of(pages, start)


def _one_of(children, start: int):
    """A box that shows one of its children."""
    import ipywidgets as widgets

    stack = getattr(widgets, "Stack", widgets.Tab)(children)      # ipywidgets 7 has no Stack; its tabs do the same
    stack.selected_index = start
    return stack


def _sprite(images: Tensor) -> str:
    """All images in one JPEG, `SPRITES` in a row, as base64."""
    from PIL import Image
    from torchvision.utils import make_grid

    grid = make_grid(images.detach().cpu().float(), nrow=SPRITES, padding=0)            # (3, rows · H, SPRITES · W)
    buffer = io.BytesIO()
    Image.fromarray((grid * 255).round().byte().permute(1, 2, 0).numpy()).save(buffer, format="jpeg", quality=85)
    return base64.b64encode(buffer.getvalue()).decode()


def png(figure) -> bytes:
    """A matplotlib figure as a small PNG; the figure is closed.

    Raises:
        ValueError: not a figure.
    """
    import matplotlib.pyplot as plt
    from PIL import Image, ImageChops, ImageStat

    if not hasattr(figure, "savefig"):
        raise ValueError(f"figure must be a matplotlib figure, got {type(figure).__name__}: pass axes.figure")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    plt.close(figure)
    full = Image.open(buffer).convert("RGB")
    for colours in COLOURS:
        small = full.quantize(colours, dither=Image.Dither.NONE)
        if max(ImageStat.Stat(ImageChops.difference(full, small.convert("RGB"))).mean) < SEEN:
            break
    buffer = io.BytesIO()
    small.save(buffer, format="png", optimize=True)
    return buffer.getvalue()


def _page(picture: bytes, label, alt: str) -> str:
    data = base64.b64encode(picture).decode()
    caption = f'<div style="font-size:90%;color:#444">{html.escape(str(label))}</div>'
    return (f'<figure style="margin:0">{caption}<img alt="{html.escape(alt)}" src="data:image/png;base64,{data}" '
            'style="max-width:100%;height:auto"></figure>')
