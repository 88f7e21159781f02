"""The losses against double loops that are slow and obvious, a peer library, and what is known in closed form."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from adlearn import losses

LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 0, 0, 3])           # classes of four, two, two and one
BY_LABEL = {
    "batch_all_triplet": losses.batch_all_triplet,
    "semi_hard_triplet": losses.semi_hard_triplet,
    "supcon": losses.supcon,
}
DRAWN = {"random_triplet": losses.random_triplet}
BY_PAIR = {"n_pair": losses.n_pair, "info_nce": losses.info_nce, "info_nce_one_way": losses.info_nce_one_way}


def rows(count=9, width=5, seed=0, dtype=torch.float64):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def squared(a, b):
    return sum((x - y) ** 2 for x, y in zip(a.tolist(), b.tolist(), strict=True))


def product(a, b):
    return sum(x * y for x, y in zip(a.tolist(), b.tolist(), strict=True))


# References: plain loops over plain numbers --------------------------------------------------------------------


def slow_triplet(anchor, positive, negative, margin):
    a, p, n = (normalize(part, dim=1) for part in (anchor, positive, negative))
    hinges = [max(squared(a[i], p[i]) - squared(a[i], n[i]) + margin, 0.0) for i in range(len(a))]
    return sum(hinges) / len(hinges)


def slow_batch_all(embeddings, labels, margin):
    z, y = normalize(embeddings, dim=1), labels.tolist()
    active = []
    for a in range(len(z)):
        for p in range(len(z)):
            for n in range(len(z)):
                if a != p and y[a] == y[p] and y[a] != y[n]:
                    hinge = squared(z[a], z[p]) - squared(z[a], z[n]) + margin
                    if hinge > 0:
                        active.append(hinge)
    return sum(active) / max(len(active), 1)


def slow_semi_hard(embeddings, labels, margin):
    z, y = normalize(embeddings, dim=1), labels.tolist()
    hinges = []
    for a in range(len(z)):
        negatives = [squared(z[a], z[n]) for n in range(len(z)) if y[n] != y[a]]
        for p in range(len(z)):
            if p != a and y[p] == y[a]:
                positive = squared(z[a], z[p])
                farther = [d for d in negatives if d > positive]
                hinges.append(max(positive - (min(farther) if farther else max(negatives)) + margin, 0.0))
    return sum(hinges) / len(hinges)


def test_a_row_of_no_length_counts_as_the_origin():
    z = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0], [0.6, 0.8]], dtype=torch.float64)
    y = torch.tensor([0, 0, 1, 1])
    assert losses.batch_all_triplet(z, y).item() == pytest.approx(slow_batch_all(z, y, 0.2), abs=1e-10)
    assert losses.semi_hard_triplet(z, y).item() == pytest.approx(slow_semi_hard(z, y, 0.2), abs=1e-10)


@pytest.mark.parametrize("name", ["batch_all_triplet", "semi_hard_triplet", "supcon", "info_nce", "n_pair"])
def test_nan_comes_out_as_nan(name):
    z = rows()
    z[3, 0] = float("nan")
    assert not hard(name, z).isfinite()


def slow_n_pair(anchors, positives, l2):
    total = 0.0
    for i in range(len(anchors)):
        right = product(anchors[i], positives[i])
        wrong = sum(math.exp(product(anchors[i], positives[j]) - right) for j in range(len(anchors)) if j != i)
        total += math.log(1 + wrong)
    lengths = [product(row, row) for part in (anchors, positives) for row in part]
    return total / len(anchors) + l2 * sum(lengths) / len(lengths)


def slow_supcon(embeddings, labels, temperature):
    z, y = normalize(embeddings, dim=1), labels.tolist()
    anchors = []
    for i in range(len(z)):
        others = [j for j in range(len(z)) if j != i]
        positives = [j for j in others if y[j] == y[i]]
        if positives:
            denominator = sum(math.exp(product(z[i], z[j]) / temperature) for j in others)
            logs = [math.log(math.exp(product(z[i], z[p]) / temperature) / denominator) for p in positives]
            anchors.append(-sum(logs) / len(positives))
    return sum(anchors) / len(anchors)


def slow_info_nce(view1, view2, temperature):
    z = normalize(torch.cat([view1, view2]), dim=1)
    n, total = len(view1), 0.0
    for i in range(2 * n):
        partner = (i + n) % (2 * n)
        denominator = sum(math.exp(product(z[i], z[k]) / temperature) for k in range(2 * n) if k != i)
        total -= math.log(math.exp(product(z[i], z[partner]) / temperature) / denominator)
    return total / (2 * n)


def slow_one_way(view1, view2, temperature):
    z1, z2 = normalize(view1, dim=1), normalize(view2, dim=1)
    total = 0.0
    for i in range(len(z1)):
        denominator = sum(math.exp(product(z1[i], z2[k]) / temperature) for k in range(len(z2)))
        total -= math.log(math.exp(product(z1[i], z2[i]) / temperature) / denominator)
    return total / len(z1)


@pytest.mark.parametrize("margin", [0.0, 0.2, 1.0, 5.0])
@pytest.mark.parametrize("seed", range(3))
def test_triplets_equal_the_loops(margin, seed):
    z = rows(seed=seed)
    given = [rows(6, seed=seed + k) for k in (10, 20, 30)]
    assert losses.triplet(*given, margin=margin).item() == pytest.approx(slow_triplet(*given, margin), abs=1e-10)
    for fast, slow in ((losses.batch_all_triplet, slow_batch_all), (losses.semi_hard_triplet, slow_semi_hard)):
        assert fast(z, LABELS, margin=margin).item() == pytest.approx(slow(z, LABELS, margin), abs=1e-10)


@pytest.mark.parametrize("temperature", [0.05, 0.2, 0.5, 2.0])
@pytest.mark.parametrize("seed", range(3))
def test_softmax_losses_equal_the_loops(temperature, seed):
    z, a, b = rows(seed=seed), rows(6, seed=seed + 10), rows(6, seed=seed + 20)
    found = losses.supcon(z, LABELS, temperature=temperature).item()
    assert found == pytest.approx(slow_supcon(z, LABELS, temperature), abs=1e-10)
    for fast, slow in ((losses.info_nce, slow_info_nce), (losses.info_nce_one_way, slow_one_way)):
        assert fast(a, b, temperature=temperature).item() == pytest.approx(slow(a, b, temperature), abs=1e-10)
    assert losses.n_pair(a, b, l2=temperature).item() == pytest.approx(slow_n_pair(a, b, temperature), abs=1e-10)


@given(st.lists(st.integers(0, 3), min_size=4, max_size=10), st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_any_labels_give_the_loops_values(labels, seed):
    z, y = rows(len(labels), 3, seed), torch.tensor(labels)
    if len(set(labels)) == len(labels) or len(set(labels)) == 1:
        with pytest.raises(ValueError, match="labels"):
            losses.batch_all_triplet(z, y)
        return
    assert losses.batch_all_triplet(z, y).item() == pytest.approx(slow_batch_all(z, y, 0.2), abs=1e-10)
    assert losses.semi_hard_triplet(z, y).item() == pytest.approx(slow_semi_hard(z, y, 0.2), abs=1e-10)
    assert losses.supcon(z, y).item() == pytest.approx(slow_supcon(z, y, 0.1), abs=1e-10)


def test_the_peer_agrees():
    """pytorch-metric-learning on float64 rows.

    Left out: its semi-hard miner takes all negatives within the margin, not one a pair; its N-pair loss draws the
    pairs from labels, in an order of its own, so it is compared on one pair a class.
    """
    from pytorch_metric_learning import distances, reducers
    from pytorch_metric_learning import losses as peer

    z = rows(24, 8)
    y = torch.arange(24) % 6
    euclid = distances.LpDistance(normalize_embeddings=True, p=2, power=2)
    all_triplets = peer.TripletMarginLoss(margin=0.2, distance=euclid, reducer=reducers.AvgNonZeroReducer())
    assert losses.batch_all_triplet(z, y).item() == pytest.approx(all_triplets(z, y).item(), abs=1e-10)
    assert losses.supcon(z, y, temperature=0.1).item() == pytest.approx(peer.SupConLoss(0.1)(z, y).item(), abs=1e-10)
    pairs = torch.arange(12).repeat(2)
    ours = losses.info_nce(z[:12], z[12:], temperature=0.5).item()
    assert ours == pytest.approx(peer.NTXentLoss(0.5)(z, pairs).item(), abs=1e-10)
    product = distances.DotProductSimilarity(normalize_embeddings=False)
    unnormalised = 0.3 * z                                      # its softmax overflows for long rows, ours does not
    ours = losses.n_pair(unnormalised[:12], unnormalised[12:], l2=0.0).item()
    theirs = [peer.NPairsLoss(distance=product)(torch.cat(order), pairs).item()
              for order in (unnormalised.split(12), unnormalised.split(12)[::-1])]
    assert min(abs(ours - value) for value in theirs) < 1e-10


# Identities ----------------------------------------------------------------------------------------------------


def test_identical_rows_cost_the_margin():
    """Collapse to a point is a plateau at the margin (the sign of the margin is a plus)."""
    z = torch.ones(9, 4, dtype=torch.float64)
    assert losses.triplet(z, z, z, margin=0.3).item() == pytest.approx(0.3, abs=1e-12)
    assert losses.batch_all_triplet(z, LABELS, margin=0.3).item() == pytest.approx(0.3, abs=1e-12)
    assert losses.semi_hard_triplet(z, LABELS, margin=0.3).item() == pytest.approx(0.3, abs=1e-12)


def test_a_satisfied_triplet_costs_nothing_and_a_wrong_one_its_excess():
    a, p, n = torch.tensor([[[1.0, 0.0]], [[1.0, 0.0]], [[0.0, 1.0]]])
    assert losses.triplet(a, p, n).item() == 0
    assert losses.triplet(a, n, p).item() == pytest.approx(2.2)


def test_supcon_with_pair_labels_is_nt_xent():
    a, b = rows(7, seed=1), rows(7, seed=2)
    pairs = torch.arange(7).repeat(2)
    ours = losses.supcon(torch.cat([a, b]), pairs, temperature=0.3)
    assert ours.item() == pytest.approx(losses.info_nce(a, b, temperature=0.3).item(), abs=1e-12)


def test_orthogonal_pairs_have_a_closed_form():
    """N equal orthogonal pairs: log(1 + (2N − 2)·e^{−1/τ}); a single pair has no negative and costs nothing."""
    z = torch.eye(6, dtype=torch.float64)
    assert losses.info_nce(z, z, temperature=0.5).item() == pytest.approx(math.log(1 + 10 * math.exp(-2)), abs=1e-12)
    assert losses.info_nce_one_way(z, z, temperature=0.5).item() == pytest.approx(
        math.log(1 + 5 * math.exp(-2)), abs=1e-12)
    assert losses.info_nce(z[:1], z[1:2]).item() == pytest.approx(0, abs=1e-12)


def test_n_pair_of_two_pairs_is_softplus_and_of_one_pair_its_penalty():
    a, p = rows(2, seed=3), rows(2, seed=4)
    closed = sum(math.log1p(math.exp((a[i] @ p[1 - i] - a[i] @ p[i]).item())) for i in range(2)) / 2
    assert losses.n_pair(a, p, l2=0.0).item() == pytest.approx(closed, abs=1e-12)
    penalty = torch.cat([a[:1], p[:1]]).square().sum(1).mean().item()
    assert losses.n_pair(a[:1], p[:1], l2=0.5).item() == pytest.approx(0.5 * penalty, abs=1e-12)


def test_n_pair_on_the_unit_sphere_cannot_fall_below_its_bound():
    """The best that normalised rows can do without a temperature, which is why the loss does not normalise."""
    a = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    assert losses.n_pair(a, a, l2=0.0).item() == pytest.approx(math.log(1 + math.exp(-2)), abs=1e-12)
    assert losses.n_pair(10 * a, 10 * a, l2=0.0).item() < 1e-40


@pytest.mark.parametrize("name", [*BY_LABEL, *BY_PAIR])
def test_the_order_of_rows_does_not_matter(name):
    order = torch.randperm(9, generator=torch.Generator().manual_seed(5))
    if name in BY_LABEL:
        before, after = BY_LABEL[name](rows(), LABELS), BY_LABEL[name](rows()[order], LABELS[order])
    else:
        a, b = rows(seed=1), rows(seed=2)
        before, after = BY_PAIR[name](a, b), BY_PAIR[name](a[order], b[order])
    assert before.item() == pytest.approx(after.item(), abs=1e-12)


@pytest.mark.parametrize("name", ["batch_all_triplet", "semi_hard_triplet", "supcon", "info_nce", "info_nce_one_way"])
def test_the_length_of_rows_does_not_matter(name):
    z, longer = rows(), rows() * torch.rand(9, 1, dtype=torch.float64).add(0.5)
    ask = (lambda x: BY_LABEL[name](x, LABELS)) if name in BY_LABEL else (lambda x: BY_PAIR[name](x, rows(seed=1)))
    assert ask(z).item() == pytest.approx(ask(longer).item(), abs=1e-12)


# Gradients -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BY_LABEL)
def test_gradients_of_labelled_losses(name):
    assert torch.autograd.gradcheck(lambda x: BY_LABEL[name](x, LABELS), rows().requires_grad_())


@pytest.mark.parametrize("name", BY_PAIR)
def test_gradients_of_paired_losses(name):
    assert torch.autograd.gradcheck(BY_PAIR[name], (rows(5).requires_grad_(), rows(5, seed=1).requires_grad_()))


def test_gradients_of_triplets():
    given = [rows(6, seed=seed).requires_grad_() for seed in range(3)]
    assert torch.autograd.gradcheck(losses.triplet, given)


def hard(name, z, labels=LABELS):
    """The loss at temperature 0.01 where it has one."""
    options = {} if "triplet" in name or name == "n_pair" else {"temperature": 0.01}
    return BY_LABEL[name](z, labels, **options) if name in BY_LABEL else BY_PAIR[name](z, z.flip(0), **options)


@pytest.mark.parametrize("name", [*BY_LABEL, *BY_PAIR])
@pytest.mark.parametrize("case", ["random", "identical", "opposite", "zero", "long"])
def test_extremes_stay_finite(name, case):
    z = {"random": rows(), "identical": torch.ones(9, 5), "opposite": torch.ones(9, 5), "zero": torch.zeros(9, 5),
         "long": 30 * rows()}[case].float()
    if case == "opposite":
        z[::2] *= -1
    z.requires_grad_()
    loss = hard(name, z)
    loss.backward()
    assert loss.isfinite()
    assert z.grad.isfinite().all()


def test_anchors_without_a_positive_leave_the_mean():
    z = rows()
    lonely = torch.tensor([0, 0, 1, 2, 3, 4, 5, 6, 7])
    assert losses.supcon(z, lonely).item() == pytest.approx(slow_supcon(z, lonely, 0.1), abs=1e-10)
    z.requires_grad_()
    losses.supcon(z, lonely).backward()
    assert z.grad.isfinite().all()


@pytest.mark.parametrize("name", [*BY_LABEL, *BY_PAIR])
def test_autocast_does_not_round_the_loss(name):
    z = rows(dtype=torch.float32)
    z.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = hard(name, z)
    assert inside.dtype == torch.float32
    assert inside.item() == pytest.approx(hard(name, z).item(), rel=1e-6)
    inside.backward()
    assert z.grad.isfinite().all()
    assert hard(name, z.detach().bfloat16()).dtype == torch.float32


# Refusals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*BY_LABEL, *DRAWN])
def test_labelled_losses_refuse(name):
    loss, z = (BY_LABEL | DRAWN)[name], rows()
    with pytest.raises(ValueError, match=r"labels .* shape \(9,\)"):
        loss(z, LABELS[:8])
    with pytest.raises(ValueError, match="whole numbers"):
        loss(z, LABELS.double())
    with pytest.raises(ValueError, match="twice"):
        loss(z, torch.arange(9))
    with pytest.raises(ValueError, match="embeddings"):
        loss(z[0], LABELS)
    with pytest.raises(ValueError, match="floating point"):
        loss(z.long(), LABELS)
    with pytest.raises(ValueError, match="embeddings"):
        loss(z[:0], LABELS[:0])


def test_triplets_need_two_classes_and_supcon_does_not():
    z, one = rows(), torch.zeros(9, dtype=torch.int64)
    for loss in (losses.batch_all_triplet, losses.semi_hard_triplet, losses.random_triplet):
        with pytest.raises(ValueError, match="two classes"):
            loss(z, one)
    assert losses.supcon(z, one).item() == pytest.approx(slow_supcon(z, one, 0.1), abs=1e-10)


@pytest.mark.parametrize("loss", BY_PAIR.values(), ids=BY_PAIR)
def test_paired_losses_refuse_another_number_of_rows(loss):
    with pytest.raises(ValueError, match=r"shape of .*\(9, 5\), got \(8, 5\)"):
        loss(rows(), rows(8))
    with pytest.raises(ValueError, match=r"shape of"):
        loss(rows(), rows(9, 4))
    with pytest.raises(ValueError, match="list"):
        loss(rows(), rows().tolist())


def test_the_negative_of_a_triplet_must_match_too():
    with pytest.raises(ValueError, match="negative"):
        losses.triplet(rows(), rows(), rows(8))


@pytest.mark.parametrize("value", [0, 1e-39, -0.1, float("nan"), "0.1", True])
def test_bad_temperatures_are_refused(value):
    for call in (lambda: losses.supcon(rows(), LABELS, temperature=value),
                 lambda: losses.info_nce(rows(), rows(), temperature=value),
                 lambda: losses.info_nce_one_way(rows(), rows(), temperature=value)):
        with pytest.raises(ValueError, match="temperature"):
            call()


@pytest.mark.parametrize("value", [-0.1, float("inf"), None])
def test_bad_margins_and_weights_are_refused(value):
    for call in (lambda: losses.triplet(rows(), rows(), rows(), margin=value),
                 lambda: losses.batch_all_triplet(rows(), LABELS, margin=value),
                 lambda: losses.semi_hard_triplet(rows(), LABELS, margin=value)):
        with pytest.raises(ValueError, match="margin"):
            call()
    with pytest.raises(ValueError, match="l2"):
        losses.n_pair(rows(), rows(), l2=value)


def test_batch_all_needs_no_tensor_of_n_cubed():
    """800 rows of 40 classes have 12 million triplets; no tensor larger than N² may be made."""
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            out = function(*args, **(kwargs or {}))
            for part in out if isinstance(out, tuple | list) else (out,):
                if isinstance(part, torch.Tensor):
                    largest = max(largest, part.numel())
            return out

    z = rows(800, 8, dtype=torch.float32).requires_grad_()
    with Watch():
        losses.batch_all_triplet(z, torch.arange(800) % 40).backward()
    assert 800 * 800 <= largest <= 800 * 800 + 800 * 40


def test_random_triplets_are_valid_and_reach_all(monkeypatch):
    labels = torch.tensor([0, 0, 0, 1, 1, 2])
    z = torch.eye(6)
    drawn = set()

    def note(anchor, positive, negative, *, margin):
        for a, p, n in zip(*(part.argmax(1).tolist() for part in (anchor, positive, negative)), strict=True):
            drawn.add((a, p, n))
        return anchor.sum() * margin

    monkeypatch.setattr(losses, "triplet", note)
    torch.manual_seed(0)
    for _ in range(300):
        losses.random_triplet(z, labels)
    valid = {(a, p, n) for a in range(6) for p in range(6) for n in range(6)
             if a != p and labels[a] == labels[p] and labels[a] != labels[n]}
    assert drawn == valid


def test_pairs_must_be_pairs():
    z = torch.randn(4, 3)
    value = losses.n_pair_of_classes(z, torch.tensor([1, 1, 0, 0]), l2=0.0)
    assert value.item() == pytest.approx(losses.n_pair(z[::2], z[1::2], l2=0.0).item())
    for labels in ([1, 0, 1, 0], [1, 1, 1, 1]):
        with pytest.raises(ValueError, match="per_class=2"):
            losses.n_pair_of_classes(z, torch.tensor(labels))
    with pytest.raises(ValueError, match="per_class=2"):
        losses.n_pair_of_classes(z[:3], torch.tensor([1, 1, 0]))
    with pytest.raises(ValueError, match="twice"):
        losses.random_triplet(z, torch.arange(4))


# Distillation --------------------------------------------------------------------------------------------------


def slow_distillation(student, teacher, labels, T, alpha):
    def softmax(values):
        powers = [math.exp(value) for value in values]
        return [power / sum(powers) for power in powers]

    total = 0.0
    for s, t, y in zip(student.tolist(), teacher.tolist(), labels, strict=True):
        p, q = softmax([v / T for v in t]), softmax([v / T for v in s])
        soft = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        hard = 0.0 if y is None else -math.log(softmax(s)[y])
        total += alpha * T ** 2 * soft + (1 - alpha) * hard
    return total / len(student)


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_knowledge_distillation_equals_loops(temperature):
    student, teacher, labels = rows(9, 4, 1), rows(9, 4, 2), LABELS
    for alpha in (0.0, 0.3, 1.0):
        found = losses.knowledge_distillation(student, teacher, labels, temperature=temperature, alpha=alpha)
        expected = slow_distillation(student, teacher, labels.tolist(), temperature, alpha)
        torch.testing.assert_close(found.item(), expected, rtol=1e-10, atol=1e-12)
    alone = losses.knowledge_distillation(student, teacher, temperature=temperature, alpha=0.3)
    torch.testing.assert_close(alone.item(), slow_distillation(student, teacher, [None] * 9, temperature, 1.0))


def test_a_student_that_says_the_same_has_nothing_to_learn():
    teacher = rows(9, 4)
    assert losses.knowledge_distillation(teacher + 3, teacher).item() == pytest.approx(0, abs=1e-12)     # softmax's own
    assert losses.knowledge_distillation(-teacher, teacher).item() > 0.1


def test_the_direction_is_from_teacher_to_student():
    """Where the teacher puts weight the student must; the other direction would be a larger or a smaller number."""
    teacher, student = torch.tensor([[4.0, 0.0, 0.0]]), torch.tensor([[0.0, 2.0, 0.0]])
    p, q = teacher.softmax(1), student.softmax(1)
    found = losses.knowledge_distillation(student, teacher, temperature=1.0)
    torch.testing.assert_close(found, (p * (p / q).log()).sum())
    assert abs(found - (q * (q / p).log()).sum()) > 0.1


def test_gradients_keep_their_length_when_the_temperature_rises():
    """At a high temperature they are those of the distance of centred logits, (s − t) / K; the teacher has none."""
    teacher = rows(9, 4, 2).requires_grad_()
    for temperature, tolerance in ((50.0, 0.1), (1000.0, 0.005)):
        student = rows(9, 4, 1).requires_grad_()
        losses.knowledge_distillation(student, teacher, temperature=temperature).backward()
        centred = (student - teacher).detach()
        centred = (centred - centred.mean(1, keepdim=True)) / 4 / 9
        torch.testing.assert_close(student.grad, centred, rtol=tolerance, atol=tolerance * centred.abs().max().item())
    assert teacher.grad is None


def test_distillation_takes_half_precision_and_large_logits():
    student = (100 * rows(9, 4, 1, torch.float32)).half().requires_grad_()
    losses.knowledge_distillation(student, (100 * rows(9, 4, 2, torch.float32)).half(), LABELS % 4).backward()
    assert student.grad.isfinite().all()


@pytest.mark.parametrize(("change", "word"), [
    ({"teacher_logits": rows(9, 3)}, "teacher_logits"), ({"labels": torch.arange(9)}, "labels"),
    ({"temperature": 0.0}, "temperature"), ({"alpha": 1.5}, "alpha"), ({"labels": LABELS[:5]}, "labels")])
def test_distillation_refuses(change, word):
    given = {"student_logits": rows(9, 4), "teacher_logits": rows(9, 4, 1), "labels": LABELS, **change}
    with pytest.raises(ValueError, match=word):
        losses.knowledge_distillation(**given)
