"""The metrics against slow, obvious references and against scikit-learn."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as peer

from adlearn import metrics

quick = settings(max_examples=60, deadline=None)


@st.composite
def rankings(draw):
    """Labels with both classes, and scores with many ties."""
    labels = [0, 1, *draw(st.lists(st.integers(0, 1), max_size=30))]
    scores = draw(st.lists(st.integers(-3, 3), min_size=len(labels), max_size=len(labels)))
    return torch.tensor(labels), torch.tensor(scores).float() / 3


@st.composite
def segmentations(draw):
    """A few small masks and maps, with ties, whose first image has an anomalous pixel and a normal one."""
    shape = (draw(st.integers(1, 3)), draw(st.integers(2, 5)), draw(st.integers(2, 5)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    masks = rng.random(shape) < draw(st.sampled_from([0.1, 0.4, 0.8]))
    masks[0, 0, 0], masks[0, 0, 1] = True, False
    return masks, rng.integers(0, draw(st.sampled_from([2, 5, 1000])), shape) / 7


def components(mask):
    """8-connected regions by flood fill."""
    left, regions = set(zip(*np.nonzero(mask), strict=True)), []
    while left:
        region, edge = set(), [left.pop()]
        while edge:
            row, column = edge.pop()
            region.add((row, column))
            near = {(row + r, column + c) for r in (-1, 0, 1) for c in (-1, 0, 1)} & left
            left -= near
            edge.extend(near)
        regions.append(region)
    return regions


def slow_pro_curve(masks, maps):
    """PRO and FPR from their definitions, threshold by threshold."""
    regions = [(i, region) for i, mask in enumerate(masks) for region in components(mask)]
    points = [(0.0, 0.0)]
    for threshold in sorted(set(maps.ravel()), reverse=True):
        overlaps = [sum(maps[i][p] >= threshold for p in region) / len(region) for i, region in regions]
        false = sum(1 for p in np.ndindex(maps.shape) if not masks[p] and maps[p] >= threshold)
        points.append((false / (~masks).sum(), sum(overlaps) / len(regions)))
    return points


def slow_aupro(masks, maps, max_fpr):
    area = 0.0
    points = slow_pro_curve(masks, maps)
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if x1 > max_fpr > x0:
            y1 = y0 + (y1 - y0) * (max_fpr - x0) / (x1 - x0)
            x1 = max_fpr
        if x1 <= max_fpr:
            area += (x1 - x0) * (y0 + y1) / 2
    return area / max_fpr


@quick
@given(rankings())
def test_auroc_counts_the_ordered_pairs(data):
    labels, scores = data
    pairs = [(a > n) + (a == n) / 2 for a in scores[labels == 1] for n in scores[labels == 0]]
    assert metrics.auroc(labels, scores) == pytest.approx(float(sum(pairs) / len(pairs)), abs=1e-6)
    assert metrics.auroc(labels, scores) == pytest.approx(peer.roc_auc_score(labels, scores), abs=1e-12)
    assert metrics.auroc(1 - labels, scores) == pytest.approx(1 - metrics.auroc(labels, scores), abs=1e-12)


def test_each_kind_is_held_against_all_normal_images():
    labels, scores = [0, 0, 1, 1, 1, 0], [0.1, 0.5, 0.3, 0.9, 0.9, 0.2]
    kinds = ["good", "good", "crack", "spot", "spot", "good"]
    assert metrics.auroc_by_kind(labels, scores, kinds) == {"crack": 2 / 3, "spot": 1.0}
    assert list(metrics.auroc_by_kind(labels, scores, kinds)) == ["crack", "spot"]          # the hardest first
    with pytest.raises(ValueError, match="kinds must be one name for each of the 6"):
        metrics.auroc_by_kind(labels, scores, kinds[:5])


@quick
@given(rankings(), st.sampled_from([0.05, 0.5, 0.95, 1.0]))
def test_image_metrics_equal_scikit_learn(data, tpr):
    labels, scores = data
    fpr, tprs, thresholds = peer.roc_curve(labels, scores, drop_intermediate=False)
    for ours, theirs in zip(metrics.roc_curve(labels, scores), (fpr, tprs, thresholds), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-12)
        assert ours.dtype == torch.float64
    average = peer.average_precision_score(labels, scores)
    assert metrics.average_precision(labels, scores) == pytest.approx(average, abs=1e-12)
    assert metrics.fpr_at_tpr(labels, scores, tpr) == fpr[tprs >= tpr].min()


def test_image_metrics_of_known_cases():
    labels = [0, 0, 0, 1, 1]
    assert metrics.auroc(labels, torch.arange(5.0)) == 1
    assert metrics.auroc(np.array(labels), np.zeros(5)) == 0.5
    assert metrics.average_precision(labels, torch.arange(5.0)) == 1
    assert metrics.fpr_at_tpr(labels, torch.arange(5.0)) == 0
    assert metrics.fpr_at_tpr(labels, torch.zeros(5)) == 1
    assert metrics.auroc(labels, torch.arange(5).to(torch.bfloat16)) == 1


@quick
@given(segmentations(), st.sampled_from([0.001, 0.1, 0.3, 0.5, 1.0]))
def test_aupro_equals_the_definition(data, max_fpr):
    masks, maps = data
    assert metrics.aupro(masks, maps, max_fpr=max_fpr) == pytest.approx(slow_aupro(masks, maps, max_fpr), abs=1e-9)


@quick
@given(segmentations())
def test_pro_curve_passes_through_every_threshold(data):
    masks, maps = data
    fpr, pro = metrics.pro_curve(masks, maps)
    assert (fpr[0], pro[0], fpr[-1], pro[-1]) == (0, 0, 1, 1)
    assert (fpr.diff() >= 0).all()
    assert (pro.diff() >= 0).all()
    for x, y in slow_pro_curve(masks, maps):
        within = (fpr[:-1] - 1e-12 <= x) & (x <= fpr[1:] + 1e-12)
        off_line = (x - fpr[:-1]) * pro.diff() - (y - pro[:-1]) * fpr.diff()
        level = (pro[:-1] - 1e-12 <= y) & (y <= pro[1:] + 1e-12)
        assert (within & level & (off_line.abs() < 1e-12)).any()
    assert metrics.aupro(masks, maps, max_fpr=1.0) == pytest.approx(float(torch.trapezoid(pro, fpr)), abs=1e-12)


def test_aupro_of_known_cases():
    masks = torch.zeros(3, 8, 8, dtype=torch.bool)
    masks[0, 1:3, 1:3], masks[1, 4:8, 4:8] = True, True
    assert metrics.aupro(masks, masks.float()) == pytest.approx(1, abs=1e-12)
    assert metrics.aupro(masks, torch.ones(3, 8, 8)) == pytest.approx(0.15, abs=1e-12)       # the diagonal
    assert metrics.aupro(masks, -masks.float()) == 0
    small, large = torch.zeros(3, 8, 8), torch.zeros(3, 8, 8)
    small[0], large[1] = masks[0].float(), masks[1].float()                     # one region found, the other tied
    assert metrics.aupro(masks, small) == pytest.approx(metrics.aupro(masks, large), abs=1e-12)
    assert metrics.aupro(masks, small) == pytest.approx(0.5 + 0.5 * 0.15, abs=1e-12)


def test_regions_are_8_connected_within_an_image():
    masks = torch.zeros(2, 4, 4, dtype=torch.bool)
    masks[0, 0, 0] = masks[0, 1, 1] = True            # one region, by a corner
    masks[1, 0, 0] = True                             # another, though in the same place
    maps = masks.float()
    maps[1] = 0
    expected = 0.5 + 0.5 * 0.15
    assert metrics.aupro(masks, maps) == pytest.approx(expected, abs=1e-12)


def test_defect_free_images_count_in_the_false_positive_rate():
    masks = torch.zeros(2, 4, 4, dtype=torch.bool)
    masks[0, :2] = True
    maps = torch.zeros(2, 4, 4)
    maps[1, 0, 0], maps[0, :2] = 2, 1                 # one false alarm, on the good image, above the defect
    assert metrics.aupro(masks, maps) == pytest.approx((0.3 - 1 / 24) / 0.3, abs=1e-12)


def test_pixel_metrics_take_half_precision_and_equal_scikit_learn():
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(4, 16, 16, generator=generator) < 0.2
    maps = (torch.rand(4, 16, 16, generator=generator) + 0.3 * masks).half()
    expected = peer.roc_auc_score(masks.flatten(), maps.flatten().float())
    assert metrics.pixel_auroc(masks.int(), maps) == pytest.approx(expected, abs=1e-12)
    assert metrics.aupro(masks, maps) == pytest.approx(slow_aupro(masks.numpy(), maps.double().numpy(), 0.3))


@quick
@given(st.integers(1, 60), st.sampled_from([0.05, 0.1, 0.29, 0.3, 0.5, 0.9]))
def test_threshold_is_the_conformal_order_statistic(n, fpr):
    scores = torch.randperm(n).float()
    rank = math.ceil((n + 1) * (1 - fpr) - 1e-9)
    if rank > n:
        with pytest.raises(ValueError, match="hold out more"):
            metrics.threshold_at_fpr(scores, fpr)
        return
    threshold = metrics.threshold_at_fpr(scores, fpr)
    assert threshold == scores.sort().values[rank - 1]
    assert (n - rank) / n <= fpr


def test_threshold_keeps_its_promise_on_new_images():
    scores = torch.randn(4000, 20, generator=torch.Generator().manual_seed(0))
    flagged = [row[19] > metrics.threshold_at_fpr(row[:19], 0.1) for row in scores]
    assert np.mean(flagged) == pytest.approx(0.1, abs=0.015)
    assert metrics.threshold_at_fpr(torch.arange(19.0), 0.05) == 18


def test_bootstrap_interval():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(200) % 2
    scores = torch.randn(200, generator=generator) + labels
    other = scores + 0.1 * torch.randn(200, generator=generator)

    def interval(**options):
        seed = torch.Generator().manual_seed(1)
        return metrics.bootstrap_interval(metrics.auroc, labels, scores, repeats=300, generator=seed, **options)

    low, high = interval()
    assert (low, high) == interval()
    assert low < metrics.auroc(labels, scores) < high
    error = math.sqrt(0.76 * 0.24 / 100)                    # of the right order
    assert 0.5 * error < high - low < 6 * error
    narrow = interval(level=0.5)
    assert low < narrow[0] < narrow[1] < high
    assert interval(against=scores) == (0, 0)
    paired = interval(against=other)
    assert paired[1] - paired[0] < (high - low) / 2


def test_bootstrap_of_a_pixel_metric_draws_images():
    masks = torch.zeros(6, 8, 8, dtype=torch.bool)
    masks[:3, 2:5, 2:5] = True
    seed = torch.Generator().manual_seed(0)
    interval = metrics.bootstrap_interval(metrics.aupro, masks, masks.float(), repeats=5, generator=seed)
    assert interval == pytest.approx((1, 1))
    state = torch.random.get_rng_state()
    metrics.bootstrap_interval(metrics.aupro, masks, masks.float(), repeats=2, generator=seed)
    assert torch.equal(state, torch.random.get_rng_state())


masks = torch.zeros(2, 4, 4, dtype=torch.bool)
masks[0, 0, 0] = True
maps = torch.rand(2, 4, 4)
labels, scores = torch.tensor([0, 1, 1]), torch.rand(3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.auroc(labels, scores[:2]), "labels"),
        (lambda: metrics.auroc([1, 1, 1], scores), "both 0"),
        (lambda: metrics.auroc([0, 1, 2], scores), "only 0"),
        (lambda: metrics.auroc(labels, scores * math.nan), "scores must be finite"),
        (lambda: metrics.auroc([], []), "scores"),
        (lambda: metrics.average_precision(labels, scores[:, None]), "scores must have shape"),
        (lambda: metrics.fpr_at_tpr(labels, scores, 0), "tpr"),
        (lambda: metrics.aupro(masks, maps[:, :3]), "nearest"),
        (lambda: metrics.aupro(masks[0], maps[0]), "maps must have shape"),
        (lambda: metrics.aupro(masks[:0], maps[:0]), "not be empty"),
        (lambda: metrics.aupro(masks & False, maps), "anomalous region"),
        (lambda: metrics.aupro(masks | True, maps), "normal pixel"),
        (lambda: metrics.aupro(masks, maps / 0), "maps must be finite"),
        (lambda: metrics.aupro(masks * 255, maps), "masks must hold only"),
        (lambda: metrics.aupro(masks, maps, max_fpr=0), "max_fpr"),
        (lambda: metrics.aupro(masks, maps, max_fpr=1.01), "max_fpr"),
        (lambda: metrics.aupro(masks, maps, max_fpr=math.nan), "max_fpr"),
        (lambda: metrics.pro_curve(masks, maps.long()), "floating point"),
        (lambda: metrics.threshold_at_fpr(scores, 1.0), "fpr"),
        (lambda: metrics.threshold_at_fpr(scores, 0.05), "at least 19 scores"),
        (lambda: metrics.threshold_at_fpr(scores[:0]), "normal_scores"),
        (lambda: metrics.bootstrap_interval(metrics.auroc, labels, scores[:2]), "one entry an image"),
        (lambda: metrics.bootstrap_interval(metrics.auroc, labels, scores, repeats=0), "repeats"),
        (lambda: metrics.bootstrap_interval(metrics.auroc, labels[0], scores[0]), "one entry an image"),
        (lambda: metrics.bootstrap_interval(metrics.auroc, labels[:0], scores[:0]), "at least one image"),
        (lambda: metrics.bootstrap_interval(metrics.auroc, None, scores), "truth must be a tensor"),
        (lambda: metrics.bootstrap_interval(metrics.auroc, labels + 1, scores), "truth must hold only 0"),
        (lambda: metrics.aupro("a", "b"), "masks must be a tensor"),
        (lambda: metrics.aupro(masks, maps, max_fpr="0.3"), "max_fpr must be above 0.*got '0.3'"),
        (lambda: metrics.auroc([0, None, 1], scores), "labels must be a tensor or an array of numbers"),
        (lambda: metrics.threshold_at_fpr(scores, "0.05"), "fpr must be above 0"),
        (lambda: metrics.threshold_at_fpr(scores, None), "fpr must be above 0"),
        (lambda: metrics.bootstrap_interval(metrics.auroc, labels, scores, level=2), "level"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# Representations -------------------------------------------------------------------------------------------------


def blobs(count=60, seed=0):
    labels = torch.arange(count) % 3
    corners = 4 * torch.eye(3, 5, dtype=torch.float64)
    return corners[labels] + torch.randn(count, 5, generator=torch.Generator().manual_seed(seed)), labels


def test_probe_and_neighbours_tell_order_from_noise():
    train, test = blobs(seed=0), blobs(seed=1)
    assert metrics.linear_probe(*train, *test) > 0.95
    assert metrics.knn_accuracy(*train, *test) > 0.95
    shuffled = train[1][torch.randperm(60, generator=torch.Generator().manual_seed(2))]
    assert metrics.linear_probe(train[0], shuffled, *test) < 0.65
    assert metrics.knn_accuracy(train[0], shuffled, *test) < 0.65


def test_the_probe_does_not_depend_on_the_features_scale():
    (train, y), (test, truth) = blobs(seed=0), blobs(seed=1)
    scale = torch.tensor([1e-3, 1.0, 1e3, 10.0, 0.1], dtype=torch.float64)
    other = metrics.linear_probe(train * scale + 5, y, test * scale + 5, truth)
    assert other == metrics.linear_probe(train, y, test, truth)


def test_knn_accuracy_equals_scikit_learn():
    from sklearn.neighbors import KNeighborsClassifier

    (train, y), (test, truth) = blobs(200, seed=3), blobs(100, seed=4)
    train, test = train + 3 * torch.randn(200, 5, generator=torch.Generator().manual_seed(5)), test * 0.3
    for k in (1, 5):
        peer = KNeighborsClassifier(k, metric="cosine").fit(train.numpy(), y.numpy())
        rank = peer.kneighbors(test.numpy(), return_distance=False)
        votes = torch.nn.functional.one_hot(y[torch.as_tensor(rank)], 3).sum(1)
        clear = (votes == votes.amax(1, keepdim=True)).sum(1) == 1              # the two settle ties differently
        found = metrics.knn_accuracy(train, y, test[clear], truth[clear], k=k)
        assert found == pytest.approx(peer.score(test[clear].numpy(), truth[clear].numpy()))


def test_a_tie_goes_to_the_nearer_neighbour():
    train, y = torch.tensor([[1.0, 0.0], [1.0, 0.3]]), torch.tensor([1, 0])
    assert metrics.knn_accuracy(train, y, torch.tensor([[1.0, 0.1]]), torch.tensor([1]), k=2) == 1
    assert metrics.knn_accuracy(train, y, torch.tensor([[1.0, 0.2]]), torch.tensor([0]), k=2) == 1


def test_a_tie_goes_to_the_nearest_whatever_the_classes_are_called():
    """Four neighbours in the order A B B A: two votes each, and the nearest is of A. A majority is never overruled."""
    train = torch.tensor([[1.0, 0.0], [1.0, 0.1], [1.0, 0.2], [1.0, 0.3]])
    asked = torch.tensor([[1.0, 0.0]])
    for a, b in ((0, 1), (1, 0)):
        assert metrics.knn_accuracy(train, torch.tensor([a, b, b, a]), asked, torch.tensor([a]), k=4) == 1
    many = torch.stack([torch.ones(4001), torch.arange(4001.0) / 4001], dim=1)
    votes = torch.tensor([0] * 2000 + [1] * 2001)
    assert metrics.knn_accuracy(many, votes, asked, torch.tensor([1]), k=4001) == 1


def test_alignment_and_uniformity_have_closed_forms():
    z = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    assert metrics.alignment(z, z) == 0
    assert metrics.alignment(z, -z) == pytest.approx(4)
    assert metrics.uniformity(z) == pytest.approx(-4)                           # one pair, squared distance 2
    assert metrics.uniformity(torch.ones(5, 3)) == pytest.approx(0, abs=1e-12)
    generator = torch.Generator().manual_seed(0)
    even, clump = torch.randn(300, 8, generator=generator), 1 + 0.1 * torch.randn(300, 8, generator=generator)
    assert metrics.uniformity(even) < metrics.uniformity(clump) - 2


@pytest.mark.parametrize("function", [metrics.linear_probe, metrics.knn_accuracy])
def test_probes_refuse(function):
    (train, y), (test, truth) = blobs(), blobs()
    with pytest.raises(ValueError, match="train_labels"):
        function(train, y[:-1], test, truth)
    with pytest.raises(ValueError, match="test must have 5 columns"):
        function(train, y, test[:, :3], truth)
    with pytest.raises(ValueError, match="finite"):
        function(train * float("nan"), y, test, truth)
    with pytest.raises(ValueError, match="test_labels"):
        function(train, y, test, truth - 1)


def test_other_measures_refuse():
    with pytest.raises(ValueError, match="two classes"):
        metrics.linear_probe(torch.rand(4, 2), torch.zeros(4, dtype=torch.int64), torch.rand(1, 2), torch.tensor([0]))
    with pytest.raises(ValueError, match="k must be"):
        metrics.knn_accuracy(*blobs(), *blobs(), k=0)
    with pytest.raises(ValueError, match="shape of view1"):
        metrics.alignment(torch.rand(3, 2), torch.rand(4, 2))
    with pytest.raises(ValueError, match="at least 2"):
        metrics.uniformity(torch.rand(1, 2))


def test_mean_interval_is_students():
    from scipy import stats

    values = [0.71, 0.74, 0.69, 0.8, 0.73]
    peer = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    mean, low, high = metrics.mean_interval(values)
    assert (mean, low, high) == pytest.approx((sum(values) / 5, peer.low, peer.high))
    assert metrics.mean_interval([1.0, 1.0]) == (1, 1, 1)
    with pytest.raises(ValueError, match="at least 2"):
        metrics.mean_interval([1.0])
    with pytest.raises(ValueError, match="confidence"):
        metrics.mean_interval(values, 1.5)
