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
    (torch.full((1, 1, 8, 8), 60000.0).half(), r"\[0, 1\], got values"),        # finite, though their sum is not
    ("good/", "tensor or an array"),
    (None, "tensor or an array"),
    ([[0.0], [0.0, 1.0]], "tensor or an array"),
])
def test_images_are_refused_with_name_and_cure(value, message):
    with pytest.raises(ValueError, match=message) as error:
        checks.images(value, "pictures")
    assert "pictures" in str(error.value)


def test_arrays_become_tensors():
    assert checks.images(np.zeros((1, 3, 4, 4), np.float32)).shape == (1, 3, 4, 4)
    assert checks.rows([[0.0, 1.0]]).shape == (1, 2)
    assert checks.rows([np.zeros(3), np.ones(3)]).shape == (2, 3)          # warnings are errors: by NumPy, not by torch


def test_labels():
    assert checks.labels([0, 1, 1], 3).tolist() == [False, True, True]
    for value, message in (([0, 0], "both"), ([0, 2], "only 0"), ([0, 1, 1], "shape")):
        with pytest.raises(ValueError, match=message):
            checks.labels(value, 2)


def test_numbers():
    for value in (0, -1, 1.5, True, "3"):
        with pytest.raises(ValueError, match="k must be a whole number"):
            checks.positive_int(value, "k")
    for value in (0.0, 1.1, float("nan"), True, "0.5", None):
        with pytest.raises(ValueError, match="share must be"):
            checks.between(value, 0, 1, "share")
    assert [checks.is_number(value) for value in (1, np.float32(2), torch.tensor(0.5))] == [True] * 3
    for value in (-1, 2**31, 0.0, True):
        with pytest.raises(ValueError, match="seed must be"):
            checks.seed(value)


@pytest.mark.parametrize("options", [("mono", "poly"), {"mono": 0, "poly": 1}])
@pytest.mark.parametrize("value", ["mon", ["mono"], {"mono": 0}, None, 0, np.array(["mono", "poly"])])
def test_choice(value, options):
    with pytest.raises(ValueError, match="kind must be one of 'mono', 'poly'"):
        checks.choice(value, options, "kind")
    assert checks.choice("mono", options, "kind") == "mono"


def test_classes():
    assert checks.classes([0.0, 2.0], 2, 3).tolist() == [0, 2]
    for value, message in (([0, 3], "from 0 to 2, got"), ([-1, 0], "from 0 to 2"), ([0.5, 0], "whole"), ([0], "shape")):
        with pytest.raises(ValueError, match=message):
            checks.classes(value, 2, 3)


def test_paths():
    for value in (None, 3):
        with pytest.raises(ValueError, match="root must be a path"):
            checks.path(value, "root")


def test_squares_must_not_overflow():
    rows = torch.ones(2, 100)
    assert checks.rows(1e17 * rows, squares=torch.float32) is not None
    assert checks.rows(1e30 * rows, squares=torch.float64) is not None
    with pytest.raises(ValueError, match=r"squared distances overflow.*rescale"):
        checks.rows(1e30 * rows, squares=torch.float32)


def test_arrays_that_must_not_be_written_are_copied():
    array = np.array([0.1, 0.2])
    array.flags.writeable = False
    assert checks.scores(array).tolist() == [0.1, 0.2]
