"""CSI: contrast an image with shifted copies of itself, ask which shift it was, and score with all that was learnt.

Shifts S_0 = identity, S_1, …, S_{K−1} are transformations strong enough to take an image out of its distribution. In
SimCLR an image's two views attract each other. Here each of its shifted copies is an image of its own, so that copies
of one image repel each other, and a linear layer on the features tells the shifts apart:

    L = InfoNCE over both views of all K·B shifted images  +  cross entropy of the shift

With z the output of the head, not normalised, and W the linear layer, an image is normal if its copies are long and
near to a training image's copy of the *same* shift, and if their shifts are recognised:

    s(x) = 1/K Σ_S λ_S max_m cos(z(Sx), z(Sx_m)) · |z(Sx)|  +  1/K Σ_S λ'_S [W f(Sx)]_S        A(x) = −s(x)

λ_S is one over the mean |z(Sx_m)| of the training images, λ'_S one over their mean logit: they balance the shifts.
Features are averaged over several random crops of one fixed area, for the training images as for those asked about.

Departures: the crops of the ensemble are the same for all images and change nothing else, so that a score depends on
neither the order nor the company of an image (the authors' draw crop and colour for each); Adam instead of LARS outside
of the paper profile.

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

AREA = 0.54                                     # of the crops of the ensemble: the middle of SimCLR's 0.08 to 1
PARTS = ("con", "cls")


class CSI(Trained):
    """Contrast with shifted instances.

    Args:
        shift: "rotations", "cut_permutations", or a function, images (B, C, H, W) to (K·B, C, H, W), the images as they
            are first, for example ``augment.beside(lambda x: augment.gaussian_blur(x, 2.0, 9))``. None has the identity
            only: plain SimCLR with CSI's score, the paper's baseline.
        encoder: "small", "resnet18" (the paper's), or a network of one's own with `dim`, which is copied; None leaves
            it to the profile.
        parts: of the score and of the loss: ("con", "cls"), or one of the two.
        views: crops whose features are averaged; 1 takes the images as they are. The paper's is 10.
        temperature: of InfoNCE.
        augmentation: draws the views of training; None is SimCLR's recipe, see `augment.views_of_shifts`.

    Attributes:
        bank_: unit z of the training images, (K, N, D).
        balance_: λ and λ', (2, K).
        boxes_: of the crops, (views, 4).
    """

    training_steps: ClassVar = {"quick": 300, "gpu": 5000, "paper": 39_000}             # 1,000 epochs of 5,000 images
    rates: ClassVar = {"quick": 1e-3, "gpu": 1e-3, "paper": 1.0}

    def __init__(self, *, shift: str | Callable[[Tensor], Tensor] | None = "rotations",
                 encoder: str | nn.Module | None = None, parts=PARTS, views: int = 4, temperature: float = 0.5,
                 augmentation: Callable[[Tensor], Tensor] | None = None):
        super().__init__()
        self.shift = shift
        augment.shift_of(shift)
        self.encoder = runtime.pick(quick="small", gpu="resnet18") if encoder is None else encoder
        self.parts = tuple(checks.choice(part, PARTS, "parts") for part in parts)
        self.views = checks.positive_int(views, "views")
        self.temperature, self.augmentation = checks.between(temperature, 0, 1e3, "temperature"), augmentation
        for name in ("bank_", "balance_", "boxes_"):
            self.register_buffer(name, torch.empty(0))

    def build(self, channels: int, side: int) -> None:
        net = encoder_of(self.encoder, channels)
        self.model = SimCLR(net, head=ProjectionHead(width(net)))
        copies = augment.shift_of(self.shift)(torch.zeros(1, channels, side, side))
        self.linear = nn.Linear(width(net), len(copies))
        area = 1.0 if self.views == 1 else AREA
        self.boxes_ = augment.RandomResizedCrop((area, area), (1.0, 1.0)).boxes(self.views, side, side)

    def fit(self, images, *, epochs: int | None = None, batch_size: int = 32, lr: float | None = None,
            callback: Callable[[int, Self], None] | None = None) -> Self:
        """Learn from normal images, square, two of them or more.

        Args:
            epochs, lr: None leaves them to the profile.
            batch_size: of images, of each of which a step sees 2 K views.
            callback: called with (epoch, detector) after each epoch and, with 0, before the first step; the detector
                can score.
        """
        images = as_images(images)[:]
        new = self.afresh(images)
        view = augment.views_of_shifts(self.shift, self.augmentation)
        epochs = self.epochs(epochs, len(images), batch_size, self.training_steps)
        lr = runtime.pick(**self.rates) if lr is None else lr
        paper = runtime.profile() == "paper"
        optimizer = (training.LARS if paper else torch.optim.Adam)(new.parameters(), lr=lr)
        training.train(new, lambda batch: new.objective(batch, view), images, epochs=epochs, batch_size=batch_size,
                       optimizer=optimizer, warmup=min(10, epochs // 2) if paper else 0, history=new.losses_,
                       callback=callback and (lambda epoch, _: callback(epoch, new.see(images))))
        return self.take(new.see(images))

    def objective(self, images: Tensor, view: Callable[[Tensor], Tensor]) -> Tensor:
        """con-SI + cls-SI of a batch; `view` gives one view of each shifted copy."""
        h = self.model.embed(torch.cat([view(images), view(images)]))                   # (2K·B, dim)
        value = h.new_zeros(())
        if "con" in self.parts:
            value = value + losses.info_nce(*self.model.head(h).chunk(2), temperature=self.temperature)
        if "cls" in self.parts:
            shifts = torch.arange(self.linear.out_features, device=h.device).repeat_interleave(len(images))
            value = value + F.cross_entropy(self.linear(h), shifts.repeat(2))
        return value

    def see(self, images, *, batch_size: int = 64) -> Self:
        """Fill bank and balances from normal images, in evaluation mode."""
        where = self.shape_.device
        found = training.collect(lambda batch: torch.cat(self.eval().outputs(batch), dim=2).transpose(0, 1), images,
                                 batch_size=batch_size, device=where).to(where).transpose(0, 1)        # (K, N, D + 1)
        z, logits = found[..., :-1], found[..., -1]
        self.bank_ = F.normalize(z, dim=2)
        self.balance_ = 1 / torch.stack([z.norm(dim=2).mean(1), logits.mean(1)]).clamp(min=1e-3)       # (2, K)
        return self

    def outputs(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """z of all shifted copies, (K, B, D), and of each the logit of its own shift, (K, B, 1): means over crops."""
        copies = augment.shift_of(self.shift)(self.fitting(images))                     # (K·B, C, S, S)
        crops = [augment.resized_crop(copies, box.expand(len(copies), 4)) for box in self.boxes_]
        K, h = self.linear.out_features, [self.model.embed(crop) for crop in crops]
        z = sum(map(self.model.head, h)).float().unflatten(0, (K, -1)) / len(h)         # (K, B, D)
        logits = sum(map(self.linear, h)).float().unflatten(0, (K, -1)) / len(h)        # (K, B, K)
        own = torch.arange(K, device=z.device)[:, None, None].expand(K, len(images), 1)
        return z, logits.gather(2, own)

    def terms(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the score is made of, (K, B) each: the largest cosine in the bank, the length of z, the logit."""
        z, logits = self.outputs(images)
        near = [knn(unit, bank, 1)[0] for unit, bank in zip(F.normalize(z, dim=2), self.bank_, strict=True)]
        return 1 - torch.stack(near).square()[..., 0] / 2, z.norm(dim=2), logits[..., 0]

    def embed(self, images: Tensor) -> Tensor:
        """Features of the images as they are, below the head, (B, dim)."""
        return self.model.embed(self.fitting(images))

    def anomaly_score(self, images: Tensor) -> Tensor:
        """−s(x), of the parts asked for."""
        near, length, logits = self.terms(images)
        of_part = {"con": self.balance_[0, :, None] * near * length, "cls": self.balance_[1, :, None] * logits}
        return -sum(of_part[part].mean(0) for part in self.parts)


def ood_ness(detector: Detector, shifts: dict[str, Callable[[Tensor], Tensor]], images) -> dict[str, float]:
    """How foreign shifted copies look to a detector of normal images: AUROC of copies against the images, by name.

    A shift for CSI should take images out of their distribution. So train a detector without one, ``CSI(shift=None)``,
    and take the shift with the highest value, from normal images alone.

    Args:
        detector: fitted on normal images.
        shifts: see `augment.shift_of`.
        images: held-out normal images (N, C, H, W).
    """
    images, found = as_images(images)[:], {}
    for name, shift in shifts.items():
        copies = augment.shift_of(shift)(images)
        labels = (torch.arange(len(copies)) >= len(images)).long()
        found[name] = metrics.auroc(labels, detector.score(copies))
    return dict(sorted(found.items(), key=lambda pair: -pair[1]))
