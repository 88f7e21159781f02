import numpy as np
import pytest
import torch

from adlearn import checks


@pytest.mark.parametrize(("value", "message"), [
    (torch.rand(3, 8, 8), r"\(B, C, H, W\)"),
    (torch.rand(2, 4, 8, 8), "C of 1 or 3"),
    (torch.rand(0, 1, 8, 8), "empty"),
    (torch.randint(0, 255, (2, 1, 8, 8), dtype=torch.uint8), "divide bytes by 255"),
    (torch.rand(2, 1, 8, 8) * 255, r"\[0, 1\], got values"),
    (torch.rand(2, 1, 8, 8) - 0.5, r"\[0, 1\], got values"),
    (torch.full((1, 1, 8, 8), float("nan")), "NaN"),
    (torch.full((1, 1, 8, 8), float("inf")), "infinity"),
    ("good/", "tensor or an array"),
])
def test_images_are_refused_with_name_and_cure(value, message):
    with pytest.raises(ValueError, match=message) as error:
        checks.images(value, "pictures")
    assert "pictures" in str(error.value)


def test_arrays_become_tensors():
    assert checks.images(np.zeros((1, 3, 4, 4), np.float32)).shape == (1, 3, 4, 4)
    assert checks.rows([[0.0, 1.0]]).shape == (1, 2)


def test_labels():
    assert checks.labels([0, 1, 1], 3).tolist() == [False, True, True]
    for value, message in (([0, 0], "both"), ([0, 2], "only 0"), ([0, 1, 1], "shape")):
        with pytest.raises(ValueError, match=message):
            checks.labels(value, 2)


def test_numbers():
    for value in (0, -1, 1.5, True, "3"):
        with pytest.raises(ValueError, match="k must be a whole number"):
            checks.positive_int(value, "k")
    for value in (0.0, 1.1, float("nan")):
        with pytest.raises(ValueError, match="share must be"):
            checks.between(value, 0, 1, "share")
    with pytest.raises(ValueError, match="kind must be one of 'mono', 'poly'"):
        checks.choice("mon", ("mono", "poly"), "kind")
