"""Comparisons that need many trainings, for `python -m adlearn.bench`: one case trains one network.

The cases of a seed share their images and the encoder's first weights, so that they can be compared in pairs, and
unless the comparison is about it also the number of steps, of images in a step and of views of each. The order of the
images is each case's own: a method's layers and draws come from the same generator. A seed draws its own images, none
of which the chapters show; of solar cells, of which there are so many and no more, it draws the split and the painting.
Nothing in a study is chosen by its figures.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from itertools import combinations, pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adlearn import augment, backbones, data, losses, metrics, neighbors, runtime, training
from adlearn.data import Labelled
from adlearn.data.parts import CLASSES
from adlearn.detector import Detector, Trained
from adlearn.methods import (
    CSI,
    GOAD,
    SPADE,
    TwoStage,
    UninformedStudents,
    ViTSPADE,
    csi,
    distillation,
    meta_pseudo_labels,
    metric_learning,
    simclr,
    vit,
)
from adlearn.methods.two_stage import CLASSIFIERS
from adlearn.nets import ConvAutoEncoder, Encoder, ProjectionHead, ResNet

WIDTHS = (32, 64, 128, 128)
FIRST_SEED = 100                                # of the images; the chapters use small seeds
BATCH, EPOCHS = 128, 10                         # of every training, unless it says otherwise
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


# Chapters 7 and 8: what is compared in a batch ----------------------------------------------------------------


def metric(loss: Callable[[Tensor, Tensor], Tensor], *, dim: int | None = None, epochs: int = 8,
           per_class: int = 8) -> Case:
    """An encoder trained with a loss on labelled parts; `dim` adds a linear layer, so that features can be negative."""
    def case(seed: int):
        parts, encoder = images(seed), fresh(seed, dim)
        return timed(lambda: metric_learning.learn_metric(encoder, parts.train, parts.train_labels, loss,
                                                          epochs=epochs, per_class=per_class, lr=2e-3),
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
                     lambda classifier: {"accuracy": accuracy(classifier, parts.test, parts.test_labels)})
    return case


@torch.inference_mode()
def answers(net: nn.Module, inputs: Tensor) -> Tensor:
    """The class of each input, points or images, on the CPU."""
    return torch.cat([net.eval()(batch.to(runtime.device())).argmax(1).cpu() for batch in inputs.split(256)])


def accuracy(net: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    return (answers(net, inputs) == labels).double().mean().item()


STEPS = 280                                     # of every training in the study of few labels


def few_labels(way: str, per_class: int) -> Case:
    """Accuracy of a linear probe on `per_class` labelled images of each kind, after 280 steps on two views of up to 128
    images: of cross entropy or SupCon on the labelled images, or of SimCLR on all images without labels."""
    def case(seed: int):
        parts, encoder = images(seed), fresh(seed)
        known = some_of_each(parts, per_class, seed)
        some = replace(parts, train=parts.train[known], train_labels=parts.train_labels[known])
        shared = {"epochs": training.passes(len(parts.train if way == "SimCLR" else known), BATCH, STEPS), "lr": 2e-3}
        ways = {
            "CE": lambda: metric_learning.learn_classes(encoder, some.train, some.train_labels, augment=COLOUR,
                                                        batch_size=BATCH, **shared),
            "SupCon": lambda: supervised(encoder, some, **shared),
            "SimCLR": lambda: simclr.pretrain(encoder, parts.train, views=COLOUR, batch_size=BATCH, **shared),
        }
        return timed(ways[way], lambda _: {"accuracy": judged(encoder, some)["linear_probe"]})
    return case


def some_of_each(parts: Labelled, per_class: int, seed: int) -> Tensor:
    """The indices of so many training images of each class, drawn at random."""
    order = torch.randperm(len(parts.train), generator=torch.Generator().manual_seed(seed))
    return torch.cat([order[parts.train_labels[order] == c][:per_class] for c in range(len(parts.classes))])


def supervised(encoder: nn.Module, parts: Labelled, **options) -> None:
    """SimCLR's training, head and temperature, with the positives of SupCon: all views of all images of the class.

    At SupCon's own temperature of 0.1 this training collapses: the loss stays at the logarithm of the batch.
    """
    model = simclr.SimCLR(encoder).to(runtime.device())

    def loss(batch: Tensor, truth: Tensor) -> Tensor:
        return losses.supcon(model(two_views(batch)), truth.repeat(2), temperature=0.5)

    training.train(model, loss, parts.train, parts.train_labels, batch_size=BATCH, **options)


def two_views(batch: Tensor) -> Tensor:
    return torch.cat([COLOUR(batch), COLOUR(batch)])


# Chapter 9: what SimCLR needs --------------------------------------------------------------------------------


def contrastive(views: Callable[[Tensor], Tensor] = COLOUR, *, per_class: int = 300, batch_size: int = BATCH,
                steps: int | None = None, head: Callable[[int], nn.Module] = ProjectionHead,
                judge_z: bool = False) -> Case:
    """SimCLR on parts without their labels, judged on h, and on z if asked; ten epochs, or so many steps."""
    def case(seed: int):
        parts, encoder = images(seed, per_class), fresh(seed)

        def figures(model: simclr.SimCLR):
            of_z = judged(model, parts) if judge_z else {}
            return judged(encoder, parts) | {f"{name}_of_z": value for name, value in of_z.items()}

        return timed(lambda: simclr.pretrain(
            encoder, parts.train, views=views, head=head(encoder.dim), batch_size=batch_size,
            epochs=training.passes(len(parts.train), batch_size, steps) if steps else EPOCHS,
            lr=2e-3 * (batch_size / BATCH) ** 0.5)[0], figures)
    return case


def untrained(*, per_class: int = 300, dim: int | None = None) -> Case:
    def case(seed: int):
        parts, encoder = images(seed, per_class), fresh(seed, dim)
        return timed(lambda: None, lambda _: judged(encoder, parts))
    return case


def with_labels(seed: int):
    parts, encoder = images(seed), fresh(seed)
    return timed(lambda: supervised(encoder, parts, epochs=EPOCHS, lr=2e-3), lambda _: judged(encoder, parts))


def generative(seed: int):
    """An autoencoder around the same convolutions, which draws its two views again: squared error of the pixels."""
    parts, encoder = images(seed), fresh(seed)
    model = ConvAutoEncoder(channels=3, widths=WIDTHS)
    model.code = encoder[:-2]                                       # (B, 128, 2, 2), before the mean over positions
    model.to(runtime.device())

    def loss(batch: Tensor) -> Tensor:
        views = two_views(batch)
        return (model(views) - views).square().mean()

    return timed(lambda: training.train(model, loss, parts.train, epochs=EPOCHS, batch_size=BATCH, lr=2e-3),
                 lambda _: judged(encoder, parts))


# Detectors, here and in every run over a data set ------------------------------------------------------------

# "features" is the pass through the backbone, of images that the cache did not know; the others use what it gave
STAGES = ("features", "fit", "score")


def judge(build: Callable[[], Detector], split: data.OneClass, seed: int, **settings) -> dict[str, dict[str, float]]:
    """Fit a detector to normal images, with `settings` of its fit, and judge its scores and maps of the test images."""
    runtime.seed(seed)
    clock = [time.perf_counter()]
    detector = build().to(runtime.device())
    if hasattr(detector, "descriptions"):
        for images in (split.train, split.test):
            detector.descriptions(images, 64)
    clock.append(time.perf_counter())
    if "held_out" in inspect.signature(detector.fit).parameters:
        settings = {"held_out": split.calibration, **settings}
    detector.fit(split.train, **settings)
    clock.append(time.perf_counter())
    maps = maps_of(detector, split.test) if split.masks is not None else {}
    if maps and type(detector).anomaly_score is Detector.anomaly_score:                     # the map's maximum
        scores = maps[""].flatten(1).amax(1)
    else:
        scores = detector.score(split.test)
    clock.append(time.perf_counter())
    figures = {"auroc": metrics.auroc(split.labels, scores),
               "average_precision": metrics.average_precision(split.labels, scores)}
    for name, found in maps.items():
        figures |= {f"pixel_auroc{name}": metrics.pixel_auroc(split.masks, found),
                    f"aupro{name}": metrics.aupro(split.masks, found)}
    for kind, more in MORE.items():
        if isinstance(detector, kind):
            figures |= more(detector, split)
    return {"seconds": {stage: b - a for stage, (a, b) in zip(STAGES, pairwise(clock), strict=True)},
            "figures": figures}


def maps_of(detector: Detector, images: Tensor) -> dict[str, Tensor]:
    """The maps (M, H, W) of a detector that has any; and of students also those of each part and each patch size."""
    if type(detector).anomaly_map is Detector.anomaly_map:
        return {}
    if not isinstance(detector, UninformedStudents):
        return {"": detector.localize(images)}
    parts = training.collect(detector.maps, images, device=runtime.device())                    # (M, L, 2, H, W)
    found = {"": detector.combine(parts), "_error": parts[:, :, 0].mean(1), "_disagreement": parts[:, :, 1].mean(1)}
    if len(detector.patch_sizes) > 1:
        found |= {f"_{p}": parts[:, i].sum(1) for i, p in enumerate(detector.patch_sizes)}
    return found


def _by_classifier(detector: TwoStage, split: data.OneClass) -> dict[str, float]:
    """AUROC of every classifier on the features that were learnt, and how evenly these fill the sphere."""
    train, test = (training.collect(detector.embed, images, device=runtime.device())
                   for images in (split.train, split.test))
    found = {f"auroc_{name}": metrics.auroc(split.labels, classifier().fit(train).score(test))
             for name, classifier in CLASSIFIERS.items()}
    return found | {"uniformity": metrics.uniformity(train)}


def _by_part(detector: CSI, split: data.OneClass) -> dict[str, float]:
    """AUROC of CSI's score without one of its ingredients, and of each alone; and, of one that has learnt without a
    shift, how foreign each of `SHIFTS` makes held-out images look to it."""
    near, length, logits = training.collect(lambda batch: torch.stack(detector.terms(batch)).movedim(2, 0), split.test,
                                            device=runtime.device()).movedim(0, 2)                 # (K, M) each
    balance = detector.balance_.cpu()[:, :, None]
    con, cls = near * length, logits
    scores = {"con": balance[0] * con, "cls": balance[1] * cls, "unbalanced": con + cls, "cosine": near,
              "length": balance[0] * length, "cosine_and_logit": near + balance[1] * cls}
    found = {name: metrics.auroc(split.labels, -value.mean(0)) for name, value in scores.items()}
    whole = balance[0] * con + balance[1] * cls
    found["identity"] = metrics.auroc(split.labels, -whole[0])
    plain = detector.shift is None and detector.views is None
    foreign = csi.ood_ness(detector, SHIFTS, split.calibration) if plain else {}
    return {f"auroc_{name}": value for name, value in found.items()} | {
        f"ood_ness_{name}": value for name, value in foreign.items()}


MORE = {TwoStage: _by_classifier, CSI: _by_part}


# Chapters 12 and 13: one-class methods -----------------------------------------------------------------------


def of_batches(pretext: str, batch_size: int) -> Case:
    """A contrastive encoder of bolts from batches of another size: as many images, and so fewer steps if it is larger;
    the rate grows with the root of the size. Judged by three classifiers."""
    def case(seed: int):
        split = data.parts("bolt", seed=FIRST_SEED + seed)
        return judge(partial(TwoStage, pretext=pretext), split, seed, batch_size=batch_size,
                     lr=1e-3 * (batch_size / 32) ** 0.5)
    return case


def patient(build: Callable[[], Trained], factor: int) -> Callable[[], Trained]:
    """A detector that takes `factor` times the steps that it takes by itself."""
    def slow() -> Trained:
        detector = build()
        detector.training_steps = {profile: factor * steps for profile, steps in detector.training_steps.items()}
        return detector
    return slow


def longer(build: Callable[[], Trained], factor: int, normal: str = "bolt") -> Case:
    return lambda seed: judge(patient(build, factor), data.parts(normal, seed=FIRST_SEED + seed), seed)


SHIFTS = {
    **{name: augment.beside(AUGMENTATIONS[name]) for name in ("cutout", "Sobel", "noise", "blur")},
    "permute": augment.cut_permutations,
    "rotate": augment.rotations,
}


def shifted(normal: str, shift: str | None, role: str = "shift") -> Case:
    """CSI on parts of one class with the copies that a shift makes of an image in one of two roles: as images of their
    own, with a part of the loss that tells them apart, or as one more augmentation, each view taking one of them.
    Without a shift it is SimCLR with CSI's score."""
    def case(seed: int):
        split = data.parts(normal, seed=FIRST_SEED + seed)
        if role == "positive":
            recipe = augment.simclr()
            return judge(lambda: CSI(shift=None, views=lambda images: recipe(one_of(shift, images))), split, seed)
        return judge(lambda: CSI(shift=shift and SHIFTS[shift]), split, seed)
    return case


def one_of(shift: str, images: Tensor) -> Tensor:
    """One of the copies that a shift makes of each image, drawn evenly."""
    copies = SHIFTS[shift](images).unflatten(0, (-1, len(images)))                       # (K, B, C, S, S)
    drawn = torch.randint(len(copies), (len(images),)).to(images.device)
    return copies[drawn, torch.arange(len(images), device=images.device)]


# Chapter 14: what a teacher's answers are worth ---------------------------------------------------------------

KNOWN = 8                                       # kinds that are taught; the other two are the anomalies
NARROW = (8, 16, 16, 16)                        # widths of the student that is to be small
LESSONS = 480                                   # steps of every training in "compression"
LOOKS = augment.Compose(augment.ColorJitter(0.4, 0.4, 0.4, 0.5, p=1.0),
                        augment.RandomResizedCrop(scale=(0.7, 1.0), ratio=(0.9, 1.1)))


class Lesson(NamedTuple):
    """Images of the known kinds, of which a share has labels, and the test images of all kinds."""

    images: Tensor
    labels: Tensor
    unlabelled: Tensor
    hidden: Tensor                              # the labels of `unlabelled`
    test: Tensor
    test_labels: Tensor

    @property
    def all(self) -> Tensor:
        return torch.cat([self.images, self.unlabelled])


def lesson(parts: Labelled, seed: int, share: float = 1 / 6) -> Lesson:
    order = torch.randperm(len(parts.train), generator=torch.Generator().manual_seed(seed))
    kinds = [order[parts.train_labels[order] == c] for c in range(KNOWN)]
    few = round(share * len(kinds[0]))
    known, other = torch.cat([kind[:few] for kind in kinds]), torch.cat([kind[few:] for kind in kinds])
    return Lesson(parts.train[known], parts.train_labels[known], parts.train[other], parts.train_labels[other],
                  parts.test, parts.test_labels)


def pupil(seed: int, encoder: Callable[[], nn.Module]) -> metric_learning.Classifier:
    """A network with the first weights that every case of a seed gives to one of this shape."""
    runtime.seed(seed)
    return metric_learning.Classifier(encoder(), KNOWN).to(runtime.device())


def taught(net: nn.Module, images: Tensor, labels: Tensor, *, batch_size: int = BATCH, **options) -> nn.Module:
    """Cross entropy on labels, every image looked at anew each time."""
    training.train(net, lambda batch, truth: F.cross_entropy(net(LOOKS(batch)), truth), images, labels,
                   batch_size=batch_size, **options)
    return net


def by_lesson(net: metric_learning.Classifier, given: Lesson, *, probe: bool = False) -> dict[str, float]:
    """Accuracy on the known kinds, by a linear probe on the labelled images if asked, and AUROC of the other kinds by
    the distance of unit features to the five nearest training images."""
    where, known = runtime.device(), given.test_labels < KNOWN
    train, test = (training.collect(net.embed, part, batch_size=256, device=where) for part in (given.all, given.test))
    if probe:
        share = metrics.linear_probe(train[:len(given.labels)], given.labels, test[known], given.test_labels[known])
    else:
        share = accuracy(net, given.test[known], given.test_labels[known])
    train, test = F.normalize(train, dim=1), F.normalize(test, dim=1)
    return {"accuracy": share, "auroc_unseen": metrics.auroc(~known, neighbors.knn(test, train, 5)[0].mean(1))}


@cache
def wide_teacher(seed: int) -> metric_learning.Classifier:
    """The teacher of "compression": fifteen times the student's work for an image, taught on the labelled images."""
    given = lesson(images(seed), seed)
    return taught(pupil(seed, lambda: Encoder(channels=3, widths=WIDTHS)), given.images, given.labels, lr=3e-3,
                  epochs=training.passes(len(given.labels), BATCH, LESSONS))


def compression(way: str, temperature: float = 1.0) -> Case:
    """A narrow student after 480 steps on labels, on its teacher's answers, or on its teacher's features."""
    def case(seed: int):
        given, teacher = lesson(images(seed), seed), wide_teacher(seed)
        student = pupil(seed, lambda: Encoder(channels=3, widths=NARROW))

        def shared(count: int) -> dict[str, float]:
            return {"epochs": training.passes(count, BATCH, LESSONS), "lr": 5e-3}

        few, many = shared(len(given.labels)), shared(len(given.all))
        ways = {
            "untrained": lambda: student.eval(),
            "labels": lambda: taught(student, given.images, given.labels, **few),
            "all labels": lambda: taught(student, given.all, torch.cat([given.labels, given.hidden]), **many),
            "hard": lambda: taught(student, given.all, answers(teacher, given.all), **many),
            "soft": lambda: distillation.distil(student, teacher, given.all, temperature=temperature, augment=LOOKS,
                                                batch_size=BATCH, **many),
            "soft, few": lambda: distillation.distil(student, teacher, given.images, temperature=temperature,
                                                     augment=LOOKS, batch_size=BATCH, **few),
            "features": lambda: distillation.distil_features(student.encoder, teacher.encoder, given.all,
                                                             augment=LOOKS, batch_size=BATCH, **many),
        }
        if way == "teacher":
            return timed(lambda: teacher, lambda net: by_lesson(net, given))
        return timed(ways[way], lambda _: by_lesson(student, given, probe=way in ("features", "untrained")))
    return case


def folded(widths: tuple[int, ...]) -> nn.Sequential:
    """A residual network that sees squares of 2 × 2 pixels as 12 channels, for a quarter of the work."""
    net = nn.Sequential(nn.PixelUnshuffle(2), ResNet(channels=12, widths=widths, blocks=1))
    net.dim = widths[-1]
    return net


SIZES = {"small": (8, 16, 32), "large": (16, 32, 64)}
ROUNDS = 8                                      # epochs over the unlabelled images, 64 and as many labelled in a batch


@cache
def by_labels(seed: int, size: str) -> metric_learning.Classifier:
    """A residual network after as many steps on the labelled images as a noisy student takes."""
    given = lesson(images(seed), seed)
    steps = ROUNDS * len(training.Shuffled(len(given.unlabelled), 64))
    return residual(seed, size, lambda net: taught(net, given.images, given.labels, batch_size=64, lr=5e-3,
                                                   epochs=training.passes(len(given.labels), 64, steps)))


@cache
def by_teacher(seed: int, size: str, noise: str, teacher: str) -> metric_learning.Classifier:
    """A student of the small network that learnt from labels, of the large one, or of the small one's noisy student."""
    given = lesson(images(seed), seed)
    asked = (by_teacher(seed, size="large", noise="changed images", teacher="small") if teacher == "student" else
             by_labels(seed, size=teacher))
    return residual(seed, size, lambda net: distillation.noisy_student(
        net, asked, given.images, given.labels, given.unlabelled, noise=augment.Compose() if noise == "none" else LOOKS,
        epochs=ROUNDS, batch_size=64, lr=5e-3), noisy=noise == "changed images and network")


def residual(seed: int, size: str, learn: Callable[[nn.Module], object], *, noisy: bool = False):
    net = pupil(seed, lambda: folded(SIZES[size]))
    learn(distillation.add_noise(net, dropout=0.2, depth=0.1) if noisy else net)
    return net


def noisy(make: Callable[[int], metric_learning.Classifier]) -> Case:
    """A residual network that learnt from few labels, or from them and a teacher's answers to unlabelled images."""
    return lambda seed: timed(lambda: make(seed), lambda net: by_lesson(net, lesson(images(seed), seed)))


# Chapter 15: what the feedback of Meta Pseudo Labels adds ----------------------------------------------------


def semi_supervised(arm: str, split: Callable[[int], tuple[Labelled, Tensor]], fresh: Callable[[], nn.Module], *,
                    lr: float, tuning: int, tuning_lr: float, first: int = 0,
                    strong: Callable[[Tensor], Tensor] = lambda inputs: inputs, **settings) -> Case:
    """Accuracies of a student before and after `tuning` steps on labelled inputs, and of its teacher.

    Args:
        arm: "supervised", of which these steps are as many as the others' all in all; "fixed teacher", one that learns
            as that of "no feedback" and then names all unlabelled inputs for a new student; "no feedback"; "MPL";
            "soft labels"; "opposite sign".
        split: a seed to inputs, those of `train` labelled, and to the unlabelled ones.
        lr: of the student on pseudo labels.
        tuning_lr: of everything that is trained on labels alone.
        first: steps that the teacher takes on labelled inputs beforehand.
        strong: how the student sees any input.
        settings: of `meta_pseudo_labels.learn`.
    """
    def case(seed: int):
        inputs, unlabelled = split(seed)
        known = inputs.train, inputs.train_labels
        runtime.seed(seed)
        teacher, student = (fresh().to(runtime.device()) for _ in range(2))
        learn = partial(meta_pseudo_labels.learn, teacher, student, *known, unlabelled, lr=lr, strong=strong)
        steps, batch_size = settings["steps"], settings["batch_size"]
        tune = partial(meta_pseudo_labels.finetune, lr=tuning_lr, batch_size=batch_size, change=strong)
        optimizer = settings.get("optimizer", torch.optim.SGD)

        def name_all() -> None:
            aside = fresh().to(runtime.device())
            meta_pseudo_labels.learn(teacher, aside, *known, unlabelled, lr=lr, strong=strong, feedback="none",
                                     **settings)
            said = answers(teacher, unlabelled)
            training.train(student, lambda batch, truth: F.cross_entropy(student(strong(batch)), truth),
                           unlabelled, said, epochs=training.passes(len(unlabelled), batch_size, steps),
                           batch_size=batch_size, optimizer=optimizer(student.parameters(), lr=lr))

        rate = settings.get("teacher_lr")
        ways = {
            "supervised": lambda: tune(student, *known, steps=steps),
            "fixed teacher": name_all,
            "no feedback": lambda: learn(feedback="none", **settings),
            "MPL": lambda: learn(**settings),
            "soft labels": lambda: softly(teacher, student, *known, unlabelled, lr=(rate, lr), steps=steps,
                                          batch_size=batch_size),
            # the feedback is the teacher's whole objective where this is asked for: upwards is the opposite sign
            "opposite sign": lambda: learn(**settings, optimizer=lambda weights, lr: torch.optim.SGD(
                weights, lr=lr, maximize=lr == rate)),
        }
        start = time.perf_counter()
        if first and arm != "supervised":
            tune(teacher, *known, steps=first)
        ways[arm]()
        asked = inputs.test, inputs.test_labels
        figures = {"accuracy": accuracy(student, *asked)}
        tune(student, *known, steps=tuning)
        figures |= {"accuracy_tuned": accuracy(student, *asked), "accuracy_of_teacher": accuracy(teacher, *asked)}
        if arm == "supervised":
            del figures["accuracy_of_teacher"]
        return {"seconds": {"train": time.perf_counter() - start}, "figures": figures}
    return case


def softly(teacher: nn.Module, student: nn.Module, inputs: Tensor, labels: Tensor, unlabelled: Tensor, *,
           lr: tuple[float, float], steps: int, batch_size: int) -> None:
    """Feedback alone, as in `learn`, but through the teacher's own softmax: the gradient is 0 whatever h is."""
    where = runtime.device()
    inputs, labels = inputs.to(where), labels.to(where)
    of_teacher, of_student = (torch.optim.SGD(net.parameters(), lr=rate)
                              for net, rate in zip((teacher, student), lr, strict=True))
    for _ in range(steps):
        batch = unlabelled[torch.randint(len(unlabelled), (batch_size,))].to(where)
        logits = teacher(batch)
        soft = logits.detach().softmax(1)
        _, _, h = meta_pseudo_labels.step_of_student(student, batch, soft, inputs, labels, optimizer=of_student)
        of_teacher.zero_grad()
        (h * F.cross_entropy(logits, soft)).backward()
        of_teacher.step()


def few_of_moons(seed: int) -> tuple[Labelled, Tensor]:
    """Six labelled points, and all as the unlabelled ones. The settings were chosen on seeds 100 to 119."""
    moons = data.moons(seed=2 * FIRST_SEED + seed)
    known = moons.train_labels >= 0
    return replace(moons, train=moons.train[known], train_labels=moons.train_labels[known]), moons.train


def small_net() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 2))


def moved(points: Tensor) -> Tensor:
    return points + 0.2 * torch.randn_like(points)


def few_of_parts(per_class: int, seed: int) -> tuple[Labelled, Tensor]:
    """So many labelled images of each class, and the others as the unlabelled ones."""
    parts = images(seed)
    known = some_of_each(parts, per_class, seed)
    others = torch.ones(len(parts.train), dtype=torch.bool).index_fill(0, known, False)
    return replace(parts, train=parts.train[known], train_labels=parts.train_labels[known]), parts.train[others]


ARMS = ("fixed teacher", "no feedback", "MPL")
ON_MOONS = partial(semi_supervised, split=few_of_moons, fresh=small_net, tuning=300)
WITH_LABELS = partial(ON_MOONS, lr=0.5, teacher_lr=1.0, tuning_lr=0.5, steps=3000, batch_size=64)
ALONE = partial(WITH_LABELS, supervision=0.0)
ADAM = partial(torch.optim.Adam, betas=(0.9, 0.99))
WITH_UDA = partial(ON_MOONS, lr=0.01, tuning_lr=0.01, uda_weight=4.0, uda_ramp=1000, strong=moved, steps=3000,
                   batch_size=64, optimizer=ADAM)
ON_PARTS = partial(semi_supervised, split=partial(few_of_parts, 20), lr=3e-3, tuning=100, tuning_lr=0.1, first=200,
                   fresh=lambda: metric_learning.Classifier(Encoder(channels=3, widths=(16, 32, 64, 128)), 10),
                   uda_weight=1.0, uda_ramp=125, strong=COLOUR, steps=250, batch_size=64, optimizer=ADAM)

# Chapter 16: what patience is worth to students ---------------------------------------------------------------


def students_of_cells(factor: int) -> Case:
    """Students of the smallest patches on painted cells, trained for `factor` times the steps."""
    build = patient(partial(UninformedStudents, patch_sizes=(17,)), factor)
    return lambda seed: judge(build, data.elpv("mono", size=64, painted=True, seed=FIRST_SEED + seed), seed)


# Chapter 17: what a transformer needs --------------------------------------------------------------------------

MANY = 2500                                     # images of each kind; the smaller sets are drawn from these
RANDOM = {                                      # networks that start from random weights, with their rates
    "CNN": (lambda classes: Encoder(channels=3, widths=WIDTHS[:3], dim=classes), 2e-3),
    "ViT": (lambda classes: vit.ViT(size=32, patch=8, dim=96, depth=3, heads=3, classes=classes), 1e-3),
}
SEEN_AT = 224                                   # pixels, by the pretrained ones
PRETRAINED = {"CNN": ("efficientnet_lite0", 4), "ViT": ("vit_tiny_distilled", 11)}      # and which of their maps


@cache
def many_images(seed: int) -> Labelled:
    """With a hundred test images of each kind."""
    parts = images(seed, MANY)
    judged = some_of_each(replace(parts, train=parts.test, train_labels=parts.test_labels), 100, seed)
    return replace(parts, test=parts.test[judged], test_labels=parts.test_labels[judged])


def centred(images: Tensor) -> Tensor:
    """Around 0: from images in [0, 1] a ViT learns nothing for hundreds of steps."""
    return (images - 0.5) / 0.25


def of_amount(kind: str, per_class: int, *, pretrained: bool = False) -> Case:
    """Accuracy of a network that starts from random weights, after 600 steps on so many images of each kind; or of a
    linear probe on the mean of a pretrained one's last map."""
    def case(seed: int):
        parts = many_images(seed)
        known = some_of_each(parts, per_class, seed)
        parts = replace(parts, train=parts.train[known], train_labels=parts.train_labels[known])
        runtime.seed(seed)
        if pretrained:
            name, last = PRETRAINED[kind]
            backbone = backbones.load(name, (last,), size=SEEN_AT).to(runtime.device())
            return timed(lambda: None, lambda _: {
                "accuracy": judged(lambda batch: backbone(batch)[0].mean((2, 3)), parts)["linear_probe"]})
        make, lr = RANDOM[kind]
        net, train, test = make(len(parts.classes)).to(runtime.device()), centred(parts.train), centred(parts.test)
        return timed(lambda: training.train(
            net, lambda batch, truth: F.cross_entropy(net(batch), truth), train, parts.train_labels, lr=lr,
            epochs=training.passes(len(known), BATCH, 600), batch_size=BATCH),
            lambda _: {"accuracy": accuracy(net, test, parts.test_labels)})
    return case


# Chapter 18: what SPADE looks at ------------------------------------------------------------------------------


def of_few_cells(**options) -> Case:
    """SPADE on a third of the painted cells, otherwise than by itself in one thing."""
    return lambda seed: judge(partial(SPADE, **options),
                              data.elpv("mono", size=224, painted=True, n=100, seed=FIRST_SEED + seed), seed)


# Chapter 19: what SPADE on a transformer looks at -------------------------------------------------------------


def of_few_tokens(**options) -> Case:
    """SPADE on a transformer's tokens and the images of `of_few_cells`, otherwise than by itself in one thing; where
    sizes differ, so does the smoothing, which is in pixels of the largest."""
    return lambda seed: judge(partial(ViTSPADE, **options),
                              data.elpv("mono", size=224, painted=True, n=100, seed=FIRST_SEED + seed), seed)


def untaught() -> ViTSPADE:
    """On a transformer of the same shape with random weights."""
    detector = ViTSPADE()
    detector.network.forget()
    return detector


# Detectors without training, by what they look through. The last one's weights are not shipped; `ADLEARN_WEIGHTS` names
# their folder, and a run records what it found there.
LOOKING = {"CNN": SPADE, "ViT": ViTSPADE, "ViT, random weights": untaught}
ON_NATURAL_IMAGES = partial(ViTSPADE, backbone="vit_small_patch14_dinov2")


def of_large_parts(build: Callable[[], Detector], normal: str) -> Case:
    """A detector on a few drawings at 224 pixels of one kind of part, half of the test ones damaged."""
    return lambda seed: judge(build, data.parts(normal, size=224, n=60, defects=True, seed=FIRST_SEED + seed), seed)


PAIRS = {f"{a} + {b}": augment.Compose(AUGMENTATIONS[a], AUGMENTATIONS[b]) for a, b in combinations(AUGMENTATIONS, 2)}

# method and variant to the data and the cases
STUDIES: dict[tuple[str, str], tuple[str, dict[str, Case]]] = {
    ("metric_learning", "mining"): ("parts", {
        "untrained": untrained(dim=64),
        **{name: metric(loss, dim=64) for name, loss in (
            ("random triplets", losses.random_triplet), ("all triplets", losses.batch_all_triplet),
            ("semi-hard triplets", losses.semi_hard_triplet), ("SupCon", losses.supcon))},
        # its batch holds two of each kind: a quarter of the others', so at equal images four times the steps
        "N-pair, equal steps": metric(losses.n_pair_of_classes, dim=64, per_class=2, epochs=2),
        "N-pair, equal images": metric(losses.n_pair_of_classes, dim=64, per_class=2),
    }),
    ("metric_learning", "temperature"): ("parts", {
        "untrained": untrained(),
        **{f"τ = {temperature}, {epochs} epochs": metric(partial(losses.supcon, temperature=temperature),
                                                         epochs=epochs, per_class=16)
           for epochs in (4, 14) for temperature in (0.02, 0.1, 0.5, 1.0)},
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
        "untrained": untrained(per_class=200),
        **{name: contrastive(views, per_class=200) for name, views in (AUGMENTATIONS | PAIRS).items()},
    }),
    ("simclr", "head"): ("parts", {
        "none": contrastive(head=lambda dim: nn.Identity(), judge_z=True),
        "linear": contrastive(head=partial(ProjectionHead, layers=1), judge_z=True),
        "two layers": contrastive(judge_z=True),
    }),
    ("simclr", "batch"): ("parts", {
        f"{size}, equal {what}": contrastive(batch_size=size, steps=steps)
        for what, steps in (("images", None), ("steps", 240)) for size in (32, 64, 128, 256, 512)
    }),
    ("simclr", "objectives"): ("parts", {
        "untrained": untrained(),
        "autoencoder": generative,
        "SimCLR": contrastive(),
        "SupCon": with_labels,
    }),
    ("two_stage", "batch"): ("parts", {
        f"{pretext}, batches of {size}": of_batches(pretext, size)
        for pretext in ("contrastive", "augmented") for size in (8, 16, 32, 64, 128)
    }),
    ("csi", "longer"): ("parts", {
        f"{name}, steps times {factor}": longer(build, factor)
        for factor in (1, 4, 16) for name, build in (
            ("GOAD", GOAD), ("rotation", partial(TwoStage, pretext="rotation")),
            ("contrastive", partial(TwoStage, pretext="contrastive")), ("augmented", TwoStage),
            ("SimCLR with CSI's score", partial(CSI, shift=None)), ("CSI", CSI))
    }),
    ("csi", "ood_ness"): ("parts", {
        f"{normal}, steps times {factor}": longer(partial(CSI, shift=None), factor, normal)
        for normal in ("bolt", "gear") for factor in (1, 4, 16)
    }),
    ("csi", "shifts"): ("parts", {
        name: case for normal in ("bolt", "gear") for name, case in (
            (f"{normal}, no shift", shifted(normal, None)),
            *((f"{normal}, {shift} as {role}", shifted(normal, shift, role))
              for shift in SHIFTS for role in ("positive", "shift")))
    }),
    ("distillation", "compression"): ("parts", {
        "teacher": compression("teacher"),
        "student, untrained": compression("untrained"),
        "few labels": compression("labels"),
        "all labels": compression("all labels"),
        "hard answers": compression("hard"),
        **{f"soft answers, T = {t}": compression("soft", t) for t in (1, 2, 4, 16)},
        "soft answers, T = 1, labelled images": compression("soft, few"),
        "features": compression("features"),
    }),
    ("distillation", "noisy_student"): ("parts", {
        **{f"{size}, few labels": noisy(partial(by_labels, size=size)) for size in SIZES},
        **{f"{size}, {name}": noisy(partial(by_teacher, size=size, noise=noise, teacher="small"))
           for size in SIZES for name, noise in (("no noise", "none"), ("noise", "changed images"))},
        "large, noise and dropout": noisy(partial(by_teacher, size="large", noise="changed images and network",
                                                  teacher="small")),
        "large, noise, second round": noisy(partial(by_teacher, size="large", noise="changed images",
                                                    teacher="student")),
        "large, noise, large teacher": noisy(partial(by_teacher, size="large", noise="changed images",
                                                     teacher="large")),
    }),
    ("meta_pseudo_labels", "moons"): ("moons", {
        "supervised": WITH_LABELS("supervised"),
        **{f"alone, {arm}": ALONE(arm) for arm in ("no feedback", "MPL", "soft labels", "opposite sign")},
        **{f"{name}, {arm}": study(arm) for name, study in (("labels", WITH_LABELS), ("UDA", WITH_UDA))
           for arm in ARMS},
    }),
    ("meta_pseudo_labels", "parts"): ("parts", {arm: ON_PARTS(arm) for arm in ("supervised", *ARMS)}),
    ("spade", "choices"): ("elpv_mono_painted_224", {
        "as it stands": of_few_cells(),
        **{f"K = {k}": of_few_cells(neighbors=k) for k in (1, 2, 10, 20)},
        **{f"κ = {k}": of_few_cells(kappa=k) for k in (3, 9)},
        "same position": of_few_cells(positions="same"),
        "maps averaged": of_few_cells(combine="average"),
        "normalised": of_few_cells(normalize=True),
        "not smoothed": of_few_cells(sigma=0),
        **{f"stage {stage} alone": of_few_cells(layers=(stage,)) for stage in (1, 2, 3)},
    }),
    ("vit", "amount"): ("parts", {
        f"{kind}{', pretrained' * pretrained}, {count} a class": of_amount(kind, count, pretrained=pretrained)
        for pretrained, counts in ((False, (20, 100, 500, 2500)), (True, (20, 100)))
        for kind in ("CNN", "ViT") for count in counts
    }),
    ("vit_spade", "choices"): ("elpv_mono_painted_224", {
        "as it stands": of_few_tokens(),
        **{f"block {block} alone": of_few_tokens(layers=(block,)) for block in (0, 2, 5, 8, 11)},
        **{f"sizes {', '.join(map(str, sizes))}": of_few_tokens(sizes=sizes)
           for sizes in ((112,), (224,), (336,), (112, 224), (112, 224, 336))},
        "same position": of_few_tokens(positions="same"),
        "κ = 3": of_few_tokens(kappa=3),
    }),
    ("vit_spade", "parts"): ("parts_damaged", {
        f"{name}, {normal}": of_large_parts(build, normal) for normal in CLASSES for name, build in LOOKING.items()
    }),
    ("vit_spade", "parts_natural_images"): ("parts_damaged", {
        f"ViT, natural images, {normal}": of_large_parts(ON_NATURAL_IMAGES, normal) for normal in CLASSES
    }),
    ("students", "longer"): ("elpv_mono_painted", {f"× {factor}": students_of_cells(factor) for factor in (1, 4, 16)}),
}
