import base64
import io
import re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
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
    yield plots.bars({"a": 0.7, "b": 0.9}, intervals={"a": (0.6, 0.8)}, chance=0.5)


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


def test_arrays_half_precision_and_one_kind_alone_are_drawn():
    plots.images(torch.rand(2, 3, 8, 8).half().numpy())
    plots.maps(torch.rand(2, 1, 8, 8).bfloat16(), {"coarse": torch.rand(2, 4, 4).bfloat16()})
    plots.histogram(torch.ones(5), torch.zeros(5))                              # all scores equal, all normal
    plots.curves({"a": (range(3), pd.Series([0.1, 0.2, 0.3], index=[5, 6, 7]))}, xlabel="x", ylabel="y")
    plots.matrix([[0.5, np.nan]], ["a"], ["x", "y"])                            # a missing run
    plots.bars({"a": np.float32(0.7)})
    plt.close("all")


def test_maps_have_a_scale_each_or_one_for_all():
    heat = {"low": torch.tensor([[[0.0, 1.0]]]), "high": torch.tensor([[[2.0, 8.0]]])}
    for options, expected in (({}, [(0, 1), (2, 8)]), ({"limits": (0, 5)}, [(0, 5)] * 2)):
        figure = plots.maps(torch.rand(1, 1, 4, 8), heat, **options)
        assert [axes.images[0].get_clim() for axes in figure.axes[1:]] == expected
        plt.close(figure)


IMAGES, POINTS = torch.rand(3, 1, 8, 8), torch.rand(20, 2)
NAMED = {"xlabel": "x", "ylabel": "y"}


@pytest.mark.parametrize(("call", "message"), [
    (lambda: plots.images(IMAGES * 255), r"batch must lie in \[0, 1\]"),
    (lambda: plots.images(IMAGES * np.nan), "batch must be finite"),
    (lambda: plots.images(IMAGES[:0]), "batch must not be empty"),
    (lambda: plots.images(IMAGES, titles=["one"]), "titles must be 3, one a picture, got 1"),
    (lambda: plots.images(IMAGES, columns=0), "columns must be"),
    (lambda: plots.images(IMAGES, side="1"), "side must be"),
    (lambda: plots.maps(IMAGES, {"a": torch.rand(2, 8, 8)}), r"heat\['a'\] must have shape \(3, any, any\)"),
    (lambda: plots.maps(IMAGES, {"a": IMAGES[:, 0] / 0}), r"heat\['a'\] must be finite"),
    (lambda: plots.maps(IMAGES, {}, torch.ones(3, 4, 4)), r"masks must have shape \(3, 8, 8\), got \(3, 4, 4\)"),
    (lambda: plots.maps(IMAGES, {}, IMAGES[:, 0] * 255), "masks must hold only 0"),
    (lambda: plots.maps(IMAGES, {}, titles=["one"]), "titles must be 3"),
    (lambda: plots.maps(IMAGES, {}, limits=(1, 0)), "limits must be"),
    (lambda: plots.histogram(torch.rand(20) / 0, LABELS), "scores must be finite"),
    (lambda: plots.histogram(torch.rand(19), LABELS), "labels must have shape"),
    (lambda: plots.histogram(torch.rand(20), LABELS + 1), "labels must hold only 0"),
    (lambda: plots.histogram(torch.rand(20), LABELS, bins=0), "bins must be"),
    (lambda: plots.histogram(torch.rand(20), LABELS, threshold=np.nan), "threshold must be"),
    (lambda: plots.histogram(torch.rand(20), LABELS, limits=(2, 3)), "limits must leave some scores"),
    (lambda: plots.histogram(torch.rand(20), LABELS, limits=(3, 2)), "limits must be two numbers"),
    (lambda: plots.curves({}, **NAMED), "lines must be a dictionary"),
    (lambda: plots.curves({"a": ([0, 1], [0])}, **NAMED), r"lines\['a'\] must be \(x, y\)"),
    (lambda: plots.curves({"a": ([], [])}, **NAMED), r"lines\['a'\] must not be empty"),
    (lambda: plots.curves({"a": ([0, 1], [0, np.nan])}, **NAMED), r"lines\['a'\] must be finite"),
    (lambda: plots.curves({"a": ([0, 1], [0, 1])}, limits=1, **NAMED), "limits must be two numbers"),
    (lambda: plots.space(POINTS[:, :1], LABELS), "points must have 2 columns"),
    (lambda: plots.space(POINTS / 0, LABELS), "points must be finite"),
    (lambda: plots.space(POINTS, LABELS + 1), "labels must be whole numbers from 0 to 1"),
    (lambda: plots.space(POINTS, LABELS - 1), "labels must be whole numbers from 0 to 1"),
    (lambda: plots.space(POINTS, LABELS[:5]), "labels must have shape"),
    (lambda: plots.before_after(POINTS, POINTS[:5], LABELS), "labels must have shape"),
    (lambda: plots.before_after(POINTS, POINTS, LABELS, titles=["one"]), "titles must be 2"),
    (lambda: plots.bars({}), "values must be a dictionary"),
    (lambda: plots.bars({"a": np.nan}), r"values\['a'\] must be a finite number"),
    (lambda: plots.bars({"a": 0.7}, intervals={"b": (0, 1)}), "intervals must belong to bars, 'a', got .'b'"),
    (lambda: plots.bars({"a": 0.7}, intervals={"a": (1, 0)}), r"intervals\['a'\] must be two numbers"),
    (lambda: plots.bars({"a": 0.7}, colours={"b": "red"}), "colours must belong to bars"),
    (lambda: plots.matrix(torch.rand(2, 3), ["a", "b"], ["x", "y"]), r"values must have shape \(2, 2\)"),
    (lambda: plots.matrix([[np.inf]], ["a"], ["x"]), "not infinity"),
    (lambda: plots.matrix([["high"]], ["a"], ["x"]), "values must be a tensor or an array"),
])
def test_what_cannot_be_drawn_is_refused(call, message):
    plt.close("all")
    with pytest.raises(ValueError, match=message):
        call()
    assert plt.get_fignums() == []


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
    drawn = widgets.png(frame(1))
    with pytest.raises(ValueError, match="equally many"):
        widgets.frames([drawn], ["a", "b"], alt="a line")
    for bad in (b"", b"GIF89a"):
        with pytest.raises(ValueError, match="bytes that are no PNG"):
            widgets.frames([bad], ["a"], alt="a line")
    with pytest.raises(ValueError, match="figure must be a matplotlib figure, got str"):
        widgets.frames(["picture.png"], ["a"], alt="a line")
    for alt in ("", " ", [""], [None]):
        with pytest.raises(ValueError, match="alt must say what each frame shows"):
            widgets.frames([drawn], ["a"], alt=alt)
    with pytest.raises(ValueError, match="interval must be a whole number of at least 1, got 0"):
        widgets.frames([drawn], ["a"], alt="a line", interval=0)
    for start in (1, -1, 0.5):
        with pytest.raises(ValueError, match="start must be"):
            widgets.frames([drawn], ["a"], alt="a line", start=start)


def test_points_show_their_images_in_every_panel():
    images, labels = torch.rand(23, 3, 8, 8), torch.arange(23) % 2
    spaces = {"before <training>": torch.randn(23, 2), "after": torch.randn(23, 2)}
    drawn = widgets.hover(spaces, images, labels, ("bolt", "key & ring"), alt="Two \"kinds\" of parts")
    page = drawn.data
    assert "<script" not in page
    assert "before &lt;training&gt;" in page
    assert "key &amp; ring" in page
    assert 'aria-label="Two &quot;kinds&quot; of parts"' in page
    assert page.count('class="p"') == 23
    assert page.count('class="m"') == 46                            # a mark of each image in both panels
    assert 'viewBox="16 8 8 8"' in page                             # the last image: third of the second row
    places = [(float(x), float(y)) for x, y in re.findall(r'class="m" transform="translate\(([\d.]+),([\d.]+)\)', page)]
    assert all(12 <= x <= 2 * 300 + 16 - 12 and 36 <= y <= 312 for x, y in places)
    sprite = base64.b64decode(re.search(r"base64,([^\"]+)", page)[1])
    assert Image.open(io.BytesIO(sprite)).size == (160, 16)
    other = widgets.hover(spaces, images.flip(0), labels, ("a", "b"), alt="x").data
    name = re.search(r'<svg id="([^"]+)"', page)[1]
    assert name not in other                                        # two figures in a page do not meddle


def test_few_points_have_a_sprite_of_their_own_width():
    page = widgets.hover({"a": torch.rand(7, 2)}, torch.rand(7, 1, 8, 8), torch.zeros(7, dtype=torch.int64), ["x"],
                         alt="points").data
    assert Image.open(io.BytesIO(base64.b64decode(re.search(r"base64,([^\"]+)", page)[1]))).size == (56, 8)
    assert 'width="56" height="8"' in page


@pytest.mark.parametrize(("change", "word"), [
    ({"names": "abcdefgh"}, "names must be 1 to 7"), ({"side": -5}, "side"),
    ({"spaces": {}}, "spaces"), ({"alt": " "}, "alt"), ({"images": torch.rand(3, 8, 8)}, "images"),
    ({"labels": torch.tensor([0, 1, 2, 0])}, "labels"), ({"spaces": {"a": torch.rand(3, 2)}}, r"spaces\['a'\]"),
    ({"spaces": {"a": torch.full((4, 2), float("nan"))}}, "finite"),
])
def test_a_figure_of_points_refuses(change, word):
    given = {"spaces": {"a": torch.rand(4, 2)}, "images": torch.rand(4, 1, 8, 8), "labels": torch.tensor([0, 1, 1, 0]),
             "names": ("a", "b"), "alt": "points"} | change
    with pytest.raises(ValueError, match=word):
        widgets.hover(**given)


def test_a_plane_has_two_sliders_that_choose_row_and_column():
    rows = [[widgets.picture(torch.full((1, 4, 4), (i + j) / 4)) for j in range(3)] for i in range(2)]
    box = widgets.plane(rows, alt="a shade of grey", labels=([-1, 1], [-2, 0, 2]))
    first, second, outer = box.children
    assert (first.max, second.max) == (1, 2)
    assert (outer.selected_index, outer.children[0].selected_index) == (1, 1)
    assert [len(stack.children) for stack in outer.children] == [3, 3]
    assert "z₁ = 1, z₂ = -2" in outer.children[1].children[0].value
    with pytest.raises(ValueError, match="equally many frames"):
        widgets.plane([rows[0], rows[1][:2]], alt="grey")
    for start in ((2, 0), (0, -1), (1,)):
        with pytest.raises(ValueError, match="start must be"):
            widgets.plane(rows, alt="grey", start=start)
    with pytest.raises(ValueError, match=r"shape \(C, H, W\)"):
        widgets.picture(torch.rand(8, 8))
    with pytest.raises(ValueError, match="2 rows and 3 columns"):
        widgets.plane(rows, alt="grey", labels=([0], [0]))


def test_a_picture_is_the_image_enlarged():
    image = torch.tensor([[[0.0, 1.0], [0.5, 0.25]]])
    found = np.asarray(Image.open(io.BytesIO(widgets.picture(image, side=10))))
    assert found.shape == (10, 10)
    assert found[::5, ::5].tolist() == [[0, 255], [128, 64]]
    assert Image.open(io.BytesIO(widgets.picture(torch.rand(3, 8, 8)))).size == (240, 240)
