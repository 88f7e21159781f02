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

import copy
from collections.abc import Callable
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adlearn import backbones, checks, dense, runtime, training
from adlearn.data.folder import as_images
from adlearn.detector import Trained
from adlearn.nets import PATCH_LAYERS, PatchNet

NARROWER = (1, 4)                   # what the widths of the shipped teachers are the published ones over
GRID = 32                           # pixels a side that a student learns from in each image of a step

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

    L = λ_k |D(T(p)) − P(p)|² + λ_m L_m + λ_c L_c with a linear decoder D, which is thrown away. Targets are
    standardised by dimension, so that L_k begins at their number of dimensions.

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


def load_teacher(patch_size: int, shrink: int = 1) -> PatchNet:
    """The teacher that this package ships for a patch size, 17, 33 or 65, with the published widths over `shrink`.

    `adlearn.pretrain` made it, from photographs, textures and drawn parts; ``backbones.shipped(name)[1]`` tells how.
    """
    narrow = "_narrow" if checks.choice(shrink, NARROWER, "shrink") > 1 else ""
    teacher = PatchNet(checks.choice(patch_size, PATCH_LAYERS, "patch_size"), shrink=shrink)
    teacher.load_state_dict(backbones.shipped(f"teacher_{patch_size}{narrow}")[0])
    return teacher.eval()


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
        reach = self.stride * (GRID - 1) + self.patch_size                      # pixels that a whole grid looks at
        down, across = (torch.randint(max(self.stride, length - reach + 1), ()) for length in padded.shape[2:])
        grid = padded[:, :, down:down + reach, across:across + reach].contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            wanted = (self.teacher(grid) - self.mean) / self.deviation                  # (B, D, h, w)
        return sum((student(grid) - wanted).square().sum(1).mean() for student in self.students) / len(self.students)

    def descriptors(self, images: Tensor) -> Tensor:
        """y, the teacher's standardised descriptors of all pixels, (B, D, H, W)."""
        return (dense.dense_features(self.teacher, images, self.patch_size).float() - self.mean) / self.deviation

    def errors(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """e and v of every pixel, (B, H, W) each; image by image, since descriptors of all pixels are many numbers."""
        found = [self._errors(image) for image in images.split(1)]
        return torch.cat([e for e, _ in found]), torch.cat([v for _, v in found])

    def _errors(self, image: Tensor) -> tuple[Tensor, Tensor]:
        wanted, mean, squares = self.descriptors(image), 0.0, 0.0
        for student in self.students:
            said = dense.dense_features(student, image, self.patch_size).float()                    # (1, D, H, W)
            mean, squares = mean + said / len(self.students), squares + said.square().sum(1) / len(self.students)
        return (mean - wanted).square().sum(1), (squares - mean.square().sum(1)).clamp(min=0)       # (1, H, W) each

    def standardise_targets(self, images: Tensor) -> None:
        """Take μ and σ from the teacher's descriptors of all pixels of all images."""
        total, squares, count = 0.0, 0.0, 0
        for image in images.to(self.mean.device).split(1):
            with torch.no_grad():
                said = dense.dense_features(self.teacher, image, self.patch_size)[0].double().flatten(1)      # (D, HW)
            total, squares, count = total + said.sum(1), squares + said.square().sum(1), count + said.shape[1]
        mean = total / count
        deviation = (squares / count - mean.square()).clamp(min=1e-12).sqrt()
        self.mean, self.deviation = mean.float()[:, None, None], deviation.float()[:, None, None]

    @torch.no_grad()
    def standardise_errors(self, images: Tensor) -> None:
        """Take the means and deviations of e and v from all pixels of images that the students have not learnt."""
        for name, values in zip(("of_e", "of_v"), self.errors(images), strict=True):
            setattr(self, name, torch.stack([values.mean(), values.std().clamp(min=1e-12)]))

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
        teachers: networks of one's own, see `distil_teacher`, in place of the shipped ones of `patch_sizes`.

    Attributes:
        scales: one `Scale` a patch size.
    """

    training_steps: ClassVar = {"quick": 150, "gpu": 4000, "paper": 20_000}
    batch_sizes: ClassVar = {"quick": 4, "gpu": 8, "paper": 2}
    rates: ClassVar = {"quick": 1e-3, "gpu": 3e-4, "paper": 1e-4}

    def __init__(self, *, patch_sizes: tuple[int, ...] = (17, 33, 65), students: int = 3, size: int | None = None,
                 shrink: int | None = None, teachers: list[PatchNet] | None = None):
        super().__init__()
        self.students = checks.positive_int(students, "students", 2)
        self.size = runtime.pick(quick=128, gpu=256) if size is None else checks.positive_int(size, "size", 64)
        self.shrink = runtime.pick(quick=4, gpu=1) if shrink is None else checks.choice(shrink, NARROWER, "shrink")
        self.patch_sizes = tuple(checks.choice(patch_size, PATCH_LAYERS, "patch_sizes") for patch_size in patch_sizes)
        if not self.patch_sizes or len(set(self.patch_sizes)) < len(self.patch_sizes):
            raise ValueError(f"patch_sizes must name at least one size and none of them twice, got {patch_sizes!r}")
        self.__dict__["teachers"] = None if teachers is None else nn.ModuleList(teachers)     # copied, never changed

    def build(self, channels: int, side: int) -> None:
        teachers = self.teachers or [load_teacher(patch_size, self.shrink) for patch_size in self.patch_sizes]
        self.scales = nn.ModuleList(
            Scale(copy.deepcopy(teacher), [PatchNet(teacher.patch_size, shrink=teacher.shrink)
                                           for _ in range(self.students)]) for teacher in teachers)

    def side_of(self, images: Tensor) -> int:
        super().side_of(images)
        return self.size

    def fit(self, images, *, held_out=None, epochs: int | None = None, batch_size: int | None = None,
            lr: float | None = None, callback: Callable[[int, Self], None] | None = None) -> Self:
        """Teach the students with Adam, then see how far they are off on normal images that they have not seen.

        Args:
            images: see `Detector.score`; square.
            held_out: normal images, of which e and v are standardised; None keeps every tenth of `images` for it.
            epochs: None takes as many as give the profile's number of steps.
            batch_size, lr: None takes the profile's.
            callback: called with (epoch, detector) after each epoch and, with 0, before the first step; e and v are
                not standardised yet.

        Raises:
            ValueError: images that are not square, or too few.
        """
        images, held_out = as_images(images)[:], held_out if held_out is None else as_images(held_out)[:]
        batch_size = runtime.pick(**self.batch_sizes) if batch_size is None else batch_size
        new = self.afresh(images)
        if held_out is None:
            every = torch.arange(len(images)) % 10 == 0
            images, held_out = images[~every], images[every]
        images = training.collect(new.seen, images)                                     # (N, 3, size, size)
        where = training.device_of(new)
        for scale in new.scales:
            scale.standardise_targets(images)
        training.train(new, lambda batch: sum(scale.loss(batch) for scale in new.scales) / len(new.scales), images,
                       epochs=self.epochs(epochs, len(images), batch_size, self.training_steps), batch_size=batch_size,
                       optimizer=training.Adam(new.scales.parameters(), weight_decay=1e-5,
                                               lr=runtime.pick(**self.rates) if lr is None else lr),
                       callback=callback, history=new.losses_)
        for scale in new.scales:
            scale.standardise_errors(new.seen(held_out.to(where)))
        return self.take(new)

    def seen(self, images: Tensor) -> Tensor:
        """Images as the networks see them, (B, 3, size, size)."""
        return self.fitting(images).expand(-1, 3, -1, -1)

    def embed(self, images: Tensor) -> Tensor:
        """The teachers' standardised descriptors, the mean over all pixels, (B, D)."""
        images = self.seen(images)
        return torch.cat([scale.descriptors(images).mean((2, 3)) for scale in self.scales], dim=1)

    def anomaly_map(self, images: Tensor) -> Tensor:
        seen = self.seen(images)
        maps = sum(scale.map(seen) for scale in self.scales)[:, None] / len(self.scales)
        return F.interpolate(maps, images.shape[2:], mode="bilinear", align_corners=False)[:, 0]        # (B, H, W)
