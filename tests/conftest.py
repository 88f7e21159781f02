import os
import tempfile

# before adlearn is imported anywhere: tests never touch the user's cache, the network or the screen
os.environ["ADLEARN_CACHE"] = tempfile.mkdtemp(prefix="adlearn-tests-")
os.environ["ADLEARN_PROFILE"] = "quick"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "agg"
os.environ.pop("ADLEARN_WEIGHTS", None)

import pytest
import torch


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("ADLEARN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"
