"""Comparisons that need many trainings, for `python -m adlearn.bench`: one case trains one network.

The cases of a seed share their images and the encoder's first weights, so that they can be compared in pairs. The
order of the images is not the same in all of them: a method's own layers and draws come from the same generator. A
seed draws its own images, none of which the chapters show, and nothing in a study is chosen by its figures.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import combinations

import torch
from torch import Tensor, nn

from adlearn import augment, data, losses, metrics, runtime, training
from adlearn.data import Labelled
from adlearn.methods import metric_learning, simclr
from adlearn.nets import ConvAutoEncoder, Encoder, ProjectionHead

WIDTHS = (32, 64, 128, 128)
FIRST_SEED = 100                                # of the images; the chapters use small seeds
Case = Callable[[int], dict[str, dict[str, float]]]         # seed to {"figures": …, "seconds": …}

# Strong distortion of colour: the recipe's jitter at full strength and any hue, half of the views grey.
COLOUR = augment.Compose(augment.ColorJitter(0.8, 0.8, 0.8, 0.5), augment.RandomGrey(p=0.5))
AUGMENTATIONS = {
    "crop": augment.Compose(augment.RandomResizedCrop(), augment.RandomHorizontalFlip()),
    "cutout": augment.Cutout(),
    "colour": COLOUR,
    "Sobel": augment.Sobel(),
    "noise": augment.GaussianNoise(),
    "blur": augment.RandomGaussianBlur(p=1.0),
    "rotate": augment.RandomRotation(),
}


def images(seed: int, per_class: int = 300) -> Labelled:
    return data.parts_labelled(n=per_class, seed=FIRST_SEED + seed)


def fresh(seed: int, dim: int | None = None) -> Encoder:
    """The network that every case of a seed starts from."""
    runtime.seed(seed)
    return Encoder(channels=3, widths=WIDTHS, dim=dim).to(runtime.device()).eval()


def judged(embed: Callable[[Tensor], Tensor], parts: Labelled) -> dict[str, float]:
    """Linear probe and neighbours' vote on features of all training and test images."""
    where = runtime.device()
    train, test = (training.collect(embed, part, batch_size=256, device=where) for part in (parts.train, parts.test))
    pairs = train, parts.train_labels, test, parts.test_labels
    return {"linear_probe": metrics.linear_probe(*pairs), "knn_accuracy": metrics.knn_accuracy(*pairs)}


def timed(train: Callable[[], object], figures: Callable[[object], dict[str, float]]) -> dict[str, dict[str, float]]:
    """Train, then judge what the training returned."""
    start = time.perf_counter()
    trained = train()
    return {"seconds": {"train": time.perf_counter() - start}, "figures": figures(trained)}


# Chapter 7: how triplets are found ---------------------------------------------------------------------------


def metric(loss: Callable[[Tensor, Tensor], Tensor], *, per_class: int = 8, dim: int | None = None) -> Case:
    """An encoder trained with a loss on labelled parts; `dim` adds a linear layer, so that features can be negative."""
    def case(seed: int):
        parts, encoder = images(seed), fresh(seed, dim)
        return timed(lambda: metric_learning.learn_metric(encoder, parts.train, parts.train_labels, loss, epochs=8,
                                                          per_class=per_class, lr=2e-3),
                     lambda _: judged(encoder, parts))
    return case


# Chapter 8: cross entropy with company, under noise; and with few labels -------------------------------------


def wrong(labels: Tensor, share: float, seed: int) -> Tensor:
    """The labels with a share of them replaced by another class, drawn evenly."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(labels), generator=generator)[:round(share * len(labels))]
    classes = int(labels.max()) + 1
    moved = torch.randint(1, classes, (len(chosen),), generator=generator)
    return labels.index_copy(0, chosen, (labels[chosen] + moved) % classes)


def label_noise(contrast: str | None, share: float) -> Case:
    """Test accuracy after training on labels of which a share is wrong."""
    def case(seed: int):
        parts, encoder = images(seed), fresh(seed)
        labels = wrong(parts.train_labels, share, seed)
        return timed(lambda: metric_learning.learn_classes(encoder, parts.train, labels, contrast=contrast,
                                                           augment=COLOUR, epochs=12, lr=2e-3)[0],
                     lambda classifier: {"accuracy": accuracy(classifier, parts)})
    return case


def accuracy(classifier: nn.Module, parts: Labelled) -> float:
    logits = training.collect(classifier, parts.test, batch_size=256, device=runtime.device())
    return (logits.argmax(1) == parts.test_labels).double().mean().item()


def few_labels(way: str, per_class: int) -> Case:
    """Test accuracy from `per_class` labelled images: by cross entropy alone, or with a linear layer on features that
    were pretrained on these images (SupCon) or on all images without labels (SimCLR). 220 to 360 steps each."""
    def case(seed: int):
        parts, encoder = images(seed), fresh(seed)
        order = torch.randperm(len(parts.train), generator=torch.Generator().manual_seed(seed))
        known = torch.cat([order[parts.train_labels[order] == c][:per_class] for c in range(len(parts.classes))])
        some = replace(parts, train=parts.train[known], train_labels=parts.train_labels[known])

        def train() -> nn.Module | None:
            """The classifier, where a way trains one."""
            if way == "CE":
                size = min(128, len(known))
                return metric_learning.learn_classes(
                    encoder, some.train, some.train_labels, augment=COLOUR, lr=2e-3, batch_size=size,
                    epochs=round(280 * size / len(known)))[0]
            if way == "SupCon":
                size = min(16, per_class)
                metric_learning.learn_metric(
                    encoder, some.train, some.train_labels, losses.supcon, augment=COLOUR, lr=2e-3, per_class=size,
                    epochs=round(280 * size / per_class))
            else:
                simclr.pretrain(encoder, parts.train, views=COLOUR, lr=2e-3, batch_size=128, epochs=12)
            return None

        return timed(train, lambda classifier: {
            "accuracy": accuracy(classifier, some) if classifier else judged(encoder, some)["linear_probe"]})
    return case


# Chapter 9: what SimCLR needs --------------------------------------------------------------------------------


def contrastive(views: Callable[[Tensor], Tensor] = COLOUR, *, per_class: int = 300, batch_size: int = 128,
                head: Callable[[int], nn.Module] = ProjectionHead, judge_z: bool = False) -> Case:
    """SimCLR on parts without their labels, judged on h, and on z if asked; ten epochs."""
    def case(seed: int):
        parts, encoder = images(seed, per_class), fresh(seed)

        def figures(model: simclr.SimCLR):
            of_z = judged(model, parts) if judge_z else {}
            return judged(encoder, parts) | {f"{name}_of_z": value for name, value in of_z.items()}

        return timed(lambda: simclr.pretrain(
            encoder, parts.train, views=views, head=head(encoder.dim), epochs=10, batch_size=batch_size,
            lr=2e-3 * (batch_size / 128) ** 0.5)[0], figures)
    return case


def untrained(seed: int):
    parts, encoder = images(seed), fresh(seed)
    return timed(lambda: None, lambda _: judged(encoder, parts))


def generative(seed: int):
    """An autoencoder whose encoder has the same convolutions: its loss is the squared error of the pixels."""
    parts = images(seed)
    runtime.seed(seed)
    model = ConvAutoEncoder(channels=3, widths=WIDTHS).to(runtime.device())
    return timed(
        lambda: training.train(model, lambda batch: (model(batch) - batch).square().mean(), parts.train, epochs=10,
                               batch_size=128, lr=2e-3),
        lambda _: judged(lambda batch: model.code(batch).mean((2, 3)), parts))


PAIRS = {f"{a} + {b}": augment.Compose(AUGMENTATIONS[a], AUGMENTATIONS[b]) for a, b in combinations(AUGMENTATIONS, 2)}

# method and variant to the data and the cases
STUDIES: dict[tuple[str, str], tuple[str, dict[str, Case]]] = {
    ("metric_learning", "mining"): ("parts", {
        "untrained": untrained,
        "random triplets": metric(losses.random_triplet),
        "all triplets": metric(losses.batch_all_triplet),
        "semi-hard triplets": metric(losses.semi_hard_triplet),
        "N-pair": metric(losses.n_pair_of_classes, per_class=2, dim=64),
        "SupCon": metric(losses.supcon),
    }),
    ("metric_learning", "label_noise"): ("parts", {
        f"{name}, {share:.0%} wrong": label_noise(contrast, share) for share in (0, 0.2, 0.4)
        for name, contrast in (("CE", None), ("CE + triplet", "triplet"), ("CE + SimCLR", "simclr"))
    }),
    ("metric_learning", "few_labels"): ("parts", {
        f"{way}, {count} a class": few_labels(way, count)
        for count in (5, 20, 100) for way in ("CE", "SupCon", "SimCLR")
    }),
    ("simclr", "augmentations"): ("parts", {
        "untrained": untrained,
        **{name: contrastive(views, per_class=200) for name, views in (AUGMENTATIONS | PAIRS).items()},
    }),
    ("simclr", "head"): ("parts", {
        "none": contrastive(head=lambda dim: nn.Identity(), judge_z=True),
        "linear": contrastive(head=partial(ProjectionHead, layers=1), judge_z=True),
        "two layers": contrastive(judge_z=True),
    }),
    ("simclr", "batch"): ("parts", {f"{n} images": contrastive(batch_size=n) for n in (32, 64, 128, 256, 512)}),
    ("simclr", "objectives"): ("parts", {
        "untrained": untrained,
        "autoencoder": generative,
        "SimCLR": contrastive(),
        "SupCon": metric(losses.supcon),
    }),
}
