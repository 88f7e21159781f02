"""Losses that shape a feature space by comparing: pure functions of tensors, each returning a scalar.

One family, from three points to a whole batch. An anchor a is pulled to positives p and pushed from negatives n:

    triplet     [ |a − p|² − |a − n|² + m ]₊                                   one positive, one negative, a margin m
    N-pair      −log e^{a·p} / ( e^{a·p} + Σₙ e^{a·n} )                        one positive, many negatives, softly
    InfoNCE     the same on the unit sphere, with a temperature τ:  e^{a·p/τ}  positives are views of one image
    SupCon      the mean of InfoNCE over many positives                        positives share a class

Rows are L2-normalised here, except for N-pair, so that a network's raw outputs can be handed over. All arithmetic is
done in at least float32, under autocast too: at a temperature of 0.01 bfloat16 would round logits to whole numbers.
"""

from __future__ import annotations

from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from adlearn import checks

COLDEST = 1e-4                                  # below it the logits of neighbouring rows leave float32


@contextmanager
def full_precision():
    """Autocast has no say in here, on the CPU and CUDA; `_rows` turns what it has already rounded into float32."""
    with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
        yield


@full_precision()
def triplet(anchor: Tensor, positive: Tensor, negative: Tensor, *, margin: float = 0.2) -> Tensor:
    """Triplet loss of given triplets: the mean over rows of [|a − p|² − |a − n|² + margin]₊.

    Squared Euclidean distances between L2-normalised rows, so each lies in [0, 4]. Schroff, Kalenichenko and Philbin,
    "FaceNet", 2015, eq. 3, with the mean in place of the sum. The margin is added: deck B subtracts it, which asks
    nothing of a triplet until it is wrong by more than the margin. If all rows coincide the loss is the margin.

    Args:
        anchor, positive, negative: (N, D) each.
        margin: at least 0.

    Raises:
        ValueError: not three tensors of one shape (N, D); a negative margin.
    """
    _margin(margin)
    a, p, n = (F.normalize(rows, dim=1) for rows in _rows(anchor=anchor, positive=positive, negative=negative))
    return F.relu((a - p).square().sum(1) - (a - n).square().sum(1) + margin).mean()


@full_precision()
def batch_all_triplet(embeddings: Tensor, labels: Tensor, *, margin: float = 0.2) -> Tensor:
    """Triplet loss over all valid triplets of a batch: the mean of those that are not yet satisfied.

    Hermans, Beyer and Leibe, "In Defense of the Triplet Loss", 2017, section 2, with squared distances as in
    `triplet`. Satisfied triplets are left out of the mean, or they would shrink the gradient as training succeeds.

    The hinge is linear where it is active. So it is enough to count, for each distance, in how many active triplets
    it stands: the loss is the sum of distances times counts, and so is its gradient. Memory grows with N², time with
    N² log P for classes of P, though there are N²·P triplets.

    Args:
        embeddings: (N, D).
        labels: (N,) whole numbers.
        margin: at least 0.

    Raises:
        ValueError: shapes disagree; a negative margin; no class with two members, or only one class.
    """
    _margin(margin)
    z, same = _labelled(embeddings, labels)                                             # (N, D), (N, N)
    with torch.no_grad():
        counts = _active(_distances(z), same, margin)                                   # (N, N)
        active = counts.clamp_min(0).sum()                                              # each triplet has one positive
    # Σ counts · |zᵢ − zⱼ|². Of |zᵢ|² − 2 zᵢ·zⱼ + |zⱼ|² the first cancels: each triplet adds and subtracts a distance
    lengths = z.square().sum(1)                                                         # (N,), 1, or 0 for a zero row
    total = (counts.sum(0) * lengths).sum() - 2 * (z * (counts @ z)).sum()
    return (margin * active + total) / active.clamp_min(1)


def _active(distances: Tensor, same: Tensor, margin: float) -> Tensor:
    """(N, N): in how many active triplets of its row a distance stands, with a minus sign for a negative."""
    positives, columns = _positives(distances, same)                                    # (N, P), ascending
    count = positives.shape[1]
    # a negative is active with the positives whose bound lies above it: those from its rank on
    rank = torch.searchsorted(positives + margin, _negatives(distances, same), right=True, out_int32=True)   # (N, N)
    row = torch.arange(len(rank), device=rank.device, dtype=torch.int32)[:, None] * (count + 1)
    ranks = torch.bincount((rank + row).flatten(), minlength=len(rank) * (count + 1)).view(-1, count + 1)
    below = ranks[:, :-1].cumsum(1)                                                     # (N, P), negatives below it
    return (rank - count).to(distances.dtype).scatter_add_(1, columns, below.to(distances.dtype))


@full_precision()
def semi_hard_triplet(embeddings: Tensor, labels: Tensor, *, margin: float = 0.2) -> Tensor:
    """Triplet loss with FaceNet's mining: the mean over all anchor–positive pairs, each with one negative.

    The negative is the nearest of those that are farther than the positive (semi-hard if it lies within the margin,
    and without effect beyond it); if all are nearer, the farthest. The nearest of all would be harder, but early in
    training it leads to collapse. Schroff et al. 2015, section 3.2; squared distances as in `triplet`.

    Args:
        embeddings: (N, D).
        labels: (N,) whole numbers.
        margin: at least 0.

    Raises:
        ValueError: shapes disagree; a negative margin; no class with two members, or only one class.
    """
    _margin(margin)
    z, same = _labelled(embeddings, labels)                                             # (N, D), (N, N)
    distances = _distances(z)                                                           # (N, N)
    with torch.no_grad():
        positives, columns = _positives(distances, same)                                # (N, P), ascending
        ordered, order = _negatives(distances, same).sort(dim=1)                        # (N, N), ∞ at the end
        farther = torch.searchsorted(ordered, positives, right=True)                    # (N, P)
        farthest = len(z) - 2 - same.sum(1, keepdim=True)                               # (N, 1), the last negative
        chosen = order.gather(1, farther.minimum(farthest))                             # (N, P)
        pairs = same.gather(1, columns)                                                 # (N, P), not padding
    hinge = F.relu(distances.gather(1, columns) - distances.gather(1, chosen) + margin)
    return hinge[pairs].mean()


@full_precision()
def random_triplet(embeddings: Tensor, labels: Tensor, *, margin: float = 0.2) -> Tensor:
    """Triplet loss without mining: each row as an anchor once, with a positive and a negative drawn at random.

    The draws come from torch's global generator. Rows that are alone in their class are no anchors.

    Args:
        embeddings: (N, D).
        labels: (N,) whole numbers.
        margin: at least 0.

    Raises:
        ValueError: shapes disagree; a negative margin; no class with two members, or only one class.
    """
    z, same = _labelled(embeddings, labels)                                             # (N, D), (N, N)
    anchors = same.any(1).nonzero()[:, 0]                                               # (M,)
    others = ~same.clone().fill_diagonal_(True)
    positives, negatives = (torch.multinomial(chosen[anchors].float(), 1)[:, 0] for chosen in (same, others))
    return triplet(z[anchors], z[positives], z[negatives], margin=margin)


@full_precision()
def n_pair(anchors: Tensor, positives: Tensor, *, l2: float = 0.002) -> Tensor:
    """N-pair loss: each anchor has to find its positive among the positives of all N pairs.

    The mean of −log softmax over rows of the N × N inner products, the diagonal being right; plus `l2` times the mean
    squared length of all 2N embeddings (some libraries take half of that). Sohn, "Improved Deep Metric Learning with
    Multi-class N-pair Loss", 2016, eq. 7. The pairs must come from N different classes. Not normalised: deck B
    normalises, but without a temperature that bounds the loss from below by log(1 + (N − 1)·e⁻²), and it barely trains.

    Args:
        anchors, positives: (N, D) each; row i of both from class i.
        l2: weight of the squared lengths, at least 0.

    Raises:
        ValueError: not two tensors of one shape (N, D); a negative `l2`.
    """
    if not (checks.is_number(l2) and l2 >= 0):
        raise ValueError(f"l2 must be at least 0, got {l2!r}")
    a, p = _rows(anchors=anchors, positives=positives)
    lengths = torch.cat([a, p]).square().sum(1)
    return _cross_entropy(a @ p.T, (a * p).sum(1)).mean() + l2 * lengths.mean()


def n_pair_of_classes(embeddings: Tensor, labels: Tensor, *, l2: float = 0.002) -> Tensor:
    """N-pair loss of a batch that holds two rows of each class, one after the other (`ClassBatches(per_class=2)`).

    Args:
        embeddings: (2N, D), not normalised.
        labels: (2N,): a, a, b, b, … of N different classes.
        l2: as for `n_pair`.

    Raises:
        ValueError: shapes disagree; labels that are no such pairs; a negative `l2`.
    """
    rows, labels = _rows(embeddings=embeddings)[0], checks.tensor(labels, "labels")
    _classes(labels, len(rows))
    first, second = labels[0::2], labels[1::2]
    if not torch.equal(first, second) or len(first.unique()) < len(first):
        raise ValueError("labels must be pairs of N different classes (a, a, b, b, …): use per_class=2")
    return n_pair(rows[0::2], rows[1::2], l2=l2)


@full_precision()
def supcon(embeddings: Tensor, labels: Tensor, *, temperature: float = 0.1) -> Tensor:
    """Supervised contrastive loss L_out: InfoNCE for each positive of an anchor, averaged over them.

    Khosla et al., "Supervised Contrastive Learning", 2020, eq. 2, as the mean over anchors. The denominator holds all
    N − 1 others, the other positives included; deck B leaves those out. Anchors without a positive leave the mean.
    The authors' code multiplies by temperature / 0.07, which this does not.

    Args:
        embeddings: (N, D); several views of an image are several rows with one label. L2-normalised here.
        labels: (N,) whole numbers.
        temperature: above 0.

    Raises:
        ValueError: shapes disagree; a temperature that is not positive; no label occurs twice.
    """
    _temperature(temperature)
    rows, = _rows(embeddings=embeddings)
    classes, sizes = _classes(labels, len(rows))
    z = F.normalize(rows, dim=1)
    # the positives' mean similarity, without listing them: the sum of a class less the anchor itself
    sums = torch.zeros(len(sizes), z.shape[1], dtype=z.dtype, device=z.device).index_add(0, classes, z)
    others = sizes[classes] - 1                                                         # (N,), |P(i)|
    positive = (z * (sums[classes] - z)).sum(1) / temperature / others.clamp_min(1)     # (N,)
    return _cross_entropy(_to_others(z, temperature), positive)[others > 0].mean()


@full_precision()
def info_nce(view1: Tensor, view2: Tensor, *, temperature: float = 0.5) -> Tensor:
    """InfoNCE as in SimCLR (NT-Xent): which of the 2N − 1 other views shows the same image?

    Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", 2020, eq. 1 and
    algorithm 1: the mean over both directions, negatives from both views, and the positive in the denominator, which
    deck B leaves out (that is the decoupled loss of Yeh et al. 2022). The authors' code returns twice this value.

    Args:
        view1, view2: (N, D) each; row i of both from image i. L2-normalised here.
        temperature: above 0.

    Raises:
        ValueError: not two tensors of one shape (N, D); a temperature that is not positive.
    """
    _temperature(temperature)
    z1, z2 = (F.normalize(rows, dim=1) for rows in _rows(view1=view1, view2=view2))
    logits = _to_others(torch.cat([z1, z2]), temperature)                               # (2N, 2N)
    positive = (z1 * z2).sum(1) / temperature                                           # (N,)
    return _cross_entropy(logits, positive.repeat(2)).mean()


@full_precision()
def info_nce_one_way(view1: Tensor, view2: Tensor, *, temperature: float = 0.2) -> Tensor:
    """InfoNCE in one direction: which of the N second views belongs to this first view?

    The loss of the two-stage detector: Sohn et al., "Learning and Evaluating Representations for Deep One-Class
    Classification", 2021, eq. 1, as in the authors' code. N × N logits, so no negatives among the first views.

    Args:
        view1, view2: (N, D) each; row i of both from image i. L2-normalised here.
        temperature: above 0.

    Raises:
        ValueError: not two tensors of one shape (N, D); a temperature that is not positive.
    """
    _temperature(temperature)
    z1, z2 = (F.normalize(rows, dim=1) for rows in _rows(view1=view1, view2=view2))
    return _cross_entropy(z1 / temperature @ z2.T, (z1 * z2).sum(1) / temperature).mean()


@full_precision()
def knowledge_distillation(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor | None = None, *, temperature: float = 4.0,
    alpha: float = 0.9
) -> Tensor:
    """A teacher's soft answers beside the labels: (1 − α) CE(y, s) + α T² KL(softmax(t / T) ‖ softmax(s / T)).

    A mean over images, and over classes a sum. The gradient of the second term shrinks with 1 / T², which T² takes
    back, so that α means the same at every temperature. No gradient reaches the teacher. Hinton, Vinyals and Dean,
    "Distilling the Knowledge in a Neural Network", 2015.

    Args:
        student_logits, teacher_logits: (N, K) each.
        labels: (N,) whole numbers below K; None leaves the second term alone, with a weight of 1.
        temperature: T, above 0; the higher, the more the small probabilities count.
        alpha: α in [0, 1].

    Raises:
        ValueError: logits of two shapes, or labels that do not fit them; a temperature that is not positive.
    """
    _temperature(temperature)
    alpha = checks.within(alpha, 0, 1, "alpha")
    student, teacher = _rows(student_logits=student_logits, teacher_logits=teacher_logits)
    soft = F.kl_div(F.log_softmax(student / temperature, dim=1), F.log_softmax(teacher.detach() / temperature, dim=1),
                    reduction="batchmean", log_target=True) * temperature ** 2
    if labels is None:
        return soft
    labels = checks.classes(labels, len(student), student.shape[1])
    return (1 - alpha) * F.cross_entropy(student, labels.to(student.device)) + alpha * soft


# What the losses share ---------------------------------------------------------------------------------------


def _cross_entropy(logits: Tensor, positive: Tensor) -> Tensor:
    """−log softmax of the positive's logit, (N,), the positive being one of the row's logits (or their mean)."""
    return logits.logsumexp(dim=1) - positive


def _to_others(z: Tensor, temperature: float) -> Tensor:
    """Similarities of unit rows over the temperature, (N, N), with −∞ to oneself."""
    return (z / temperature @ z.T).fill_diagonal_(-float("inf"))


def _distances(z: Tensor) -> Tensor:
    """Squared distances between rows: (N, N)."""
    lengths = z.square().sum(1)                                                         # 1, or 0 for a zero row
    return torch.addmm(lengths[:, None] + lengths, z, z.T, alpha=-2)


def _labelled(embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Unit rows, (N, D), and who is whose positive, (N, N); both kinds of neighbour must exist."""
    rows, = _rows(embeddings=embeddings)
    classes, sizes = _classes(labels, len(rows))
    if len(sizes) == 1:
        raise ValueError("labels must hold at least two classes, or no anchor has a negative, got one only")
    return F.normalize(rows, dim=1), (classes[:, None] == classes).fill_diagonal_(False)


def _positives(distances: Tensor, same: Tensor) -> tuple[Tensor, Tensor]:
    """Each row's distances to its positives, ascending, and their columns: (N, P), P of the anchor that has most.

    Rows with fewer positives begin with −∞.
    """
    most = int(same.sum(1).amax())
    values, columns = distances.masked_fill(~same, -torch.inf).topk(most)
    return values.flip(1), columns.flip(1)


def _negatives(distances: Tensor, same: Tensor) -> Tensor:
    """The distances to negatives, (N, N), with ∞ for all that are none."""
    return distances.masked_fill(same, torch.inf).fill_diagonal_(torch.inf)


def _classes(labels: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Labels numbered from 0, (N,), and how many rows each class has, (C,)."""
    labels = checks.tensor(labels, "labels")
    if labels.shape != (count,) or labels.is_floating_point():
        raise ValueError(f"labels must be whole numbers of shape ({count},), one a row of embeddings, got "
                         f"{labels.dtype} {tuple(labels.shape)}")
    _, classes, sizes = labels.unique(return_inverse=True, return_counts=True)
    if sizes.amax() < 2:
        raise ValueError("labels must name some class twice, or no anchor has a positive: draw several of each class")
    return classes, sizes


def _rows(**rows: Tensor) -> list[Tensor]:
    """The tensors in at least float32, if they are floating point rows (N, D) of one shape."""
    (first, one), *others = rows.items()
    for name, value in rows.items():
        if not isinstance(value, Tensor) or value.ndim != 2 or not value.is_floating_point() or not value.numel():
            got = f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"{name} must be a floating point tensor of shape (N, D), got {got}")
    for name, value in others:
        if value.shape != one.shape:
            raise ValueError(f"{name} must have the shape of {first}, {tuple(one.shape)}, got {tuple(value.shape)}")
    return [value.float() if value.itemsize < 4 else value for value in rows.values()]


def _temperature(temperature: float) -> None:
    if not (checks.is_number(temperature) and temperature >= COLDEST):
        raise ValueError(f"temperature must be above 0, at least {COLDEST}, got {temperature!r}: 0.1 to 0.5 is usual")


def _margin(margin: float) -> None:
    if not (checks.is_number(margin) and margin >= 0):
        raise ValueError(f"margin must be at least 0, got {margin!r}: it is added, so 0.2 asks for 0.2 of distance")
