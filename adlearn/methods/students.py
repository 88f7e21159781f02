"""Uninformed Students: networks that were never told about defects fail on them, and disagree.

A teacher describes the patch around every pixel. It was distilled from a large pretrained network on patches of generic
images and has never seen the target. Students learn to say the same, on normal images only. Where an image holds what
they have not seen, they miss the teacher's answer, and each of them in another way:

    teacher     |D(T(p)) − P(p)|² + λ_c Σ_{i≠j} c_ij² + λ_m L_m                        least, on patches p
    students    mean over pixels of |S_i(I) − y|²,      y = (T(I) − μ) / σ             least, on normal images I
    error       e = |S̄(I) − y|²,      S̄ = 1/M Σ_i S_i
    disagree    v = 1/M Σ_i |S_i(I)|² − |S̄(I)|²
    map         (e − e_μ) / e_σ + (v − v_μ) / v_σ,      its mean over patch sizes

P is the large network, D a linear layer that is thrown away afterwards, c_ij the correlation of two dimensions of T
over a batch; e_μ, e_σ, v_μ and v_σ are taken from normal images on which nobody learnt.

Bergmann, Fauser, Sattlegger and Steger, "Uninformed Students: Student-Teacher Anomaly Detection with Discriminative
Latent Embeddings", CVPR 2020. `OnDescriptors` holds the rivals that they build on the same descriptors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adlearn import backbones, checks, density, losses, neighbors, runtime, training
from adlearn.data.folder import as_images
from adlearn.dense import dense_features
from adlearn.detector import Detector, Trained
from adlearn.nets import PATCH_LAYERS, PatchNet

# The teacher -------------------------------------------------------------------------------------------------


def distil_teacher(
    net: PatchNet,
    patches: Tensor,
    targets: Tensor,
    *,
    steps: int,
    batch_size: int = 64,
    lr: float = 2e-4,
    weight_decay: float = 1e-5,
    compact: float = 1.0,
    metric: float = 0.0,
    callback: Callable[[int, nn.Module], None] | None = None,
    checkpoint: str | Path | None = None,
) -> tuple[nn.Linear, list[float]]:
    """Train `net` to describe patches so that a linear layer finds in the description what a large network says.

    Section 3.1 of the paper. Of its three losses the last, L_m, is for those who have no large network to ask. The
    first weights are evened out, see `even_out`; what the paper starts from it does not print.

    Args:
        net: patches (B, 3, p, p) in [0, 1] to descriptors (B, d, 1, 1); changed in place, ends in evaluation mode.
        patches: (N, 3, p, p) uint8, of images of anything but what is to be inspected.
        targets: (N, D): what the large network says of each, P(p); standardised, so that no dimension of it rules.
        steps: about so many, in whole epochs.
        batch_size, lr, weight_decay: of Adam, as the paper's; but here the rate falls to 0, see `training.train`.
        compact, metric: the weights λ_c and λ_m; that of L_k is 1.
        callback, checkpoint: see `training.train`.

    Returns:
        The linear layer D, (B, d) to (B, D), and the mean loss of each epoch.

    Raises:
        ValueError: patches and targets that do not belong together, or to this network.
    """
    where, p = training.device_of(net), net.patch_size
    if (patches.dtype != torch.uint8 or patches.shape[1:] != (3, p, p) or targets.ndim != 2
            or len(patches) != len(targets) or len(patches) < 2):
        raise ValueError(f"patches must be (N, 3, {p}, {p}) bytes and targets (N, D), at least two of each, got "
                         f"{patches.dtype} {tuple(patches.shape)} and {tuple(targets.shape)}")
    even_out(net, patches[:256].to(where).float() / 255)
    decode = nn.Linear(net.dim, targets.shape[1]).to(where)
    both = nn.ModuleList([net, decode])

    def loss(batch: Tensor, wanted: Tensor) -> Tensor:
        batch = (batch.float() / 255).contiguous(memory_format=torch.channels_last)
        said = net(batch).flatten(1).float()                                            # (B, d)
        total = (decode(said) - wanted).square().sum(1).mean() + compact * compactness(said)
        if metric:
            total = total + metric * metric_loss(said, net(shifted(batch)).flatten(1).float())
        return total

    history = training.train(
        both, loss, patches, targets, epochs=training.passes(len(patches), batch_size, steps), batch_size=batch_size,
        optimizer=training.Adam([w for w in both.parameters() if w.requires_grad], lr=lr, weight_decay=weight_decay),
        callback=callback, checkpoint=checkpoint)
    return decode, history


@torch.no_grad()
def even_out(net: PatchNet, patches: Tensor) -> None:
    """Scale and shift the first weights so that each channel of each layer has mean 0 and deviation 1 on some patches.

    Without it every channel of these networks says at first how bright the patch is, and hundreds of steps pass until
    they part. Salimans and Kingma, "Weight normalization", 2016, section 3.
    """
    x = patches
    for layer in net:
        if isinstance(layer, nn.Conv2d) and layer.weight.requires_grad:
            found = layer(x)
            mean, std = found.mean((0, 2, 3)), found.std((0, 2, 3)).clamp_min(1e-6)
            layer.weight.div_(std[:, None, None, None])
            layer.bias.sub_(mean).div_(std)
        x = layer(x)


@losses.full_precision()
def compactness(descriptors: Tensor) -> Tensor:
    """L_c: the squared correlations of all pairs of different dimensions over a batch (B, d), summed.

    Descriptors whose dimensions all say something of their own are compact. Between dimensions, not between samples,
    and squared, or negative ones would pay: Tian, Fan and Wu, "L2-Net", 2017, whom the paper cites for it.
    """
    centred = descriptors - descriptors.mean(0)
    unit = F.normalize(centred, dim=0)                                                  # (B, d), columns of length 1
    correlation = unit.T @ unit                                                         # (d, d)
    return correlation.square().sum() - correlation.diagonal().square().sum()


def metric_loss(anchors: Tensor, positives: Tensor, *, margin: float = 10.0) -> Tensor:
    """L_m: a patch lies nearer to itself, shifted, than to another patch, (B, d) each: the mean of [δ + δ⁺ − δ⁻]₊.

    The negative of a row is the next one; δ⁻ is the smaller of its squared distances to anchor and positive.
    """
    negatives = anchors.roll(1, 0)
    near = (anchors - positives).square().sum(1)
    far = torch.minimum((anchors - negatives).square().sum(1), (positives - negatives).square().sum(1))
    return F.relu(margin + near - far).mean()


def shifted(patches: Tensor) -> Tensor:
    """The same patches moved by up to a quarter of their side, their border reflected, and with noise of 0.1."""
    p = patches.shape[2]
    reach = (p - 1) // 4
    padded = F.pad(patches, [reach] * 4, mode="reflect")
    places = torch.randint(2 * reach + 1, (len(patches), 2)).tolist()
    moved = torch.stack([image[:, top:top + p, left:left + p]
                         for image, (top, left) in zip(padded, places, strict=True)])
    return (moved + 0.1 * torch.randn_like(moved)).clamp(0, 1)


# The students ------------------------------------------------------------------------------------------------


def resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Images or maps (B, C, h, w) at another size, (B, C, H, W)."""
    if images.shape[2:] == size:
        return images
    return F.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False)


def as_input(images: Tensor, size: int) -> Tensor:
    """Images (B, 1 or 3, H, W) as the networks take them, (B, 3, size, size)."""
    return resized(images, (size, size)).clamp(0, 1).expand(-1, 3, -1, -1)


class Scale(nn.Module):
    """The teacher and the students of one patch size; there are none of these before `enrol`.

    Args:
        name: of the teacher, see `backbones.teacher`.
        seen: patches a side of the square of each image that a training step looks at, at most; None for 8 where
            they lie a pixel apart, and for 4 where they lie farther apart and cost more.

    Attributes:
        mean_, std_: (d,), μ and σ.
        error_, disagreement_: (2,) each, mean and deviation on held-out normal images.
    """

    def __init__(self, name: str, *, seen: int | None = None):
        super().__init__()
        self.teacher, self.students = backbones.teacher(name), nn.ModuleList()
        net = self.teacher.net
        self.patch_size, self.stride = net.patch_size, net.stride
        self.seen = (8 if self.stride == 1 else 4) if seen is None else checks.positive_int(seen, "seen")
        for buffer, start in (("mean_", torch.zeros(net.dim)), ("std_", torch.ones(net.dim)),
                            ("error_", torch.tensor([0.0, 1.0])), ("disagreement_", torch.tensor([0.0, 1.0]))):
            self.register_buffer(buffer, start)

    def enrol(self, count: int) -> Self:
        """Take so many students, with the teacher's layers and first weights of their own."""
        net = self.teacher.net
        self.students = nn.ModuleList(PatchNet(net.patch_size, shrink=net.shrink) for _ in range(count))
        self.students.to(memory_format=torch.channels_last)
        return self

    def windows(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """A square of each image, (B, 3, w, w), at a place drawn at random, with `seen` × `seen` patches in it.

        They lie as far apart as the networks step by themselves, which is what makes them cheap. Every pixel's patch is
        drawn equally often, those whose patch reaches over the border too, which is reflected. Where the image has not
        a multiple of `seen` such patches a side, there are fewer in a square.
        """
        p, rows = self.patch_size, images.shape[2] // self.stride
        side = max(count for count in range(1, self.seen + 1) if rows % count == 0)
        width = self.stride * (side - 1) + p
        padded = F.pad(images, (p // 2, p - 1 - p // 2) * 2, mode="reflect")
        places = (torch.randint(self.stride, (len(images), 2), generator=generator)
                  + torch.randint(rows // side, (len(images), 2), generator=generator) * side * self.stride)
        found = [image[:, top:top + width, left:left + width]
                 for image, (top, left) in zip(padded, places.tolist(), strict=True)]
        return torch.stack(found).contiguous(memory_format=torch.channels_last)

    def target(self, said: Tensor) -> Tensor:
        """y of what the teacher said, (B, d, h, w)."""
        return (said.float() - self.mean_[:, None, None]) / self.std_[:, None, None]

    def loss(self, images: Tensor) -> Tensor:
        """The students' summed loss on some patches of the images; its mean over all draws is that on all pixels."""
        patches = self.windows(images)
        wanted = self.target(self.teacher.net(patches))
        return sum((student(patches).float() - wanted).square().sum(1).mean() for student in self.students)

    def deviations(self, said: Tensor, answers: list[Tensor]) -> tuple[Tensor, Tensor]:
        """e and v, (B, h, w) each, of the teacher's descriptors and the students', (B, d, h, w) each."""
        answers = torch.stack([answer.float() for answer in answers])                           # (M, B, d, h, w)
        mean = answers.mean(0)
        error = (mean - self.target(said)).square().sum(1)
        return error, (answers - mean).square().sum(2).mean(0)      # = 1/M Σ|S_i|² − |S̄|², without the cancellation

    def maps(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """e and v at every pixel, (B, S, S) each."""
        return self.deviations(self.teacher(images),
                               [dense_features(student, images, self.patch_size) for student in self.students])

    def standardise_targets(self, images: Tensor) -> None:
        """Set μ and σ, from squares of patches at sixteen places of each image; the paper takes all pixels."""
        rows = torch.cat([self.teacher.net(patches).flatten(2).movedim(1, 2).flatten(0, 1).float()      # (·, d)
                          for patches in self._drawn(images)])
        std = rows.std(0)
        if std.max() < 1e-6:
            raise ValueError("images must differ from one another and hold more than one colour: the teacher says the "
                             "same of all their patches")
        self.mean_, self.std_ = rows.mean(0), std.clamp_min(1e-6)

    def standardise_scores(self, images: Tensor) -> None:
        """Set e_μ, e_σ, v_μ and v_σ, from such squares of each held-out image."""
        found = [self.deviations(self.teacher.net(patches), [student(patches) for student in self.students])
                 for patches in self._drawn(images)]
        for buffer, values in zip((self.error_, self.disagreement_), zip(*found, strict=True), strict=True):
            values = torch.cat([value.flatten() for value in values])
            buffer.copy_(torch.stack([values.mean(), values.std().clamp_min(1e-12)]))

    def _drawn(self, images: Tensor, *, times: int = 16, batch_size: int = 16) -> Iterator[Tensor]:
        """Patches at places that are the same each time, so that looking does not change what is drawn afterwards."""
        generator = torch.Generator().manual_seed(0)
        for _ in range(times):
            for batch in images.split(batch_size):
                yield self.windows(batch.to(self.mean_.device), generator)


SCORES = ("sum", "error", "disagreement")
RATES = {"quick": 7e-4, "gpu": 2e-4, "paper": 1e-4}                     # 1e-4 in the paper, for many more steps


class UninformedStudents(Trained):
    """Students of a teacher that has never seen the target; e, v, or their standardised sum as the score of a pixel.

    Args:
        patch_sizes: of 17, 33 and 65; more than one makes a multi-scale map, the mean over sizes.
        students: M for each patch size; with one there is no v.
        narrow: networks of a quarter of the published widths; None for them in the quick profile only.
        size: pixels to which images are resized, a multiple of 8; None for 128 in the quick profile, else 256.
        score_by: "sum", "error" (e alone) or "disagreement" (v alone).
    """

    training_steps: ClassVar = {"quick": 1_500, "gpu": 10_000, "paper": 40_000}

    def __init__(self, *, patch_sizes: tuple[int, ...] = (17, 33, 65), students: int = 3, narrow: bool | None = None,
                 size: int | None = None, score_by: str = "sum"):
        super().__init__()
        self.patch_sizes, self.narrow, self.size = _setting(patch_sizes, narrow, size)
        self.students = checks.positive_int(students, "students")
        self.score_by = checks.choice(score_by, SCORES, "score_by")
        if students == 1 and score_by != "error":
            raise ValueError(f"students must be at least 2 to disagree, got 1: take score_by='error', got {score_by!r}")
        self.scales = nn.ModuleList(Scale(_name(p, self.narrow)) for p in self.patch_sizes)

    def side_of(self, images: Tensor) -> int:
        return self.size

    def build(self, channels: int, side: int) -> None:
        for scale in self.scales:
            scale.enrol(self.students)

    def fit(self, images, *, held_out=None, epochs: int | None = None, batch_size: int = 4, lr: float | None = None,
            callback: Callable[[int, Detector], None] | None = None) -> Self:
        """Train the students on normal images.

        The paper takes one image a step, with all of its pixels, and one rate. Neighbouring pixels teach much the same:
        here a step sees a square of each of some images, and the rate falls to 0. `losses_` is the sum over all
        students of all patch sizes.

        Args:
            held_out: normal images from which e_μ, e_σ, v_μ and v_σ are taken; None sets a tenth of `images` aside.
            epochs: None for as many as give the profile's number of steps.
            batch_size: images a step.
            lr: of Adam; None for the profile's.
            callback: see `training.train`.

        Raises:
            ValueError: fewer than three images, or two and others held out; images that are all alike.
        """
        images = as_images(images)[:]
        if len(images) < (3 if held_out is None else 2):
            raise ValueError(f"images must be at least 3 to learn from and to hold one out, got {len(images)}")
        lr = runtime.pick(**RATES) if lr is None else checks.between(lr, 0, 1, "lr")
        if held_out is None:
            order = torch.randperm(len(images))
            aside = max(1, len(images) // 10)
            held_out, images = images[order[:aside]], images[order[aside:]]
        new = self.afresh(images)
        images, held_out = (new.seen_as(part) for part in (images, as_images(held_out)[:]))
        epochs = self.epochs(epochs, len(images), batch_size, self.training_steps)
        new.standardise_targets(images)

        def look(epoch: int, _) -> None:
            new.standardise_scores(held_out)
            callback(epoch, new)

        weights = [weight for scale in new.scales for weight in scale.students.parameters() if weight.requires_grad]
        training.train(new, new.loss, images, epochs=epochs, batch_size=batch_size, history=new.losses_,
                       optimizer=training.Adam(weights, lr=lr, weight_decay=1e-5),
                       callback=look if callback else None)
        new.standardise_scores(held_out)
        return self.take(new)

    def seen_as(self, images: Tensor) -> Tensor:
        """The images as the networks take them, (B, 3, size, size)."""
        return as_input(self.recoloured(images), self.size)

    def loss(self, images: Tensor) -> Tensor:
        return sum(scale.loss(images) for scale in self.scales)

    @torch.no_grad()
    def standardise_targets(self, images: Tensor) -> None:
        for scale in self.scales:
            scale.standardise_targets(images)

    @torch.no_grad()
    def standardise_scores(self, images: Tensor) -> None:
        for scale in self.scales:
            scale.standardise_scores(images)

    def embed(self, images: Tensor) -> Tensor:
        """The mean descriptor of an image in the words of the first student of each patch size, (B, Σ d)."""
        images = self.seen_as(images)
        return torch.cat([torch.cat([dense_features(scale.students[0], image, scale.patch_size).mean((2, 3))
                                     for image in images.split(1)])
                          for scale in self.scales], dim=1)

    def maps(self, images: Tensor) -> Tensor:
        """Standardised e and v of each of the L patch sizes at every pixel, (B, L, 2, H, W)."""
        found = torch.cat([self._maps_of_one(image) for image in self.seen_as(images).split(1)])
        return resized(found, images.shape[2:]).unflatten(1, (-1, 2))

    def _maps_of_one(self, image: Tensor) -> Tensor:
        """(1, 2 L, S, S) of (1, 3, S, S): one image at a time, as the descriptors of all its pixels are many."""
        found = []
        for scale in self.scales:
            for values, (mean, std) in zip(scale.maps(image), (scale.error_, scale.disagreement_), strict=True):
                found.append((values - mean) / std)                                     # (1, S, S)
        return torch.stack(found, dim=1)

    def combine(self, maps: Tensor) -> Tensor:
        """What `score_by` makes of e and v, and the mean over patch sizes: (B, L, 2, H, W) to (B, H, W)."""
        which = {"sum": slice(0, 2), "error": slice(0, 1), "disagreement": slice(1, 2)}[self.score_by]
        return maps[:, :, which].sum(2).mean(1)

    def anomaly_map(self, images: Tensor) -> Tensor:
        return self.combine(self.maps(images))


# The rivals --------------------------------------------------------------------------------------------------


RULES: dict[str, Callable[[], nn.Module]] = {
    "nearest_neighbor": lambda: neighbors.NeighborDistance(1),
    "one_class_svm": lambda: density.OneClassSVM(gamma="scale"),
    "kmeans": lambda: density.KMeans(k=10),
}


class OnDescriptors(Detector):
    """A simple rule on the teacher's descriptors of all pixels: what the paper compares the students with.

    A sample of the normal images' descriptors is reduced by PCA; a pixel scores what the rule says of its descriptor.
    Of one patch size, as in the paper's table; descriptors of several are joined.

    Args:
        rule: "nearest_neighbor", "one_class_svm" or "kmeans" (ten centres).
        patch_sizes, narrow, size: as for `UninformedStudents`.
        sample: descriptors that the rule learns from, None for 10,000 in the quick profile and else the paper's
            50,000; the support vector machine takes a tenth of them.
        variance: share of the variance that PCA keeps, in (0, 1].
    """

    def __init__(self, *, rule: str = "nearest_neighbor", patch_sizes: tuple[int, ...] = (17,),
                 narrow: bool | None = None, size: int | None = None, sample: int | None = None,
                 variance: float = 0.95):
        super().__init__()
        self.patch_sizes, self.narrow, self.size = _setting(patch_sizes, narrow, size)
        self.rule = checks.choice(rule, RULES, "rule")
        sample = runtime.pick(quick=10_000, gpu=50_000) if sample is None else sample
        self.sample = checks.positive_int(sample, "sample", 100)
        self.variance = checks.between(variance, 0, 1, "variance")
        self.teachers = nn.ModuleList(backbones.teacher(_name(p, self.narrow)) for p in self.patch_sizes)
        self.rule_ = RULES[rule]()
        for name in ("mean_", "axes_"):
            self.register_buffer(name, torch.empty(0))

    def describe(self, images: Tensor) -> Tensor:
        """Descriptors of all pixels, (B, Σ d, size, size)."""
        images = as_input(images, self.size)
        return torch.cat([teacher(images) for teacher in self.teachers], dim=1)

    def fit(self, images, *, batch_size: int = 4) -> Self:
        images = as_images(images)[:]
        share = -(-self.sample // len(images))                      # descriptors of each image that are looked at

        def some(batch: Tensor) -> Tensor:
            rows = self.describe(batch).flatten(2).transpose(1, 2)                          # (B, S·S, D)
            return torch.stack([of_one[torch.randperm(len(of_one))[:share]] for of_one in rows])

        where = self.mean_.device
        rows = training.collect(some, images, batch_size=batch_size, device=where).flatten(0, 1)[:self.sample]
        mean, axes = density.principal_axes(rows, self.variance)
        reduced = (rows - mean) @ axes
        if self.rule == "one_class_svm":                                    # its time grows with the square
            reduced = reduced[torch.randperm(len(reduced))[:max(100, self.sample // 10)]]
        rule = RULES[self.rule]().to(where).fit(reduced.to(where))
        self.rule_, self.mean_, self.axes_ = rule, mean.to(where), axes.to(where)
        return self.fitted()

    def embed(self, images: Tensor) -> Tensor:
        """The mean descriptor of an image, (B, Σ d)."""
        return torch.cat([self.describe(image).mean((2, 3)) for image in images.split(1)])

    def anomaly_map(self, images: Tensor) -> Tensor:
        found = []
        for image in images.split(1):                                   # the descriptors of all its pixels are many
            rows = self.describe(image)[0].flatten(1).T                                     # (S·S, D)
            found.append(self.rule_.score((rows - self.mean_) @ self.axes_).view(1, 1, self.size, self.size))
        return resized(torch.cat(found), images.shape[2:])[:, 0]


def _setting(patch_sizes, narrow: bool | None, size: int | None) -> tuple[tuple[int, ...], bool, int]:
    """What a detector on teachers looks at, checked: with the profile's widths and size where none is asked for."""
    sizes = tuple(patch_sizes) if isinstance(patch_sizes, tuple | list) else (patch_sizes,)
    for p in sizes:
        checks.choice(p, PATCH_LAYERS, "patch_sizes")
    if not sizes or len(set(sizes)) < len(sizes):
        raise ValueError(f"patch_sizes must name at least one size and none twice, got {patch_sizes!r}")
    quick = runtime.profile() == "quick"
    size = checks.positive_int((128 if quick else 256) if size is None else size, "size", max(sizes) // 2 + 1)
    if size % 8:
        raise ValueError(f"size must be a multiple of 8, as the networks for patches of 65 step by 8, got {size}")
    if narrow is not None and not isinstance(narrow, bool):
        raise ValueError(f"narrow must be True, False or None, got {narrow!r}")
    return sizes, quick if narrow is None else narrow, size


def _name(patch_size: int, narrow: bool) -> str:
    return f"teacher_{patch_size}{'_narrow' if narrow else ''}"
