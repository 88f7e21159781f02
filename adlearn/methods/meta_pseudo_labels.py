"""Meta Pseudo Labels: a teacher whose pseudo labels are judged by what they do to the student.

A few images x have labels y, many images u have none. In every step the teacher T draws a hard label ŷ for each u, the
student S takes one step on them, and the teacher learns from how much that step helped S on the labelled images:

    student    θ' = θ − η g            g = ∇ CE(ŷ, S(u; θ))
    feedback   h = η ∇CE(y, S(x; θ'))ᵀ g  ≈  CE(y, S(x; θ)) − CE(y, S(x; θ'))
    teacher    descends   h · CE(ŷ, T(u)) + CE(y, T(x)) + λ UDA(u)

A helpful step, h above 0, makes the teacher surer of the labels that it drew, a harmful one less sure. The draw
matters: with soft labels, T's own softmax held fixed, the gradient of CE(ŷ, T(u)) in the logits is
softmax − softmax = 0, and the teacher hears nothing. The student never sees the labelled images; in the end it is
fine-tuned on them.

Departures: the authors' released code takes CE(θ') − CE(θ), the opposite sign, and soft labels, so that its feedback
vanishes; see the discussion in chapter 15.

Pham, Dai, Xie, Luong and Le, "Meta Pseudo Labels", 2021; UDA is Xie et al., "Unsupervised Data Augmentation for
Consistency Training", 2020.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adlearn import checks, runtime, training

Change = Callable[[Tensor], Tensor]
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
    optimizer: torch.optim.Optimizer, feedback: str = "difference", smoothing: float = 0.0
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
    loss = F.cross_entropy(student(inputs), drawn, label_smoothing=smoothing)
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


def _unchanged(inputs: Tensor) -> Tensor:
    return inputs


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
    images: Tensor,
    labels: Tensor,
    unlabelled: Tensor,
    *,
    feedback: str = "difference",
    baseline: float = 0.99,
    supervision: float = 1.0,
    uda_weight: float = 0.0,
    uda_ramp: int = 1,
    weak: Change = _unchanged,
    strong: Change = _unchanged,
    smoothing: float = 0.0,
    steps: int,
    batch_size: int = 128,
    lr: float = 0.05,
    teacher_lr: float | None = None,
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.SGD,
    every: int = 100,
    callback: Callable[[int, nn.Module, nn.Module], None] | None = None,
) -> History:
    """Train teacher and student together; both end in evaluation mode, the student not fine-tuned yet.

    Args:
        teacher, student: inputs (B, ...) to logits (B, K), with weights of their own.
        images, labels: (N, ...) and (N,) whole numbers below K; of more than `batch_size` a step takes that many.
        unlabelled: (M, ...), of which a step takes `batch_size`.
        feedback: "difference", "product" or "none", see `step_of_student`. Without feedback the teacher still learns
            from the labels and by UDA.
        baseline: decay of the moving mean that is taken off h, in [0, 1); 0 takes nothing off.
        supervision: weight of the teacher's own CE(y, T(x)), 1 in the paper; with 0 it hears of labels by h alone.
        uda_weight, uda_ramp: λ, and the steps over which it rises to that.
        weak, strong: how the teacher sees an input for UDA; what the student sees is the strong one.
        smoothing: of the labels that the student is given.
        steps, batch_size: of both.
        lr, teacher_lr: of the student and the teacher, along half a cosine; None takes the student's for both.
        optimizer: of either, called with its parameters and ``lr=``.
        every, callback: called with (step, teacher, student), both in evaluation mode, before the first step, then
            each so many steps, and after the last.

    Raises:
        ValueError: labels that do not fit; networks that share weights; a loss that is not finite.
    """
    labels = checks.classes(labels, len(images))
    checks.choice(feedback, FEEDBACK, "feedback")
    checks.positive_int(steps, "steps")
    if {id(weight) for weight in teacher.parameters()} & {id(weight) for weight in student.parameters()}:
        raise ValueError("student must not share weights with teacher: copy.deepcopy it, or build it anew")
    where = training.device_of(student)
    images, labels, unlabelled = images.to(where), labels.to(where), unlabelled.to(where)
    optimizers = [optimizer(net.parameters(), lr=rate)
                  for net, rate in ((teacher, lr if teacher_lr is None else teacher_lr), (student, lr))]
    schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(one, steps) for one in optimizers]
    history, mean = History(), torch.zeros((), device=where)
    for step in runtime.progress(range(steps), "training"):
        if callback and step % every == 0:
            callback(step, teacher.eval(), student.eval())
        teacher.train()
        student.train()
        x, y = images, labels
        if len(images) > batch_size:
            index = torch.randperm(len(images))[:batch_size].to(where)
            x, y = images[index], labels[index]
        u = unlabelled[torch.randint(len(unlabelled), (batch_size,)).to(where)]
        seen = strong(u)
        logits, weakly, on_labelled = teacher(torch.cat([seen, weak(u), x])).split([len(u), len(u), len(x)])
        drawn = torch.multinomial(logits.detach().softmax(1), 1).flatten()                          # (B,)
        loss, after, h = step_of_student(student, seen, drawn, x, y, optimizer=optimizers[1], feedback=feedback,
                                         smoothing=smoothing)
        surprise = h - mean
        mean = baseline * mean + (1 - baseline) * h if baseline else mean
        objective = (surprise * F.cross_entropy(logits, drawn) if feedback != "none" else 0) + \
            supervision * F.cross_entropy(on_labelled, y)
        if uda_weight:
            objective = objective + uda_weight * min(1, (step + 1) / uda_ramp) * uda(weakly, logits)
        optimizers[0].zero_grad(set_to_none=True)
        objective.backward()
        optimizers[0].step()
        for schedule in schedules:
            schedule.step()
        for kept, value in zip((history.student, history.labelled, history.teacher, history.feedback),
                               (loss, after, objective.detach(), h), strict=True):
            kept.append(value)
    for name, values in vars(history).items():
        setattr(history, name, torch.stack(values).tolist())
    if not all(map(math.isfinite, history.student + history.teacher)):
        raise ValueError("the loss is not finite any more: lower lr")
    teacher.eval()
    student.eval()
    if callback:
        callback(steps, teacher, student)
    return history


def finetune(net: nn.Module, images: Tensor, labels: Tensor, *, steps: int, batch_size: int = 128, lr: float = 0.01,
             change: Change = _unchanged) -> list[float]:
    """Train on labelled images alone, the end of the method, and its rival from the start; the losses of each epoch."""
    return training.train(net, lambda batch, truth: F.cross_entropy(net(change(batch)), truth), images,
                          checks.classes(labels, len(images)), batch_size=batch_size,
                          epochs=training.passes(len(images), batch_size, steps),
                          optimizer=torch.optim.SGD(net.parameters(), lr=lr))
