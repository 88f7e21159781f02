"""Knowledge distillation: a student learns what a teacher says, not only which class it names.

A teacher's logits t hold more than its answer: that a key looks a little like a wrench, and nothing like a gear.
Softened by a temperature T they are the student's target, beside the labels y if there are any:

    L = (1 − α) CE(y, softmax(s)) + α T² KL(softmax(t / T) ‖ softmax(s / T))          losses.knowledge_distillation

What a teacher has seen in an image can be taught too, its features h: |W h_s − (h_t − μ) / σ|², with a linear W that is
thrown away. Two purposes:

    compression     a student smaller than its teacher, on the teacher's images             `distil`, `distil_features`
    noisy student   a student as large or larger, on images without labels, whose way is made hard by augmentation,
                    dropout and stochastic depth, while the teacher that names them sees them clean     `noisy_student`

Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015; Romero et al., "FitNets", 2015; Xie,
Luong, Hovy and Le, "Self-training with Noisy Student improves ImageNet classification", 2020; Huang et al., "Deep
Networks with Stochastic Depth", 2016.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adlearn import checks, losses, training

Change = Callable[[Tensor], Tensor]


def distil(
    student: nn.Module,
    teacher: nn.Module,
    images: Tensor,
    labels: Tensor | None = None,
    *,
    temperature: float = 4.0,
    alpha: float = 0.9,
    augment: Change | None = None,
    epochs: int,
    batch_size: int = 128,
    lr: float = 1e-3,
    callback: Callable[[int, nn.Module], None] | None = None,
) -> list[float]:
    """Train `student` on what `teacher` says of each image, changed as the student sees it; returns the losses.

    Args:
        student, teacher: images (B, C, H, W) to logits (B, K). The student ends in evaluation mode, the teacher is put
            into it first, and stays as it is.
        images: (N, C, H, W) in [0, 1].
        labels: (N,) whole numbers below K; None learns from the teacher alone.
        temperature, alpha: see `losses.knowledge_distillation`.
        augment: applied to each batch.
        epochs, batch_size, lr, callback: see `training.train`.

    Raises:
        ValueError: images outside [0, 1]; labels that do not fit; a student that is the teacher, or shares its weights.
    """
    images = checks.images(images)
    data = [images] if labels is None else [images, checks.classes(labels, len(images))]
    ask = _asked(teacher, student)

    def loss(batch: Tensor, truth: Tensor | None = None) -> Tensor:
        batch = batch if augment is None else augment(batch)
        return losses.knowledge_distillation(student(batch), ask(batch), truth, temperature=temperature, alpha=alpha)

    return training.train(student, loss, *data, epochs=epochs, batch_size=batch_size, lr=lr, callback=callback)


def distil_features(
    student: nn.Module,
    teacher: nn.Module,
    images: Tensor,
    *,
    augment: Change | None = None,
    epochs: int,
    batch_size: int = 128,
    lr: float = 1e-3,
    callback: Callable[[int, nn.Module], None] | None = None,
) -> list[float]:
    """Train `student` until a linear map of its features gives the teacher's; returns the losses, a mean over both.

    Args:
        student, teacher: images (B, C, H, W) to features (B, D) and (B, E). The teacher's are standardised by
            dimension over `images`, so that the loss begins near 1.
        images, augment, epochs, batch_size, lr, callback: as for `distil`.
    """
    images, ask = checks.images(images), _asked(teacher, student)
    where = training.device_of(student)
    said = training.collect(ask, images, device=where)                                  # (N, E)
    mean, deviation = said.mean(0).to(where), said.std(0).clamp(min=1e-6).to(where)
    with torch.no_grad():
        dim = student.eval()(images[:1].to(where)).shape[1]
    both = nn.ModuleList([student, nn.Linear(dim, said.shape[1]).to(where)])

    def loss(batch: Tensor) -> Tensor:
        batch = batch if augment is None else augment(batch)
        return F.mse_loss(both[1](student(batch)).float(), (ask(batch) - mean) / deviation)

    watch = None if callback is None else lambda epoch, _: callback(epoch, student)
    return training.train(both, loss, images, epochs=epochs, batch_size=batch_size, lr=lr, callback=watch)


def noisy_student(
    student: nn.Module,
    teacher: nn.Module,
    images: Tensor,
    labels: Tensor,
    unlabelled: Tensor,
    *,
    noise: Change,
    weight: float = 1.0,
    confidence: float = 0.0,
    epochs: int,
    batch_size: int = 128,
    lr: float = 1e-3,
    callback: Callable[[int, nn.Module], None] | None = None,
) -> list[float]:
    """Train `student` on labels and on what `teacher` says of unlabelled images; returns the mean loss of each epoch.

    L = CE(y, S(noise(x))) + weight · CE(softmax T(u), S(noise(u))): the teacher sees u as it is and is asked once.
    `add_noise` gives the student dropout and stochastic depth. To iterate, let the student be the next teacher.

    Args:
        student, teacher: as for `distil`.
        images, labels: (N, C, H, W) in [0, 1] and (N,).
        unlabelled: (M, C, H, W); an epoch goes over them once, with as many labelled images in each batch.
        noise: augmentation of all that the student sees.
        weight: of the second term.
        confidence: unlabelled images are left out whose largest probability is below; 0 leaves none out.
        epochs, batch_size, lr, callback: see `training.train`.

    Raises:
        ValueError: as for `distil`; no unlabelled image of which the teacher is so sure.
    """
    images, unlabelled = checks.images(images), checks.images(unlabelled, "unlabelled")
    labels, where = checks.classes(labels, len(images)), training.device_of(student)
    said = training.collect(_asked(teacher, student), unlabelled, device=where).softmax(1)          # (M, K)
    sure = said.amax(1) >= checks.within(confidence, 0, 1, "confidence")
    if sure.sum() < 2:
        raise ValueError(f"confidence must leave at least 2 unlabelled images, got {confidence}: the teacher's largest "
                         f"probability is {said.amax():.2f}")
    known, truth = images.to(where), labels.to(where)

    def loss(batch: Tensor, soft: Tensor) -> Tensor:
        index = torch.randint(len(known), (len(batch),)).to(where)
        on_labels, on_soft = student(noise(torch.cat([known[index], batch]))).chunk(2)
        return F.cross_entropy(on_labels, truth[index]) + weight * F.cross_entropy(on_soft, soft)

    return training.train(student, loss, unlabelled[sure], said[sure], epochs=epochs, batch_size=batch_size, lr=lr,
                          callback=callback)


class StochasticDepth(nn.Module):
    """In training, 0 with probability `p` for each image by itself, and otherwise 1 / (1 − p) times what comes in."""

    def __init__(self, p: float):
        super().__init__()
        self.p = checks.within(p, 0, 0.99, "p")

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.p:
            return x
        kept = torch.rand(len(x), *[1] * (x.ndim - 1), device=x.device) >= self.p
        return x * kept / (1 - self.p)

    def extra_repr(self) -> str:
        return f"p={self.p:.2f}"


def add_noise(classifier: nn.Module, *, dropout: float = 0.5, depth: float = 0.2) -> nn.Module:
    """Give a classifier dropout before its last layer and stochastic depth in its residual blocks; returns it.

    Args:
        classifier: with an `encoder` of residual blocks, as `nets.ResNet`, and a `linear` layer.
        dropout: probability with which a feature is dropped.
        depth: with which the last block's branch is; the others' grows linearly towards it, as in the paper.

    Raises:
        ValueError: a classifier without residual blocks.
    """
    blocks = [block for block in classifier.encoder.modules() if hasattr(block, "residual")]
    if not blocks:
        raise ValueError("classifier must have an encoder of residual blocks, got "
                         f"{type(classifier.encoder).__name__}: take adlearn.nets.ResNet")
    for number, block in enumerate(blocks, start=1):
        block.residual = nn.Sequential(block.residual, StochasticDepth(depth * number / len(blocks)))
    classifier.linear = nn.Sequential(nn.Dropout(checks.within(dropout, 0, 1, "dropout")), classifier.linear)
    return classifier


def _asked(teacher: nn.Module, student: nn.Module) -> Change:
    """The teacher as a function without gradients, in evaluation mode."""
    shared = {id(weight) for weight in teacher.parameters()} & {id(weight) for weight in student.parameters()}
    if shared:
        raise ValueError("student must not share weights with teacher, or it would teach itself: copy.deepcopy it")
    teacher.eval()

    @torch.no_grad()
    def ask(images: Tensor) -> Tensor:
        return teacher(images).float()

    return ask
