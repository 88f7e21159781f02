"""CSI: contrast an image with shifted copies of itself, ask which shift it was, and score with all that was learnt.

Shifts S_0 = identity, S_1, …, S_{K−1} are transformations strong enough to take an image out of its distribution. In
SimCLR an image's two views attract each other. Here each of its shifted copies is an image of its own, so that copies
of one image repel each other, and a linear layer on the features tells the shifts apart:

    L = InfoNCE over both views of all K·B shifted images  +  cross entropy of the shift

With z the output of the head, not normalised, and W the linear layer, an image is normal if its copies are long and
near to a training image's copy of the *same* shift, and if their shifts are recognised:

    s(x) = 1/K Σ_S λ_S max_m cos(z(Sx), z(Sx_m)) · |z(Sx)|  +  1/K Σ_S λ'_S [W f(Sx)]_S        A(x) = −s(x)

λ_S is one over the mean |z(Sx_m)| of the training images, λ'_S one over the mean of their logits' absolute values (the
paper has the mean, which is the same where shifts are recognised, and anything where they cannot be): they balance the
shifts. Outputs are averaged over several random crops of one fixed area, for the training images as for those asked
about.

Departures: the crops of the ensemble are the same for all images and change nothing else, so that a score depends on
neither the order nor the company of an image (the authors' draw crop and colour for each); Adam instead of LARS outside
of the paper profile, in which the warm-up begins at 0.

Tack, Mo, Jeong and Shin, "CSI: Novelty Detection via Contrastive Learning on Distributionally Shifted Instances", 2020.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adlearn import augment, checks, losses, metrics, runtime, training
from adlearn.data.folder import as_images
from adlearn.detector import Detector, Trained
from adlearn.methods.simclr import SimCLR
from adlearn.neighbors import knn
from adlearn.nets import ProjectionHead, encoder_of, width

VIEWS = augment.simclr(mirror=0.0)              # of images that were mirrored before, see `augment.views_of_shifts`
AREA = 0.54                                     # of the crops of the ensemble: the middle of SimCLR's 0.08 to 1
PARTS = ("con", "cls")


class CSI(Trained):
    """Contrast with shifted instances.

    Args:
        shift: "rotations", "cut_permutations", or a function, images (B, C, H, W) to (K·B, C, H, W), the images as they
            are first, for example ``augment.beside(lambda x: augment.gaussian_blur(x, 2.0, 9))``. None has the identity
            only, and with it no shifts to tell apart: plain SimCLR with CSI's score, the paper's baseline.
        encoder: "small", "resnet18" (the paper's), or a network of one's own with `dim`, which is copied and trained
            from the weights it has; None leaves it to the profile.
        parts: of the loss and the score: ("con", "cls"), or one of the two.
        crops: whose outputs are averaged; 1 takes the images as they are, None is 10, the paper's, or 4 in the quick
            profile.
        temperature: of InfoNCE.
        views: draws a view of a shifted copy in training; None is SimCLR's recipe for small images, of images that are
            mirrored before the shift.

    Attributes:
        bank_: unit z of the training images, (K, N, D).
        balance_: λ and λ', (2, K).
        boxes_: of the crops, (crops, 4), see `augment.resized_crop`.
    """

    training_steps: ClassVar = {"quick": 300, "gpu": 5000, "paper": 39_000}             # 1,000 epochs of 5,000 images
    batch_sizes: ClassVar = {"quick": 32, "gpu": 64, "paper": 128}
    rates: ClassVar = {"quick": 1e-3, "gpu": 1e-3, "paper": 1.0}

    def __init__(self, *, shift: str | Callable[[Tensor], Tensor] | None = "rotations",
                 encoder: str | nn.Module | None = None, parts=PARTS, crops: int | None = None,
                 temperature: float = 0.5, views: Callable[[Tensor], Tensor] | None = None):
        super().__init__()
        augment.shift_of(shift)
        self.shift, self.views = shift, views
        self.keep_encoder(runtime.pick(quick="small", gpu="resnet18") if encoder is None else encoder)
        if isinstance(parts, str) or not parts or len(set(parts)) < len(parts):
            raise ValueError(f"parts must be ('con', 'cls'), ('con',) or ('cls',), got {parts!r}")
        self.parts = tuple(checks.choice(part, PARTS, "parts") for part in parts)
        if shift is None and "con" not in self.parts:
            raise ValueError("parts must hold 'con' where there is no shift to recognise, got ('cls',)")
        self.crops = runtime.pick(quick=4, gpu=10) if crops is None else checks.positive_int(crops, "crops")
        self.temperature = checks.between(temperature, 0, 1e3, "temperature")
        for name in ("bank_", "balance_", "boxes_"):
            self.register_buffer(name, torch.empty(0))

    def build(self, channels: int, side: int) -> None:
        copies = augment.count_of(self.shift, channels, side, minimum=1 if self.shift is None else 2)
        net = encoder_of(self.encoder, channels, side)
        self.model = SimCLR(net, head=ProjectionHead(width(net)))
        self.linear = nn.Linear(width(net), copies)
        area = 1.0 if self.crops == 1 else AREA
        self.boxes_ = augment.RandomResizedCrop((area, area), (1.0, 1.0)).boxes(self.crops, side, side)

    @property
    def learnt(self) -> tuple[str, ...]:
        """The parts that there is something to learn for: with a single shift its recognition is none."""
        return self.parts if self.linear.out_features > 1 else ("con",)

    def fit(self, images, *, epochs: int | None = None, batch_size: int | None = None, lr: float | None = None,
            callback: Callable[[int, Self], None] | None = None) -> Self:
        """Learn from normal images, square, two of them or more.

        Args:
            epochs, batch_size, lr: None leaves them to the profile. A step sees 2 K views of each image of a batch.
            callback: called with (epoch, detector) after each epoch and, with 0, before the first step; the detector
                can score, for which it looks at all images once more, K times for each crop.

        Raises:
            ValueError: images that are too few or not square; an encoder or a shift that does not suit them.
        """
        images = as_images(images)[:]
        new = self.afresh(images)
        view = augment.views_of_shifts(self.shift, self.views, recipe=VIEWS)
        batch_size = runtime.pick(**self.batch_sizes) if batch_size is None else batch_size
        epochs = self.epochs(epochs, len(images), batch_size, self.training_steps)
        lr = runtime.pick(**self.rates) if lr is None else lr
        paper = runtime.profile() == "paper"
        optimizer = (training.LARS if paper else training.Adam)(new.parameters(), lr=lr)
        training.train(new, lambda batch: new.objective(batch, view), images, epochs=epochs, batch_size=batch_size,
                       optimizer=optimizer, warmup=min(10, epochs // 2) if paper else 0, history=new.losses_,
                       callback=callback and (lambda epoch, _: callback(epoch, new.remember(images))))
        return self.take(new.remember(images))

    def objective(self, images: Tensor, view: Callable[[Tensor], Tensor]) -> Tensor:
        """con-SI + cls-SI of a batch; `view` gives one view of each shifted copy of images, (K·B, C, S, S)."""
        K, B = self.linear.out_features, len(images)
        h = self.model.embed(view(torch.cat([images, images])))                         # (K·2B, dim)
        value = h.new_zeros(())
        if "con" in self.learnt:
            z, other = self.model.head(h).unflatten(0, (K, 2, B)).unbind(1)             # (K, B, D) each
            value = value + losses.info_nce(z.flatten(0, 1), other.flatten(0, 1), temperature=self.temperature)
        if "cls" in self.learnt:
            value = value + F.cross_entropy(self.linear(h), torch.arange(K, device=h.device).repeat_interleave(2 * B))
        return value

    def remember(self, images, *, batch_size: int = 64) -> Self:
        """The second stage alone: fill bank and balances from normal images; a threshold is forgotten."""
        where = self.trained().shape_.device

        def rows(batch: Tensor) -> Tensor:
            z, logits = self.outputs(batch)
            return torch.cat([z, logits[..., None]], dim=2).transpose(0, 1)             # (B, K, D + 1)

        both = training.collect(rows, images, batch_size=batch_size, device=where).to(where)
        z, logits = both[..., :-1].transpose(0, 1), both[..., -1].T                     # (K, N, D), (K, N)
        self.bank_ = F.normalize(z, dim=2)
        means = torch.stack([z.norm(dim=2).mean(1), logits.abs().mean(1)])              # (2, K)
        self.balance_ = 1 / means.clamp(min=1e-6)
        return self.fitted()

    def outputs(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """z of all shifted copies, (K, B, D), and of each the logit of its own shift, (K, B): means over the crops."""
        copies = augment.shift_of(self.shift)(self.fitting(images))                     # (K·B, C, S, S)
        h = z = 0
        for box in self.boxes_:
            features = self.model.embed(augment.resized_crop(copies, box.expand(len(copies), 4)))
            h, z = h + features / len(self.boxes_), z + self.model.head(features) / len(self.boxes_)
        logits = self.linear(h).float().unflatten(0, (-1, len(images)))                 # (K, B, K)
        return z.float().unflatten(0, (-1, len(images))), logits.diagonal(dim1=0, dim2=2).T

    def terms(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the score is made of, (K, B) each: the largest cosine in the bank, the length of z, the logit."""
        z, logits = self.outputs(images)
        near = [knn(unit, bank, 1)[0] for unit, bank in zip(F.normalize(z, dim=2), self.bank_, strict=True)]
        return 1 - torch.stack(near).square()[..., 0] / 2, z.norm(dim=2), logits

    def embed(self, images: Tensor) -> Tensor:
        """Features of the images as they are, below the head, (B, dim)."""
        return self.model.embed(self.fitting(images))

    def anomaly_score(self, images: Tensor) -> Tensor:
        """−s(x), of the parts asked for."""
        near, length, logits = self.terms(images)
        of_part = {"con": self.balance_[0, :, None] * near * length, "cls": self.balance_[1, :, None] * logits}
        return -sum(of_part[part].mean(0) for part in self.learnt)


def ood_ness(detector: Detector, shifts: dict[str, str | Callable[[Tensor], Tensor]], images) -> dict[str, float]:
    """How foreign shifted copies look to a detector of normal images: AUROC of copies against the images, by name.

    A shift for CSI should take images out of their distribution. So train a detector without one, ``CSI(shift=None)``,
    and take the shift with the highest value, from normal images alone.

    Args:
        detector: fitted on normal images.
        shifts: see `augment.shift_of`.
        images: normal images (N, C, H, W) that the detector has not learnt from: those it knows are near by themselves.

    Raises:
        ValueError: a shift that makes no copies, see `augment.count_of`.
    """
    images = as_images(images)[:]
    found = {}
    for name, shift in shifts.items():
        augment.count_of(shift, *images.shape[1:3], minimum=2)
        copies = augment.shift_of(shift)(images)
        labels = (torch.arange(len(copies)) >= len(images)).long()
        found[name] = metrics.auroc(labels, detector.score(copies))
    return dict(sorted(found.items(), key=lambda pair: -pair[1]))
