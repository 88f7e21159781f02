import io

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image

from adlearn import plots, widgets

LABELS = torch.tensor([0, 1] * 10)


def figures():
    rows = torch.rand(20, 2)
    yield plots.images(torch.rand(10, 3, 8, 8), titles=list("abcdefghij"))
    yield plots.maps(torch.rand(3, 1, 8, 8), {"a": torch.rand(3, 8, 8)}, torch.rand(3, 8, 8) > 0.5, titles=list("abc"))
    yield plots.histogram(torch.rand(20), LABELS, threshold=0.5)
    yield plots.curves({"a": ([0, 1], [0, 1]), "b": ([0, 1], [1, 1])}, xlabel="x", ylabel="y", diagonal=True)
    yield plots.space(rows, LABELS)
    yield plots.before_after(rows, rows, LABELS)
    yield plots.matrix(torch.rand(2, 3), ["a", "b"], ["x", "y", "z"])
    yield plots.bars({"a": 0.7, "b": 0.9}, intervals={"a": (0.6, 0.8)})


def test_every_figure_is_drawn_in_the_palette():
    for figure in figures():
        figure.canvas.draw()
        pixels = np.asarray(figure.canvas.buffer_rgba())
        assert pixels.std() > 5
        assert tuple(pixels[0, 0, :3]) == (255, 255, 255)
        plt.close(figure)


def test_normal_and_anomalous_differ_in_more_than_colour():
    figure = plots.space(torch.rand(20, 2), LABELS)
    marks = [c.get_paths()[0].vertices.shape for c in figure.axes[0].collections]
    assert marks[0] != marks[1]
    plt.close(figure)


def contrast(a: str, b: str) -> float:
    def luminance(colour):
        rgb = [int(colour[i:i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb]
        return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    light, dark = sorted((luminance(a), luminance(b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_the_palette_reads_on_white():
    assert contrast(plots.INK, "#ffffff") > 7
    assert min(contrast(colour, "#ffffff") for colour in (plots.NORMAL, plots.ANOMALOUS)) > 3


def frame(i):
    return plots.curves({"a": ([0, 1], [0, i / 20])}, xlabel="x", ylabel="y")


def test_frames_wire_slider_play_and_pictures_in_the_browser():
    plt.close("all")
    alts = [f"line {i} & more" for i in range(4)]
    box = widgets.frames([frame(i) for i in range(4)], ["0", "1", "2", "<3>"], alt=alts)
    (play, slider), stack = box.children[0].children, box.children[1]
    assert (play.max, slider.max, len(stack.children)) == (3, 3, 4)
    assert 'alt="line 0 &amp; more"' in stack.children[0].value
    assert "&lt;3&gt;" in stack.children[3].value
    assert plt.get_fignums() == []


def test_frames_work_with_the_tabs_of_ipywidgets_7(monkeypatch):
    import ipywidgets

    monkeypatch.delattr(ipywidgets, "Stack")
    box = widgets.frames([frame(1)], ["0"], alt="a line")
    assert isinstance(box.children[1], ipywidgets.Tab)


def test_twenty_frames_stay_light():
    torch.manual_seed(0)
    labels = torch.arange(200) % 2
    pictures = [widgets.png(plots.space(torch.randn(200, 2), labels)) for _ in range(20)]
    assert sum(map(len, pictures)) * 4 / 3 < 600_000
    assert Image.open(io.BytesIO(pictures[0])).mode == "P"


def test_frames_refuse_what_does_not_fit():
    with pytest.raises(ValueError, match="not be empty"):
        widgets.frames([], [], alt="")
    with pytest.raises(ValueError, match="equally many"):
        widgets.frames([b""], ["a", "b"], alt="")
