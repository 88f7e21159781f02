import random

import numpy as np
import pytest
import torch

from adlearn import runtime


def test_profile_follows_the_machine_and_the_environment(monkeypatch):
    monkeypatch.delenv("ADLEARN_PROFILE")
    assert runtime.profile() == ("gpu" if torch.cuda.is_available() else "quick")
    monkeypatch.setenv("ADLEARN_PROFILE", "paper")
    assert runtime.profile() == "paper"
    assert runtime.pick(quick=1, gpu=2, paper=3) == 3
    assert runtime.pick(quick=1, gpu=2) == 2
    monkeypatch.setenv("ADLEARN_PROFILE", "fast")
    with pytest.raises(ValueError, match=r"ADLEARN_PROFILE.*quick.*'fast'"):
        runtime.profile()


def test_seed_reaches_all_three_generators():
    def draw():
        runtime.seed(3)
        return random.random(), np.random.rand(), torch.rand(1).item()  # noqa: NPY002

    assert draw() == draw()
    torch.manual_seed(4)
    assert torch.rand(1).item() != draw()[2]


def test_progress_keeps_the_items_and_is_silent_where_nobody_watches(capfd, monkeypatch):
    assert list(runtime.progress(range(3), "x")) == [0, 1, 2]
    assert capfd.readouterr() == ("", "")
    monkeypatch.setenv("ADLEARN_PROGRESS", "off")
    assert list(runtime.progress(range(3), "x")) == [0, 1, 2]


def test_describe_names_device_and_profile():
    assert "profile: quick" in runtime.describe()
