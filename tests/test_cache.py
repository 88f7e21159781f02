import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from adlearn import cache, cli


def build(calls):
    def make():
        calls.append(1)
        return {"a": torch.arange(5.0), "b": torch.zeros(2, 3, dtype=torch.uint8)}

    return make


def test_built_once_for_each_key(cache_folder):
    calls = []
    first = cache.tensors("x", {"seed": 0}, build(calls))
    second = cache.tensors("x", {"seed": 0}, build(calls))
    assert torch.equal(first["a"], second["a"])
    assert second["b"].dtype == torch.uint8
    assert len(calls) == 1
    cache.tensors("x", {"seed": 1}, build(calls))
    assert len(calls) == 2


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty"])
def test_a_damaged_file_is_named_and_built_again(cache_folder, damage):
    calls = []
    cache.tensors("x", {}, build(calls))
    (path, _), = cache.files()
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
    path.write_bytes({"truncate": content[:-7], "flip": content, "empty": b""}[damage])
    with pytest.warns(UserWarning, match=path.name):
        again = cache.tensors("x", {}, build(calls))
    assert torch.equal(again["a"], torch.arange(5.0))
    assert len(calls) == 2
    cache.tensors("x", {}, build(calls))
    assert len(calls) == 2


def test_a_failing_build_leaves_nothing(cache_folder):
    with pytest.raises(RuntimeError):
        cache.tensors("x", {}, lambda: (_ for _ in ()).throw(RuntimeError))
    assert cache.files() == []


def test_replace_keeps_the_old_file_when_the_disk_refuses(tmp_path, monkeypatch):
    path = tmp_path / "f"
    cache.replace(path, b"old")

    def refuse(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="disk full"):
        cache.replace(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_killed_writer_leaves_the_old_file_whole(tmp_path):
    path = tmp_path / "f"
    cache.replace(path, b"0" * 4_000_000)
    code = (f"from adlearn import cache\nprint('go', flush=True)\ni = 0\n"
            f"while True:\n    i += 1\n    cache.replace({str(path)!r}, bytes([48 + i % 10]) * 4_000_000)\n")
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    process.stdout.readline()
    time.sleep(0.15)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    content = path.read_bytes()
    assert len(content) == 4_000_000
    assert len(set(content)) == 1


def test_rows_are_computed_once_an_image_in_any_order(cache_folder):
    images = torch.rand(10, 1, 4, 4)
    seen = []

    def compute(batch):
        seen.append(len(batch))
        return batch.flatten(1)[:, :3]

    first = cache.rows("r", {}, images[:6], compute, batch_size=4)
    assert torch.equal(first, images[:6].flatten(1)[:, :3])
    assert sum(seen) == 6
    order = torch.randperm(10)
    again = cache.rows("r", {}, images[order], compute, batch_size=4)
    assert torch.equal(again, images[order].flatten(1)[:, :3])
    assert sum(seen) == 10
    cache.rows("r", {}, images, compute)
    assert sum(seen) == 10


def test_fingerprint_tells_shape_dtype_and_content():
    x = torch.zeros(4)
    others = [torch.zeros(2, 2), torch.zeros(4, dtype=torch.int32), torch.tensor([0.0, 0, 0, 1])]
    assert len({cache.fingerprint(v) for v in [x, *others]}) == 4
    assert cache.fingerprint(torch.zeros(8)[::2]) == cache.fingerprint(x)


def test_command_line_lists_and_clears(cache_folder, capsys):
    cache.tensors("solar", {}, build([]))
    (cache_folder / ".solar.123.part").write_bytes(b"left by a killed process")
    assert cli.main(["cache"]) == 0
    assert "solar" in capsys.readouterr().out
    assert cli.main(["cache", "--clear"]) == 0
    assert list(cache_folder.iterdir()) == []


def test_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("ADLEARN_CACHE", str(tmp_path))
    assert cache.folder() == tmp_path
    monkeypatch.delenv("ADLEARN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.folder().name == "adlearn"
