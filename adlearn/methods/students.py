"""Uninformed Students: what the students of a teacher have never seen they get wrong, and each in its own way.

A teacher T turns the patch around every pixel into a descriptor. It was distilled once, from a pretrained network, on
patches of images of all kinds. M students of the same layers, each from first weights of its own, learn to say of
normal images what T says of them:

    target      y = (T(I) − μ) / σ                      μ, σ of each dimension over all pixels of all training images
    student     L(S) = mean over pixels of |S(I) − y|²

Where an image shows something else, the students' mean misses the teacher, and the students disagree:

    e = |S̄ − y|²        v = 1/M Σ |S_i|² − |S̄|²        map = (e − mean e) / dev e + (v − mean v) / dev v

with means and deviations, one number each, over the pixels of held-out normal images, because on their training images
students are better than they will ever be again. With several patch sizes the map is the mean of their maps.

Departure: a student learns in each step from every stride-th pixel of a grid at a random place instead of from all
pixels. The loss is the same on average, and a step costs a fraction, since the networks need not be dense.

Bergmann, Fauser, Sattlegger and Steger, "Uninformed Students: Student-Teacher Anomaly Detection with Discriminative
Latent Embeddings", 2020. What teachers are trained on: generic images, never the parts to be inspected.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adlearn import checks, dense, runtime, training
from adlearn.data.folder import as_images
from adlearn.detector import Trained
from adlearn.nets import PATCH_LAYERS, PatchNet


# The teacher --------------------------------------------------------------------------------------------------


def compactness(descriptors: Tensor) -> Tensor:
    """L_c of descriptors (B, D): squared correlations between their dimensions over the batch, summed over all pairs.

    0 if no dimension repeats what others say, D (D − 1) if all say the same. Tian, Fan and Wu, "L2-Net", 2017.
    """
    rows = descriptors - descriptors.mean(0)
    rows = rows / rows.norm(dim=0).clamp(min=1e-12)
    correlation = rows.T @ rows                                                         # (D, D)
    return correlation.square().sum() - correlation.diagonal().square().sum()


def metric_learning(anchor: Tensor, positive: Tensor, negative: Tensor, *, margin: float = 10.0) -> Tensor:
    """L_m of descriptors (B, D) each: the hinge of δ⁺ against the smaller of the two distances to the negative."""
    near = (anchor - positive).square().sum(1)
    far = torch.minimum((anchor - negative).square().sum(1), (positive - negative).square().sum(1))
    return F.relu(margin + near - far).mean()


def distil_teacher(
    teacher: nn.Module,
    patches: Tensor,
    targets: Tensor,
    *,
    knowledge: float = 1.0,
    compact: float = 1.0,
    metric: float = 0.0,
    epochs: int,
    batch_size: int = 64,
    lr: float = 2e-4,
    callback: Callable[[int, nn.Module], None] | None = None,
    checkpoint=None,
) -> list[float]:
    """Train `teacher` to say in few numbers what a pretrained network says of a patch; returns the losses.

    L = λ_k |D(T(p)) − P(p)|² + λ_m L_m + λ_c L_c with a linear decoder D, which is thrown away. Targets are standardised
    by dimension, so that L_k begins at their number of dimensions.

    Args:
        teacher: patches (B, C, p, p) to descriptors (B, D, 1, 1); ends in evaluation mode.
        patches: (N, C, p, p) in [0, 1], of generic images.
        targets: (N, K), what the pretrained network says of each.
        knowledge, compact, metric: λ_k, λ_c and λ_m; the paper's for inspection are 1, 1 and 0. L_m compares a patch,
            the same `moved`, and its neighbour in the batch.
        epochs, batch_size, lr, callback, checkpoint: see `training.train`; Adam with a weight decay of 1e-5.
    """
    patches, targets = checks.images(patches, "patches"), checks.rows(targets, "targets")
    if len(patches) != len(targets):
        raise ValueError(f"targets must be one row for each of the {len(patches)} patches, got {len(targets)}")
    where = training.device_of(teacher)
    targets = (targets - targets.mean(0)) / targets.std(0).clamp(min=1e-6)
    with torch.no_grad():
        dim = teacher(patches[:1].to(where)).flatten(1).shape[1]
    both = nn.ModuleList([teacher, nn.Linear(dim, targets.shape[1]).to(where)])

    def loss(batch: Tensor, wanted: Tensor) -> Tensor:
        said = teacher(batch).flatten(1).float()                                        # (B, D)
        value = knowledge * (both[1](said) - wanted).square().sum(1).mean()
        if compact:
            value = value + compact * compactness(said)
        if metric:
            value = value + metric * metric_learning(said, teacher(moved(batch)).flatten(1).float(), said.roll(1, 0))
        return value

    return training.train(both, loss, patches, targets, epochs=epochs, batch_size=batch_size,
                          optimizer=training.Adam(both.parameters(), lr=lr, weight_decay=1e-5), checkpoint=checkpoint,
                          callback=callback and (lambda epoch, _: callback(epoch, teacher)))


def moved(patches: Tensor) -> Tensor:
    """Patches (B, C, p, p), shifted by up to (p − 1) / 4 pixels, the border repeated, with noise of 0.1 in [0, 1]."""
    most, p = (patches.shape[3] - 1) // 4, patches.shape[3]
    down, across = torch.randint(2 * most + 1, (2,)).tolist()
    shifted = F.pad(patches, (most,) * 4, mode="replicate")[:, :, down:down + p, across:across + p]
    return (shifted + 0.1 * torch.randn_like(shifted)).clamp(0, 1)


# The students -------------------------------------------------------------------------------------------------


class Scale(nn.Module):
    """A teacher and its students for one patch size, and the numbers by which what they say is standardised.

    Attributes:
        mean, deviation: μ and σ of the teacher's descriptors, (D, 1, 1).
        of_e, of_v: mean and deviation of e and of v on held-out normal images, (2,).
    """

    def __init__(self, teacher: PatchNet, students: list[PatchNet]):
        super().__init__()
        self.patch_size, self.stride = teacher.patch_size, teacher.stride
        self.teacher, self.students = teacher.requires_grad_(False), nn.ModuleList(students)
        self.register_buffer("mean", torch.zeros(teacher.dim, 1, 1))
        self.register_buffer("deviation", torch.ones(teacher.dim, 1, 1))
        self.register_buffer("of_e", torch.tensor([0.0, 1.0]))
        self.register_buffer("of_v", torch.tensor([0.0, 1.0]))

    def loss(self, images: Tensor) -> Tensor:
        """The mean over students and over the pixels of a grid at a random place, of images (B, C, H, W)."""
        before, after = self.patch_size // 2, self.patch_size - 1 - self.patch_size // 2
        padded = F.pad(images, (before, after, before, after), mode="reflect")
        down, across = torch.randint(self.stride, (2,)).tolist()
        grid = padded[:, :, down:, across:].contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            wanted = (self.teacher(grid) - self.mean) / self.deviation                  # (B, D, h, w)
        return sum((student(grid) - wanted).square().sum(1).mean() for student in self.students) / len(self.students)

    def descriptors(self, images: Tensor) -> Tensor:
        """y, the teacher's standardised descriptors of all pixels, (B, D, H, W)."""
        return (dense.dense_features(self.teacher, images, self.patch_size).float() - self.mean) / self.deviation

    def errors(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """e and v of every pixel, (B, H, W) each."""
        wanted, mean, squares = self.descriptors(images), 0, 0
        for student in self.students:
            said = dense.dense_features(student, images, self.patch_size).float()
            mean, squares = mean + said / len(self.students), squares + said.square().sum(1) / len(self.students)
        return (mean - wanted).square().sum(1), (squares - mean.square().sum(1)).clamp(min=0)

    def map(self, images: Tensor) -> Tensor:
        """e and v, standardised and added, (B, H, W)."""
        e, v = self.errors(images)
        return (e - self.of_e[0]) / self.of_e[1] + (v - self.of_v[0]) / self.of_v[1]


class UninformedStudents(Trained):
    """Anomaly maps from the errors of students and from their disagreement.

    Args:
        patch_sizes: of the scales, one or more of 17, 33 and 65.
        students: M, two or more at each scale.
        size: side that images are resized to; None leaves it to the profile.
        shrink: the networks' widths are the published ones over this number; None leaves it to the profile.
        teachers: networks of one's own, one a patch size, in place of the shipped ones.

    Attributes:
        scales: one `Scale` a patch size.
    """

    training_steps: ClassVar = {"quick": 150, "gpu": 2000, "paper": 15_000}
    batch_sizes: ClassVar = {"quick": 2, "gpu": 4, "paper": 1}
