"""Files that can be computed again: features, generated data, checkpoints.

A file's name is a hash of everything its content depends on, so a stale one is never found. Every file carries
the sha256 of its own bytes: one that was cut off or altered is named in a warning and built again. Writing goes
to a temporary neighbour that is renamed at the end, so that a killed process leaves nothing that looks whole.

The folder is `ADLEARN_CACHE`, or `adlearn` in the user's cache folder.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

_SUFFIX = ".cache"


def folder() -> Path:
    """Where cached files live (not created until something is written)."""
    if asked := os.environ.get("ADLEARN_CACHE"):
        return Path(asked).expanduser()
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA", "~/AppData/Local")
    elif sys.platform == "darwin":
        base = "~/Library/Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    return Path(base).expanduser() / "adlearn"


def replace(path: str | os.PathLike, payload: bytes) -> None:
    """Write `payload` to `path` in one step: either the old file or the whole new one is there, never a part."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(beside, "wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def seal(path: str | os.PathLike, value: dict) -> None:
    """Write a dict of primitives and tensors in one step, led by the sha256 of what follows."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    body = buffer.getvalue()
    replace(path, hashlib.sha256(body).digest() + body)


def unseal(path: str | os.PathLike) -> dict:
    """What `seal` wrote, on the CPU. `ValueError` if the file was cut off, altered, or written by something else."""
    content = Path(path).read_bytes()
    if hashlib.sha256(content[32:]).digest() != content[:32]:
        raise ValueError(f"{path} is damaged, or was not written by adlearn: delete it and make it again")
    return torch.load(io.BytesIO(content[32:]), map_location="cpu", weights_only=True)


def fingerprint(value: Tensor) -> str:
    """sha256 over a tensor's dtype, shape and bytes."""
    value = value.detach().cpu().contiguous()
    digest = hashlib.sha256(f"{value.dtype}{tuple(value.shape)}".encode())
    digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def tensors(name: str, key: dict, build: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The named tensors that `build` makes, computed once for each `key`.

    Args:
        name: what the file is, for people who list the cache.
        key: everything the content depends on, as plain JSON values.
        build: called when no valid file is there; returns a dict of tensors.
    """
    path = _path(name, key)
    found = _read(path)
    if found is None:
        found = build()
        _write(path, found)
    return found


def rows(name: str, key: dict, images, compute: Callable[[Tensor], Tensor], *, batch_size: int = 64) -> Tensor:
    """One row an image, (N, D), computed only for images that were not seen before.

    Rows are kept by the content of each single image, so that another split or order of the same images costs
    nothing. `images` is a tensor, or anything with a length whose slices are image tensors; `compute` maps a
    list of slices' worth of images, (B, C, H, W), to (B, D) on the CPU.
    """
    path = _path(name, key)
    kept = _read(path) or {"keys": torch.empty(0, 32, dtype=torch.uint8), "rows": torch.empty(0, 0)}
    known = {bytes(k.tolist()): row for k, row in zip(kept["keys"], kept["rows"], strict=True)}
    names: list[bytes] = []
    fresh = 0
    for start in range(0, len(images), batch_size):
        batch = images[start:start + batch_size]
        hashes = [bytes.fromhex(fingerprint(image)) for image in batch]
        names += hashes
        missing = [i for i, h in enumerate(hashes) if h not in known]
        if missing:
            fresh += len(missing)
            known.update(zip((hashes[i] for i in missing), compute(batch[missing]), strict=True))
    if fresh:
        keys = torch.tensor([list(k) for k in known], dtype=torch.uint8)                      # (M, 32)
        _write(path, {"keys": keys, "rows": torch.stack(list(known.values()))})
    return torch.stack([known[h] for h in names])                                              # (N, D)


def files() -> list[tuple[Path, int]]:
    """Everything in the cache's folder with its size in bytes: features, drawn data, downloads, unfinished runs."""
    return [(path, path.stat().st_size) for path in sorted(folder().rglob("*")) if path.is_file()]


def clear() -> int:
    """Delete all of it, and what killed processes left behind. Returns the number of bytes freed."""
    freed = 0
    for path, size in files():
        path.unlink(missing_ok=True)
        freed += size
    return freed


def _path(name: str, key: dict) -> Path:
    if not re.fullmatch(r"[\w.-]+", name):
        raise ValueError(f"name must be letters, digits, '.', '-' and '_', as it becomes a file's name, got {name!r}")
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:20]
    return folder() / f"{name}-{digest}{_SUFFIX}"


def _write(path: Path, value: dict[str, Tensor]) -> None:
    seal(path, {name: tensor.detach().cpu() for name, tensor in value.items()})


def _read(path: Path) -> dict[str, Tensor] | None:
    if not path.is_file():
        return None
    try:
        return unseal(path)
    except ValueError:
        warnings.warn(f"the cached file {path} is damaged and will be built again", stacklevel=3)
        return None
