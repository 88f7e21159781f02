import random
import subprocess
import sys

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


@pytest.mark.skipif(not runtime.keep_memory(), reason="the C library is not glibc")
def test_a_step_takes_its_memory_from_the_step_before():
    script = """
import resource, sys, torch
from adlearn import runtime
if sys.argv[1] == "kept":
    runtime.keep_memory()
net = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3), torch.nn.ReLU(), torch.nn.Conv2d(16, 16, 3), torch.nn.ReLU())
images = torch.rand(32, 3, 32, 32)
def faults(steps):
    start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(steps):
        net(images).sum().backward()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - start
faults(10)
print(faults(20))
"""
    kept, given_back = (
        int(subprocess.run([sys.executable, "-c", script, how], capture_output=True, text=True, check=True).stdout)
        for how in ("kept", "given back"))
    assert kept < 0.2 * given_back
