"""The loop that every chapter trains with, and the pass over all images that every detector scores with."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from adlearn import cache, checks, runtime
from adlearn.data.folder import as_images


def train(
    module: nn.Module,
    loss: Callable[..., Tensor],
    *data: Tensor,
    epochs: int,
    batch_size: int,
    lr: float = 1e-3,
    optimizer: torch.optim.Optimizer | None = None,
    cosine: bool = True,
    callback: Callable[[int, nn.Module], None] | None = None,
    checkpoint: str | Path | None = None,
) -> list[float]:
    """Minimise `loss(*batch)` over shuffled batches of `data` and return the mean loss of each epoch.

    The data are moved to the module's device once. The order of the samples comes from torch's global generator,
    so that the notebook's seed decides it. The last batch of an epoch may be smaller; a single sample that is left
    over joins the batch before it, because batch norm cannot use it alone.

    Args:
        module: holds the parameters; ends in evaluation mode.
        loss: maps a batch, one tensor for each of `data`, to a scalar.
        data: tensors with the same first dimension N.
        epochs, batch_size, lr: Adam unless `optimizer` says otherwise.
        cosine: the learning rate falls to zero along half a cosine over all steps.
        callback: called with (epoch, module) after each epoch, the module in evaluation mode; and once with
            epoch 0 before the first step.
        checkpoint: a file that is replaced after each epoch; when it is there, training goes on from it. It belongs
            to one module, one set of data and these settings. Another loss it cannot tell: name the file after it.

    Raises:
        ValueError: lengths differ; a checkpoint of another module, data or settings; a loss that is not finite.
    """
    checks.positive_int(epochs, "epochs")
    checks.positive_int(batch_size, "batch_size", minimum=2)
    if not data or len({len(part) for part in data}) != 1 or len(data[0]) < 2:
        raise ValueError(f"data must be tensors of one length of at least 2, got {[len(part) for part in data]}")
    where = device_of(module)
    data = [part.to(where) for part in data]
    optimizer = optimizer or torch.optim.Adam(module.parameters(), lr=lr)
    steps = epochs * -(-len(data[0]) // batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / steps)) if cosine else 1.0)
    settings = (epochs, batch_size, type(optimizer).__name__, optimizer.defaults, cosine)
    keeper = _Checkpoint(checkpoint, settings, data, module, optimizer, schedule)
    losses = keeper.resume()
    if callback and not losses:
        callback(0, module.eval())
    for epoch in runtime.progress(range(len(losses) + 1, epochs + 1), "training"):
        module.train()
        total, count = torch.zeros((), device=where), 0
        for index in _batches(len(data[0]), batch_size, where):
            with runtime.autocast(where):
                value = loss(*(part[index] for part in data))
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            optimizer.step()
            schedule.step()
            total, count = total + value.detach() * len(index), count + len(index)     # no synchronisation in here
        losses.append((total / count).item())
        if not math.isfinite(losses[-1]):
            raise ValueError(f"the loss became {losses[-1]} in epoch {epoch}: lower the learning rate")
        module.eval()
        if callback:
            callback(epoch, module)
        keeper.keep(losses)
    module.eval()
    return losses


@torch.inference_mode()
def collect(function: Callable[[Tensor], Tensor], images, *, batch_size: int = 64, device=None) -> Tensor:
    """`function` over all images, batch by batch, joined on the CPU in the order given.

    Args:
        function: (B, C, H, W) to (B, ...).
        images: whatever `adlearn.data.as_images` accepts.
        device: where the batches go; None leaves them where they are.
    """
    images = as_images(images)
    checks.positive_int(batch_size, "batch_size")
    parts = []
    for start in runtime.progress(range(0, len(images), batch_size), "images"):
        batch = images[start:start + batch_size]
        parts.append(function(batch if device is None else batch.to(device)).float().cpu())
    return torch.cat(parts)


def _batches(count: int, batch_size: int, where: torch.device) -> list[Tensor]:
    """A random order of `count` samples in batches of at least two."""
    batches = list(torch.randperm(count).to(where).split(batch_size))
    if len(batches[-1]) == 1:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


def device_of(module: nn.Module) -> torch.device:
    """Where a module's parameters, or else its buffers, are."""
    first = next(module.parameters(), None)
    if first is None:
        first = next(module.buffers(), torch.empty(0))
    return first.device


class _Checkpoint:
    """One file with everything a later run needs to go on as if it had never stopped."""

    def __init__(self, path, settings: tuple, data: list[Tensor], module, optimizer, schedule):
        self.path = Path(path) if path is not None else None
        self.parts = {"module": module, "optimizer": optimizer, "schedule": schedule}
        if self.path is not None:
            shapes = [(name, tuple(value.shape)) for name, value in module.state_dict().items()]
            content = [cache.fingerprint(part) for part in data]
            self.settings = hashlib.sha256(repr((settings, shapes, content)).encode()).hexdigest()

    def resume(self) -> list[float]:
        if self.path is None or not self.path.is_file():
            return []
        try:
            kept = cache.unseal(self.path)
        except ValueError:
            warnings.warn(f"the checkpoint {self.path} is damaged: training starts again", stacklevel=3)
            return []
        if kept.get("settings") != self.settings:
            raise ValueError(f"checkpoint {self.path} was made with another module, data or settings: "
                             "delete it or name another file")
        for name, part in self.parts.items():
            part.load_state_dict(kept[name])
        torch.set_rng_state(kept["generator"])
        if torch.cuda.is_available() and kept["cuda_generators"]:
            torch.cuda.set_rng_state_all(kept["cuda_generators"])
        return kept["losses"]

    def keep(self, losses: list[float]) -> None:
        if self.path is None:
            return
        cache.seal(self.path, {
            "settings": self.settings, "losses": losses, "generator": torch.get_rng_state(),
            "cuda_generators": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            **{name: part.state_dict() for name, part in self.parts.items()}})
