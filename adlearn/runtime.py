"""The machine at hand: device, profile, seed and progress."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import random
import sys

import numpy as np
import torch

from adlearn import checks

PROFILES = ("quick", "gpu", "paper")


def device() -> torch.device:
    """The accelerator if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def profile() -> str:
    """How much work to do: "quick" on a CPU, "gpu" where there is one, "paper" for the full schedule.

    `ADLEARN_PROFILE` overrides the choice; a value that is none of the three raises `ValueError`.
    """
    asked = os.environ.get("ADLEARN_PROFILE")
    if asked:
        return checks.choice(asked, PROFILES, "ADLEARN_PROFILE")
    return "gpu" if torch.cuda.is_available() else "quick"


def pick(*, quick, gpu, paper=None):
    """The value for the current profile; `paper` falls back to `gpu`. A chapter sets its numbers with it."""
    return {"quick": quick, "gpu": gpu, "paper": gpu if paper is None else paper}[profile()]


def seed(number: int) -> None:
    """Seed Python, NumPy and torch. Called once, in a notebook's first cell; no method ever does it."""
    random.seed(number)
    np.random.seed(number)  # noqa: NPY002 - libraries that still draw from the global generator
    torch.manual_seed(number)


def device_name() -> str:
    """The accelerator's name, or the CPU with the number of threads that torch uses."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"


def describe() -> str:
    """One line for the top of a notebook: where it runs and in which profile."""
    return f"device: {device_name()} · profile: {profile()} · torch {torch.__version__}"


@functools.cache
def keep_memory() -> bool:
    """Let this process keep what it frees, up to 2 GiB, for its next step; whether the system can be told so.

    A training step on the CPU frees and takes the same blocks of a few hundred kilobytes over and over. glibc hands
    them back to the system, which gives them again zeroed, page by page, when they are touched: a fifth of a step or
    more. The peak of memory stays what it is, only the dips between go. Another C library is left alone.
    """
    trim_threshold, mmap_threshold = -1, -3                             # what glibc's mallopt calls them
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(trim_threshold, 2**31 - 1) and mallopt(mmap_threshold, 2**25))


def autocast(where: torch.device):
    """bfloat16 on CUDA, full precision elsewhere."""
    if where.type == "cuda":
        return torch.autocast("cuda", dtype=torch.bfloat16)
    return contextlib.nullcontext()


def progress(iterable, label: str, total: int | None = None):
    """`iterable` with a progress bar for whoever watches: a notebook, a terminal, or the book's build.

    Silent otherwise. `ADLEARN_PROGRESS` set to "stderr" writes to the process's own error stream, past the
    notebook: the book's build sees it and the page does not. "off" is always silent.
    """
    from tqdm import tqdm as plain
    from tqdm.auto import tqdm

    wish = os.environ.get("ADLEARN_PROGRESS", "")
    watched = "ipykernel" in sys.modules or (sys.stderr is not None and sys.stderr.isatty())
    if wish == "stderr" and watched:
        terminal = _behind_the_notebook()
        return plain(iterable, label, total, disable=terminal is None, file=terminal, mininterval=5, delay=5,
                     leave=False)
    return tqdm(iterable, label, total, disable=wish == "off" or not watched, delay=1, leave=False)


@functools.cache
def _behind_the_notebook():
    """The error stream that the kernel was started with; None if it cannot be told from the notebook's own."""
    if "ipykernel" not in sys.modules:
        return sys.stderr
    copy = getattr(sys.stderr, "_original_stdstream_copy", None)      # ipykernel watches descriptor 2 and keeps this
    return None if copy is None else os.fdopen(os.dup(copy), "w", buffering=1)
