"""How good a detector is: exact figures for images (AUROC, average precision) and for pixels (AUPRO).

Further below: how good a representation is (linear probe, neighbours' vote, alignment, uniformity).

A larger score always means more anomalous, labels and masks are 1 where anomalous. Scalars are Python floats,
curves are float64 tensors on the CPU. Equal scores pass a threshold together: a curve has one point for each
distinct score and a straight line between two points. Bad input raises ``ValueError``.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from adlearn import checks
from adlearn.neighbors import knn


def auroc(labels, scores) -> float:
    """Area under the ROC curve: the chance that an anomalous image outranks a normal one, ties counting half.

    labels (N,) of 0 and 1 with both present; scores (N,). 0.5 is chance, 1 is perfect.
    Hanley and McNeil, "The meaning and use of the area under a ROC curve", Radiology 1982.
    """
    labels, scores = _ranking(labels, scores)
    return _auroc(scores[~labels], scores[labels])


def pixel_auroc(masks, maps) -> float:
    """AUROC over all pixels of all images: masks (N, H, W) of 0 and 1, maps (N, H, W).

    Large regions and easy background dominate it; `aupro` weighs every region alike.
    """
    masks, maps = _maps(masks, maps)
    return _auroc(maps[~masks], maps[masks])


def _auroc(normal: Tensor, anomalous: Tensor) -> float:
    normal, anomalous = np.sort(normal.numpy()), anomalous.numpy()
    below = np.searchsorted(normal, anomalous, side="left").sum()       # pairs in the right order
    below_or_equal = np.searchsorted(normal, anomalous, side="right").sum()
    return int(below + below_or_equal) / (2 * len(normal) * len(anomalous))


def roc_curve(labels, scores) -> tuple[Tensor, Tensor, Tensor]:
    """False- and true-positive rate at every threshold: fpr, tpr, thresholds, each (T + 1,) for T distinct scores.

    Thresholds fall; "positive" is a score at or above the threshold. The first point is (0, 0) at infinity.
    """
    false, true, thresholds = _counts(*_ranking(labels, scores))
    start = thresholds.new_zeros(1)
    return (
        torch.cat([start, false / false[-1]]),
        torch.cat([start, true / true[-1]]),
        torch.cat([start + math.inf, thresholds]),
    )


def auroc_by_kind(labels, scores, kinds) -> dict[str, float]:
    """AUROC of each kind of anomalous images against all normal ones, the hardest kind first.

    labels (N,), scores (N,), kinds: N names; those of normal images are not looked at.
    """
    labels, scores = _ranking(labels, scores)
    kinds = np.asarray(kinds)
    if kinds.shape != labels.shape:
        raise ValueError(f"kinds must be one name for each of the {len(labels)} images, got shape {kinds.shape}")
    anomalous = labels.numpy()
    chosen = {kind: torch.from_numpy(~anomalous | (kinds == kind)) for kind in np.unique(kinds[anomalous]).tolist()}
    found = {kind: auroc(labels[its], scores[its]) for kind, its in chosen.items()}
    return dict(sorted(found.items(), key=lambda pair: pair[1]))


def average_precision(labels, scores) -> float:
    """Precision averaged over the steps of recall: the sum of (R_t - R_{t-1}) P_t, without interpolation.

    labels (N,), scores (N,). Chance is the share of anomalous images, 1 is perfect.
    """
    false, true, _ = _counts(*_ranking(labels, scores))
    steps = torch.diff(true, prepend=true.new_zeros(1)) / true[-1]
    return (steps * true / (true + false)).sum().item()


def fpr_at_tpr(labels, scores, tpr: float = 0.95) -> float:
    """Share of normal images flagged at the highest threshold that flags at least `tpr` of the anomalous ones.

    tpr in (0, 1]. The threshold is one of the scores: nothing is interpolated.
    """
    tpr = checks.between(tpr, 0, 1, "tpr")
    false_rate, true_rate, _ = roc_curve(labels, scores)
    return false_rate[true_rate >= tpr][0].item()


def _counts(labels: Tensor, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Normal and anomalous images at or above each distinct score, from the highest score down."""
    thresholds, where = torch.unique(scores.double(), return_inverse=True)           # ascending
    false, true = (torch.bincount(where[side], minlength=len(thresholds)) for side in (~labels, labels))
    return false.flip(0).cumsum(0).double(), true.flip(0).cumsum(0).double(), thresholds.flip(0)


def pro_curve(masks, maps) -> tuple[Tensor, Tensor]:
    """Per-region overlap against the false-positive rate, from (0, 0) to (1, 1): fpr (T,), pro (T,), both rising.

    masks (N, H, W) of 0 and 1, maps (N, H, W) finite. A region is an 8-connected component of one image's mask.
    PRO is the share of a region that is flagged, averaged over all regions, so that each weighs the same; FPR is
    the share of all defect-free pixels that are flagged, those of defect-free images included. Where no region
    gains a pixel the curve is level, and a level stretch is kept as its two ends: nothing is lost.

    Bergmann et al., "Uninformed Students", CVPR 2020.
    """
    fpr, pro = _pro_curve(*_maps(masks, maps), limit=1.0)
    return torch.from_numpy(fpr), torch.from_numpy(pro)


def aupro(masks, maps, *, max_fpr: float = 0.3) -> float:
    """Area under the PRO curve up to `max_fpr`, divided by `max_fpr`: 1 is perfect, a constant map has max_fpr / 2.

    masks (N, H, W), maps (N, H, W), max_fpr in (0, 1]. The curve is cut exactly at the limit, by interpolation.
    Raises if shapes differ, if there is no anomalous region or no normal pixel, or if a value is not finite.
    """
    max_fpr = checks.between(max_fpr, 0, 1, "max_fpr")
    fpr, pro = _pro_curve(*_maps(masks, maps), limit=max_fpr)
    inside = fpr <= max_fpr
    pro, fpr = np.append(pro[inside], np.interp(max_fpr, fpr, pro)), np.append(fpr[inside], max_fpr)
    return torch.trapezoid(torch.from_numpy(pro), torch.from_numpy(fpr)).item() / max_fpr


def _pro_curve(masks: Tensor, maps: Tensor, limit: float) -> tuple[np.ndarray, np.ndarray]:
    """The curve, exact up to an FPR of `limit`; only the normal pixels above that point are sorted."""
    count = int((~masks).sum())
    kept = min(max(math.ceil(limit * count), 1), count)
    normal = maps.masked_fill(masks, -math.inf).flatten().numpy()                       # (N·H·W,)
    normal.partition(len(normal) - kept)
    below, top = np.split(normal, [len(normal) - kept])
    ties = np.count_nonzero(below == top[0])                                # pixels that pass together with the last
    top = np.concatenate([np.full(ties, top[0]), np.sort(top)])

    scores, where = np.unique(maps[masks].numpy(), return_inverse=True)                 # (T,) ascending
    gains = np.bincount(where, _region_weights(masks))                                  # (T,)
    pro = np.append(0.0, np.cumsum(gains[::-1]))
    above = len(top) - np.searchsorted(top, scores[::-1], side="right")
    at = len(top) - np.searchsorted(top, scores[::-1], side="left")
    # At each score of a region's pixel the curve has two points: just above that score, and at it.
    fpr = np.concatenate([[0], np.stack([above, at], axis=1).ravel(), [len(top)]]) / count      # (2T + 2,)
    return fpr, np.repeat(pro, 2) / pro[-1]


def _region_weights(masks: Tensor) -> np.ndarray:
    """What each anomalous pixel adds to PRO, in the order of ``maps[masks]``: 1 / (K |C|), summing to 1."""
    from scipy import ndimage

    weights, regions = [], 0
    for mask in masks[masks.flatten(1).any(dim=1)].numpy():
        components, found = ndimage.label(mask, structure=np.ones((3, 3)))
        component = components[mask]
        weights.append(1 / np.bincount(component)[component])
        regions += found
    return np.concatenate(weights) / regions


def threshold_at_fpr(normal_scores, fpr: float = 0.05) -> float:
    """Threshold that a *new* normal image exceeds (score > threshold) with a chance of at most `fpr`.

    normal_scores (n,): scores of held-out normal images; fpr in (0, 1). The threshold is their k-th smallest score,
    k = ceil((n + 1)(1 - fpr)): a new score from the same distribution is equally likely to fall at any of the n + 1
    ranks, so it lies above with a chance of at most (n + 1 - k) / (n + 1) <= fpr, whatever the distribution. The
    plain (1 - fpr) quantile promises this only for the scores it was read from. The price: fewer than 1 / fpr - 1
    images cannot support the rate, and are refused.

    Vovk et al., "Algorithmic Learning in a Random World", 2005 (split conformal prediction).
    """
    scores = checks.scores(normal_scores, "normal_scores")
    if not (checks.is_number(fpr) and 0 < fpr < 1):
        raise ValueError(f"fpr must be above 0 and below 1, got {fpr!r}: 0.05 flags one normal image in twenty")
    n = len(scores)
    allowed = math.floor(round((n + 1) * fpr, 9))           # rounded, so that 100 · 0.29 is 29
    if allowed < 1:
        raise ValueError(
            f"normal_scores must hold at least {math.ceil(round(1 / fpr, 9)) - 1} scores for fpr={fpr}, got {n}: "
            "hold out more normal images or accept a higher rate"
        )
    return scores.double().sort().values[max(n - allowed, 0)].item()


def bootstrap_interval(
    metric, truth, scores, *, against=None, level: float = 0.95, repeats: int = 1000, generator=None
) -> tuple[float, float]:
    """Interval for ``metric(truth, scores)``: drawing the test images anew, the middle `level` of the results.

    truth (N, ...) labels or masks and scores (N, ...) scores or maps, one entry of the first axis an image. Normal
    and anomalous images are drawn separately, with replacement, so each draw keeps their numbers. With `against`
    (N, ...), a second detector's scores on the same images, the interval is for the difference metric(truth, scores)
    - metric(truth, against), both from the same draw: where it leaves out 0, the detectors differ. It covers the
    chance in the choice of test images, not the seeds of training. `generator` is a ``torch.Generator`` on the CPU.

    Efron and Tibshirani, "An Introduction to the Bootstrap", 1993 (percentile interval).
    """
    repeats, level = checks.positive_int(repeats, "repeats"), checks.between(level, 0, 1, "level")
    given = {"truth": truth, "scores": scores} | ({} if against is None else {"against": against})
    columns = [checks.tensor(column, name).detach().cpu() for name, column in given.items()]
    shapes = [tuple(column.shape) for column in columns]
    if len({shape[:1] for shape in shapes}) > 1 or shapes[0][:1] in ((), (0,)):
        raise ValueError(f"{', '.join(given)} must have one entry an image, at least one image, got shapes {shapes}")
    anomalous = checks.binary(columns[0], "truth").reshape(len(columns[0]), -1).any(dim=1)             # (N,)
    strata = [s for s in (torch.where(~anomalous)[0], torch.where(anomalous)[0]) if len(s)]
    results = []
    for _ in range(repeats):
        draw = torch.cat([s[torch.randint(len(s), (len(s),), generator=generator)] for s in strata])    # (N,)
        drawn, *values = [column[draw] for column in columns]
        figures = [metric(drawn, value) for value in values]
        results.append(figures[0] - (figures[1] if against is not None else 0.0))
    tail = (1 - level) / 2
    low, high = np.quantile(results, [tail, 1 - tail])
    return float(low), float(high)


def mean_interval(values, confidence: float = 0.95) -> tuple[float, float, float]:
    """Mean of a few independent values (N,), N at least 2, with Student's interval for it: mean, low, high.

    For two methods that were run with the same seeds, give the differences: the interval is then a paired one. If it
    does not hold 0, a difference as large is rare by chance; among many comparisons some are. Student, "The probable
    error of a mean", 1908.
    """
    from scipy import stats

    values = checks.scores(checks.tensor(values, "values").double(), "values").cpu()
    checks.between(confidence, 0, 1 - 1e-9, "confidence")
    if len(values) < 2:
        raise ValueError(f"values must be at least 2 for an interval, got {len(values)}")
    mean = values.mean().item()
    half = stats.t.ppf((1 + confidence) / 2, len(values) - 1) * values.std().item() / math.sqrt(len(values))
    return mean, mean - half, mean + half


# How good a representation is -----------------------------------------------------------------------------------


def linear_probe(train, train_labels, test, test_labels) -> float:
    """Accuracy of a linear classifier on frozen features: what they tell about the classes along straight lines.

    Multinomial logistic regression on features standardised by the training rows, with scikit-learn's default weight
    decay. Alain and Bengio, "Understanding intermediate layers using linear classifier probes", 2016.

    Args:
        train, test: features (N, D) and (M, D).
        train_labels, test_labels: (N,) and (M,) whole numbers from 0, at least two classes in `train_labels`.
    """
    from sklearn.linear_model import LogisticRegression

    train, train_labels, test, test_labels = _probed(train, train_labels, test, test_labels)
    if train_labels.unique().numel() < 2:
        raise ValueError("train_labels must hold at least two classes, got one")
    mean, deviation = train.mean(0), train.std(0).clamp_min(1e-6)
    probe = LogisticRegression(max_iter=2000)
    probe.fit(((train - mean) / deviation).numpy(), train_labels.numpy())
    return float(probe.score(((test - mean) / deviation).numpy(), test_labels.numpy()))


def knn_accuracy(train, train_labels, test, test_labels, k: int = 5) -> float:
    """Accuracy of a vote among the k nearest training rows by cosine similarity.

    Of classes with equally many votes the one with the nearest row wins.

    Arguments as for `linear_probe`. Says whether the space itself is ordered by class, without training anything.
    """
    train, train_labels, test, test_labels = _probed(train, train_labels, test, test_labels)
    k = min(checks.positive_int(k, "k"), len(train))
    _, nearest = knn(F.normalize(test, dim=1), F.normalize(train, dim=1), k)            # (M, k)
    votes = F.one_hot(train_labels[nearest])                                            # (M, k, classes)
    first = torch.where(votes.any(1), k - votes.argmax(1), 0)                           # (M, classes), below k + 1
    return ((votes.sum(1) * (k + 1) + first).argmax(1) == test_labels).double().mean().item()


def alignment(view1, view2) -> float:
    """Mean squared distance between the unit rows of two views of the same images, (N, D) both: 0 is perfect.

    Wang and Isola, "Understanding Contrastive Representation Learning through Alignment and Uniformity on the
    Hypersphere", 2020, section 4.2, with α = 2.
    """
    view1, view2 = (F.normalize(checks.rows(rows, name).double(), dim=1)
                    for name, rows in (("view1", view1), ("view2", view2)))
    if view1.shape != view2.shape:
        raise ValueError(f"view2 must have the shape of view1, {tuple(view1.shape)}, got {tuple(view2.shape)}")
    return (view1 - view2).square().sum(1).mean().item()


def uniformity(rows) -> float:
    """How evenly unit rows (N, D), N at least 2, fill the sphere: 0 if all coincide, the lower the more even.

    The logarithm of the mean of e^{−2 d²} over all pairs of rows, d their distance; at best near −4 in many
    dimensions. Wang and Isola 2020, section 4.2, with t = 2.
    """
    rows = F.normalize(checks.rows(rows).double(), dim=1)
    if len(rows) < 2:
        raise ValueError("rows must be at least 2, got 1")
    return torch.pdist(rows).square().mul(-2).exp().mean().log().item()


def _probed(train, train_labels, test, test_labels) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    train = checks.rows(train, "train").detach().cpu().double()
    test = checks.rows(test, "test", width=train.shape[1]).detach().cpu().double()
    train_labels, test_labels = (checks.tensor(labels, name).detach().cpu() for labels, name in
                                 ((train_labels, "train_labels"), (test_labels, "test_labels")))
    return (train, checks.classes(train_labels, len(train), name="train_labels"),
            test, checks.classes(test_labels, len(test), name="test_labels"))


def _ranking(labels, scores) -> tuple[Tensor, Tensor]:
    scores = checks.scores(scores).detach().cpu()
    return checks.labels(labels, len(scores)).cpu(), _sortable(scores)


def _maps(masks, maps) -> tuple[Tensor, Tensor]:
    masks, maps = checks.tensor(masks, "masks"), checks.tensor(maps, "maps")
    if maps.ndim != 3 or maps.numel() == 0:
        raise ValueError(f"maps must have shape (N, H, W) and not be empty, got {tuple(maps.shape)}")
    if masks.shape != maps.shape:
        raise ValueError(
            f"masks must have the shape of maps, {tuple(maps.shape)}, got {tuple(masks.shape)}: "
            "resize masks with nearest neighbour, or localize at the masks' size"
        )
    checks.finite(maps, "maps")
    masks = checks.binary(masks, "masks").cpu()
    if not masks.any():
        raise ValueError("masks must mark at least one anomalous region, got none: include defective images")
    if masks.all():
        raise ValueError("masks must leave at least one normal pixel, got none: include defect-free images")
    return masks, _sortable(maps.detach().cpu())


def _sortable(values: Tensor) -> Tensor:
    """float32 or float64, which NumPy sorts; the shorter formats fit into float32 without loss."""
    return values if values.dtype in (torch.float32, torch.float64) else values.float()
