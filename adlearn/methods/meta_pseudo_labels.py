"""Meta Pseudo Labels: a teacher whose pseudo labels are judged by what they do to the student.

A few images x have labels y, many images u have none. In every step the teacher T draws a hard label ŷ for each u, the
student S takes one step on them, and the teacher learns from how much that step helped S on the labelled images:

    student    θ' = θ − η g            g = ∇ CE(ŷ, S(u; θ))
    feedback   h = η ∇CE(y, S(x; θ'))ᵀ g  ≈  CE(y, S(x; θ)) − CE(y, S(x; θ'))
    teacher    descends   h · CE(ŷ, T(u)) + CE(y, T(x)) + λ UDA(u)

A helpful step, h above 0, makes the teacher surer of the labels that it drew, a harmful one less sure. The draw matters:
with soft labels, T's own softmax held fixed, the gradient of CE(ŷ, T(u)) in the logits is softmax − softmax = 0, and
the teacher hears nothing. The student never sees the labelled images; in the end it is fine-tuned on them.

Departures: the authors' released code takes CE(θ') − CE(θ), the opposite sign, and soft labels, so that its feedback
vanishes; see the discussion in chapter 15.

Pham, Dai, Xie, Luong and Le, "Meta Pseudo Labels", 2021; UDA is Xie et al., "Unsupervised Data Augmentation for
Consistency Training", 2020.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adlearn import checks, runtime, training

FEEDBACK = ("difference", "product", "none")


@dataclass
class History:
    """One number a step: the losses of the student on pseudo labels and of both on labelled images, and h."""

    student: list[float] = field(default_factory=list)
    labelled: list[float] = field(default_factory=list)
    teacher: list[float] = field(default_factory=list)
    feedback: list[float] = field(default_factory=list)


def step_of_student(
    student: nn.Module, inputs: Tensor, drawn: Tensor, labelled: Tensor, labels: Tensor, *,
    optimizer: torch.optim.Optimizer, feedback: str = "difference"
) -> tuple[float, float, Tensor]:
    """One step on pseudo labels: the loss on them, that on labelled images after the step, and the feedback h.

    Args:
        inputs, drawn: of the step, (B, ...) and (B,).
        labelled, labels: which judge it.
        feedback: "difference" is CE before less CE after the step; "product" is η ∇CE(θ')ᵀ g, exact where the step is
            −η g, that of plain gradient descent, and otherwise the help along the gradient; "none" is 0.
    """
    weights = [weight for weight in student.parameters() if weight.requires_grad]
    before = _on(student, labelled, labels) if feedback == "difference" else None
    loss = F.cross_entropy(student(inputs), drawn)
    gradients = torch.autograd.grad(loss, weights)
    for weight, gradient in zip(weights, gradients, strict=True):
        weight.grad = gradient
    optimizer.step()
    if feedback == "product":
        after = F.cross_entropy(student(labelled), labels)
        both = zip(torch.autograd.grad(after, weights), gradients, strict=True)
        return loss.detach(), after.detach(), optimizer.param_groups[0]["lr"] * sum((a * b).sum() for a, b in both)
    after = _on(student, labelled, labels)
    return loss.detach(), after, (before - after if feedback == "difference" else torch.zeros_like(after))


@torch.no_grad()
def _on(net: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(net(inputs), labels)


def uda(weak_logits: Tensor, strong_logits: Tensor, *, temperature: float = 0.7, confidence: float = 0.6) -> Tensor:
    """Consistency: cross entropy of the answers to strongly changed inputs with the sharpened answers to the same
    inputs, weakly changed, where these are sure; a mean over all rows. No gradient reaches `weak_logits`."""
    weak = weak_logits.detach()
    sure = weak.softmax(1).amax(1) >= confidence
    return -((weak / temperature).softmax(1) * strong_logits.log_softmax(1)).sum(1).mul(sure).mean()


def learn(
    teacher: nn.Module,
    student: nn.Module,
    labelled: Tensor,
    labels: Tensor,
    unlabelled: Tensor,
    *,
    steps: int,
    batch_size: int = 64,
    lr: float = 0.1,
    lr_teacher: float | None = None,
    momentum: float = 0.0,
    feedback: str = "difference",
    baseline: float = 0.0,
    uda_weight: float = 0.0,
    weak: Callable[[Tensor], Tensor] | None = None,
    strong: Callable[[Tensor], Tensor] | None = None,
    every: int = 0,
    callback: Callable[[int, nn.Module, nn.Module], None] | None = None,
) -> History:
    ...
