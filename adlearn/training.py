"""The loop that every chapter trains with, and the pass over all images that every detector scores with."""

from __future__ import annotations

import functools
import hashlib
import math
import warnings
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from adlearn import cache, checks, runtime
from adlearn.data.folder import as_images

# All weights in one call: one by one, those of a small network take several per cent of a step.
Adam = functools.partial(torch.optim.Adam, fused=True)


def train(
    module: nn.Module,
    loss: Callable[..., Tensor],
    *data: Tensor,
    epochs: int,
    batch_size: int | None = None,
    batches: Collection[Tensor] | None = None,
    lr: float = 1e-3,
    optimizer: torch.optim.Optimizer | None = None,
    cosine: bool = True,
    warmup: int = 0,
    callback: Callable[[int, nn.Module], None] | None = None,
    checkpoint: str | Path | None = None,
    history: list[float] | None = None,
) -> list[float]:
    """Minimise `loss(*batch)` over shuffled batches of `data` and return the mean loss of each epoch.

    The data are moved to the module's device once. The order of the samples comes from torch's global generator,
    so that the notebook's seed decides it. The last batch of an epoch may be smaller; a single sample that is left
    over joins the batch before it, because batch norm cannot use it alone.

    Args:
        module: holds the parameters; ends in evaluation mode.
        loss: maps a batch, one tensor for each of `data`, to a scalar.
        data: tensors with the same first dimension N.
        epochs, batch_size, lr: Adam with this rate, unless `optimizer` brings its own.
        batches: instead of `batch_size`, for batches that are not a plain shuffle: has a length and gives, each time it
            is walked through, that many tensors of indices into the data (`ClassBatches` is one).
        warmup: epochs over which the learning rate rises along a line, before the cosine begins.
        cosine: the learning rate falls to zero along half a cosine over all steps.
        callback: called with (epoch, module) after each epoch, the module in evaluation mode; and once with
            epoch 0 before the first step.
        checkpoint: a file that is replaced after each epoch; when it is there, training goes on from it. It belongs
            to one module, one set of data and these settings. Another loss, or other `batches` of one kind
            and number, it cannot tell: name the file after them.
        history: a list that is emptied, takes each epoch's mean loss before the callback is called, and is returned.

    Raises:
        ValueError: lengths differ; a checkpoint of another module, data or settings; a loss that is not finite.
    """
    checks.positive_int(epochs, "epochs")
    if checks.positive_int(warmup, "warmup", minimum=0) > epochs:
        raise ValueError(f"warmup must be at most the {epochs} epochs, got {warmup}")
    if batches is not None and not len(batches):
        raise ValueError("batches must hold at least one batch")
    if (batches is None) == (batch_size is None):
        raise ValueError("give either batch_size or batches")
    if not data or len({len(part) for part in data}) != 1 or len(data[0]) < 2:
        raise ValueError(f"data must be tensors of one length of at least 2, got {[len(part) for part in data]}")
    where = device_of(module)
    runtime.keep_memory()
    data = [part.to(where) for part in data]
    optimizer = optimizer or Adam(module.parameters(), lr=lr)
    batches = Shuffled(len(data[0]), batch_size) if batches is None else batches
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, functools.partial(_rate, warmup=warmup * len(batches), steps=epochs * len(batches), cosine=cosine))
    drawn_by = (batch_size, type(batches).__name__, len(batches))
    settings = (epochs, drawn_by, type(optimizer).__name__, optimizer.defaults, warmup, cosine)
    keeper = _Checkpoint(checkpoint, settings, data, module, optimizer, schedule)
    losses = [] if history is None else history
    losses[:] = keeper.resume()
    if callback and not losses:
        callback(0, module.eval())
    for epoch in runtime.progress(range(len(losses) + 1, epochs + 1), "training"):
        module.train()
        total, count = torch.zeros((), device=where), 0
        for index in [part.to(where) for part in batches]:
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


class LARS(torch.optim.Optimizer):
    """Layer-wise adaptive rate scaling, for the large batches with which SimCLR and CSI are trained.

    Each weight w with gradient g, momentum v and rate η takes the step

        g ← g + weight_decay · w        λ = trust · |w| / |g|        v ← momentum · v + η λ g        w ← w − v

    so that the step is a fixed share of the weight's length. Biases and the scales of batch norm, the tensors with
    fewer than two dimensions, are neither decayed nor scaled (λ = 1), as in SimCLR's code. You, Gitman and Ginsburg,
    "Large Batch Training of Convolutional Networks", 2017.

    Args:
        parameters: as for any optimiser of torch.
        lr: above 0.
        momentum: from 0 to below 1.
        weight_decay, trust: at least 0, and above 0.

    Raises:
        ValueError: a number outside these ranges.
    """

    def __init__(self, parameters, lr: float, *, momentum: float = 0.9, weight_decay: float = 1e-6,
                 trust: float = 1e-3):
        checks.between(lr, 0, 1e6, "lr")
        checks.between(trust, 0, 1e6, "trust")
        if not (checks.is_number(momentum) and 0 <= momentum < 1):
            raise ValueError(f"momentum must be from 0 to below 1, got {momentum!r}")
        if not (checks.is_number(weight_decay) and weight_decay >= 0):
            raise ValueError(f"weight_decay must be at least 0, got {weight_decay!r}")
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                step = weight.grad
                if weight.ndim > 1:
                    step = step + group["weight_decay"] * weight
                    lengths = weight.norm() / step.norm()                       # NaN or infinite where one of them is 0
                    step = step * torch.where(lengths.isfinite() & (lengths > 0), group["trust"] * lengths, 1.0)
                if "velocity" not in self.state[weight]:
                    self.state[weight]["velocity"] = torch.zeros_like(weight)
                velocity = self.state[weight]["velocity"]
                velocity.mul_(group["momentum"]).add_(step, alpha=group["lr"])
                weight.sub_(velocity)


class Shuffled:
    """All of `count` samples in a new order each time, in batches of `batch_size`, the last of at least two."""

    def __init__(self, count: int, batch_size: int):
        self.count, self.batch_size = count, checks.positive_int(batch_size, "batch_size", minimum=2)

    def __len__(self) -> int:
        return max(1, -(-self.count // self.batch_size) - (self.count % self.batch_size == 1))

    def __iter__(self) -> Iterator[Tensor]:
        order = torch.randperm(self.count)
        starts = [self.batch_size * i for i in range(1, len(self))]
        return iter(order.tensor_split(starts))                                 # (batch_size,), the last another


def passes(count: int, batch_size: int, steps: int) -> int:
    """Epochs over `count` samples that come nearest to a number of steps, at least one."""
    return max(1, round(steps / len(Shuffled(count, batch_size))))


class ClassBatches:
    """Batches of `classes` classes with `per_class` samples each, in blocks by class: what losses on labels need.

    In a batch drawn without regard to labels most anchors have no positive. An epoch is as many batches as hold N
    samples. Classes and samples are drawn without replacement within a batch. Hermans et al. 2017, section 2.

    Args:
        labels: (N,) whole numbers.
        classes: in each batch; None takes all.
        per_class: samples of each.

    Raises:
        ValueError: fewer classes, or fewer samples in one of them, than asked for.
    """

    def __init__(self, labels: Tensor, *, classes: int | None = None, per_class: int = 8):
        labels = checks.tensor(labels, "labels")
        self.members = [torch.nonzero(labels == c).flatten().cpu() for c in labels.unique()]
        if len(self.members) < 2:
            raise ValueError(f"labels must hold at least two classes, got {len(self.members)}")
        self.classes = checks.positive_int(len(self.members) if classes is None else classes, "classes", minimum=2)
        self.per_class = checks.positive_int(per_class, "per_class")
        fewest = min(len(members) for members in self.members)
        if self.classes > len(self.members) or self.per_class > fewest:
            raise ValueError(f"labels must hold {self.classes} classes with {per_class} samples each, got "
                             f"{len(self.members)} classes, one with {fewest}: ask for less, or draw more data")

    def __len__(self) -> int:
        return max(1, sum(map(len, self.members)) // (self.classes * self.per_class))

    def __iter__(self) -> Iterator[Tensor]:
        for _ in range(len(self)):
            chosen = torch.randperm(len(self.members))[:self.classes]
            yield torch.cat([members[torch.randperm(len(members))[:self.per_class]]
                             for members in (self.members[c] for c in chosen)])         # (classes · per_class,)


def _rate(step: int, *, warmup: int, steps: int, cosine: bool) -> float:
    """The share of the learning rate at a step."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup))) if cosine else 1.0


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
