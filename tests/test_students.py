"""Students and their teachers: the paper's losses and scores against slow definitions, and what training changes."""

import shutil

import pytest
import torch
import torch.nn.functional as F

import adlearn
from adlearn import backbones, density, metrics, nets, runtime
from adlearn.methods import OnDescriptors, UninformedStudents, students

SMALL = {"patch_sizes": (17,), "students": 2, "narrow": True, "size": 32}


@pytest.fixture(autouse=True, scope="module")
def short_training():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(UninformedStudents, "training_steps", dict.fromkeys(runtime.PROFILES, 30))
        yield


def stripes(count, seed=1, side=32):
    generator = torch.Generator().manual_seed(seed)
    wave = 0.5 + 0.2 * torch.sin(torch.arange(side) / 2 + torch.rand(count, 1, 1, 1, generator=generator))
    return (wave + 0.03 * torch.randn(count, 1, side, side, generator=generator)).clamp(0, 1)


@pytest.fixture(scope="module")
def scale():
    torch.manual_seed(0)
    return students.Scale("teacher_17_narrow", seen=4).enrol(3)


@pytest.fixture(scope="module")
def fitted():
    torch.manual_seed(0)
    return UninformedStudents(**SMALL).fit(stripes(40), held_out=stripes(40, seed=2))


# Teachers ----------------------------------------------------------------------------------------------------


def test_compactness_is_that_of_the_correlation_matrix():
    torch.manual_seed(0)
    z = torch.randn(50, 6) @ torch.randn(6, 6) + 3
    c = torch.corrcoef(z.T)
    wanted = sum(c[i, j] ** 2 for i in range(6) for j in range(6) if i != j)
    assert students.compactness(z).item() == pytest.approx(wanted.item(), rel=1e-4)
    assert students.compactness(2 * z - 5).item() == pytest.approx(wanted.item(), rel=1e-4)     # no matter of scale
    twins = torch.randn(50, 1).expand(-1, 6)
    assert students.compactness(twins).item() == pytest.approx(30, rel=1e-5)
    assert students.compactness(-twins * torch.tensor([1.0, -1, 1, -1, 1, -1])).item() == pytest.approx(30, rel=1e-5)


def test_the_metric_loss_takes_the_nearer_of_two_negatives():
    anchors, positives = torch.tensor([[0.0, 0], [4, 0]]), torch.tensor([[1.0, 0], [4, 1]])
    # row 0: near 1, negative (4, 0): from the anchor 16, from the positive 9; row 1: near 1, negative (0, 0): 16, 17
    assert students.metric_loss(anchors, positives).item() == pytest.approx(((10 + 1 - 9) + 0) / 2)
    assert students.metric_loss(anchors, anchors.clone(), margin=16.0).item() == pytest.approx(0)


def test_a_shifted_patch_is_the_patch_moved():
    torch.manual_seed(0)
    patches = torch.rand(6, 3, 17, 17)
    moved = students.shifted(patches)
    assert moved.shape == patches.shape
    places = [[(moved[i] - F.pad(patches[i:i + 1], [4] * 4, mode="reflect")[0, :, t:t + 17, left:left + 17])
               .square().mean().sqrt().item() for t in range(9) for left in range(9)] for i in range(6)]
    nearest = [min(of_one) for of_one in places]
    assert 0.05 < min(nearest) < max(nearest) < 0.11                        # one of the 81 places fits, but for noise
    assert len({of_one.index(min(of_one)) for of_one in places}) > 2        # and not the same for all


def test_first_weights_are_evened_out():
    torch.manual_seed(0)
    net, patches = nets.PatchNet(33, shrink=8), torch.rand(64, 3, 33, 33)
    students.even_out(net, patches)
    for depth in (2, 5, 8, 10):                                             # behind each convolution
        found = net[:depth](patches)
        assert found.mean((0, 2, 3)).abs().max() < 1e-4
        assert (found.std((0, 2, 3)) - 1).abs().max() < 1e-4
    assert torch.equal(net[0].weight, nets.PatchNet(33)[0].weight)


@pytest.mark.parametrize("metric", [0.0, 0.1])
def test_a_teacher_learns_what_a_large_network_says(metric):
    torch.manual_seed(0)
    patches = (255 * F.interpolate(torch.rand(400, 3, 4, 4), (17, 17))).byte()
    colour = patches.float().mean((2, 3))
    targets = (colour - colour.mean(0)) / colour.std(0)
    net = nets.PatchNet(17, shrink=8)
    before = [value.clone() for value in net.state_dict().values()]
    decode, history = students.distil_teacher(net, patches[:300], targets[:300], steps=80, lr=3e-3, compact=0.01,
                                              metric=metric)
    with torch.no_grad():
        missed = (decode(net(patches[300:] / 255).flatten(1)) - targets[300:]).square().mean().item()
    assert missed < 0.8
    assert history[-1] < 0.5 * history[0]
    assert not net.training
    after = list(net.state_dict().values())
    assert torch.equal(before[0], after[0])                                 # the fixed colours
    assert not any(torch.equal(a, b) for a, b in zip(before[2:], after[2:], strict=True))


def test_compactness_and_metric_loss_are_part_of_the_training():
    torch.manual_seed(0)
    patches = (255 * F.interpolate(torch.rand(128, 3, 4, 4), (17, 17))).byte()
    targets = torch.randn(128, 2)
    found = {}
    for compact, metric in ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0)):
        torch.manual_seed(1)
        net = nets.PatchNet(17, shrink=8)
        students.distil_teacher(net, patches, targets, steps=30, lr=3e-3, compact=compact, metric=metric)
        with torch.no_grad():
            said, near = (net(images).flatten(1) for images in (patches / 255, students.shifted(patches / 255)))
        found[compact, metric] = students.compactness(said).item(), students.metric_loss(said, near).item()
    assert found[1, 0][0] < 0.5 * found[0, 0][0]
    assert found[0, 1][1] < 0.9 * found[0, 0][1]


def test_patches_must_be_bytes_with_a_target_each_and_of_the_networks_size():
    net = nets.PatchNet(17, shrink=8)
    before = [value.clone() for value in net.state_dict().values()]
    good = torch.zeros(8, 3, 17, 17, dtype=torch.uint8)
    for patches, targets in ((good / 255, torch.rand(8, 2)), (good, torch.rand(7, 2)), (good[:, :1], torch.rand(8, 2)),
                             (good[:, :, :16], torch.rand(8, 2)), (good[:1], torch.rand(1, 2))):
        with pytest.raises(ValueError, match="patches must be"):
            students.distil_teacher(net, patches, targets, steps=1)
    assert all(torch.equal(a, b) for a, b in zip(before, net.state_dict().values(), strict=True))


@pytest.mark.parametrize("name", backbones.TEACHERS)
def test_shipped_teachers(name):
    teacher = backbones.teacher(name)
    p, shrink = backbones.TEACHERS[name]
    assert teacher.origin == "adlearn"
    assert (teacher.net.patch_size, teacher.net.dim) == (p, 128 // shrink)
    assert not any(weight.requires_grad for weight in teacher.parameters())
    assert not teacher.train().net.training
    record = backbones.shipped(name)
    assert record["explained"] > 0.2                            # of the features' variance, on patches not learnt from
    assert record["seconds"]["training"] > 0
    spread = teacher.net(torch.rand(64, 3, p, p)).flatten(1).std(0)
    assert spread.min() > 1e-3                                              # no dimension says the same of everything
    image = torch.rand(1, 3, 40, 40)
    patch = F.pad(image, (p // 2, p - 1 - p // 2) * 2, mode="reflect")[:, :, 20:20 + p, 7:7 + p]
    torch.testing.assert_close(teacher(image)[0, :, 20, 7], teacher.net(patch).flatten(), rtol=1e-4, atol=1e-4)


def test_a_teacher_from_a_folder_comes_first(tmp_path, monkeypatch):
    from safetensors.torch import save_file

    other = nets.PatchNet(17, shrink=4)
    path = tmp_path / "teacher_17_narrow.safetensors"
    save_file({key: value.half() for key, value in other.state_dict().items()}, path)
    monkeypatch.setenv("ADLEARN_WEIGHTS", str(tmp_path))
    found = backbones.teacher("teacher_17_narrow")
    assert found.origin == str(path)
    torch.testing.assert_close(found.net[1].weight, other[1].weight, rtol=1e-3, atol=1e-3)
    assert backbones.teacher("teacher_33_narrow").origin == "adlearn"


def test_teachers_that_cannot_be_had(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="name must be one of"):
        backbones.teacher("teacher_18")
    monkeypatch.setattr(backbones, "SHIPPED", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"python -m adlearn\.pretrain teacher_17"):
        backbones.teacher("teacher_17")


def test_a_damaged_teacher_is_refused(tmp_path, monkeypatch):
    for file in backbones.SHIPPED.glob("teacher_17_narrow.*"):
        shutil.copy(file, tmp_path)
    with open(tmp_path / "teacher_17_narrow.safetensors", "r+b") as file:
        file.seek(-1, 2)
        file.write(b"x")
    monkeypatch.setattr(backbones, "SHIPPED", tmp_path)
    with pytest.raises(ValueError, match="damaged or another one"):
        backbones.teacher("teacher_17_narrow")


# Students ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "side"), [("teacher_17_narrow", 24), ("teacher_33_narrow", 24),
                                            ("teacher_33_narrow", 40)])
def test_windows_show_every_pixels_patch_equally_often(name, side):
    """Of images whose pixels are their own numbers."""
    torch.manual_seed(0)
    scale = students.Scale(name, seen=4)
    p, stride = scale.patch_size, scale.stride
    numbers = torch.arange(side * side, dtype=torch.float32).view(1, 1, side, side).expand(4000, -1, -1, -1)
    windows = torch.cat([scale.windows(part) for part in numbers.split(500)])
    middle = windows[:, 0, p // 2:windows.shape[2] - (p - 1 - p // 2):stride,
                     p // 2:windows.shape[3] - (p - 1 - p // 2):stride]
    patches = middle.shape[1] * middle.shape[2]
    assert middle.shape[1] == middle.shape[2] <= 4
    assert (side // stride) % middle.shape[1] == 0
    share = torch.bincount(middle.flatten().long(), minlength=side * side) / 4000       # of draws with this pixel
    expected = patches / side ** 2
    assert share.mean().item() == pytest.approx(expected, rel=1e-4)
    assert (share - expected).abs().max() < 5 * (expected / 4000) ** 0.5
    assert len({tuple(window.tolist()) for window in middle[:, 0, :1]}) > 20            # each image has its own place


def test_the_loss_is_on_average_that_of_all_pixels(scale):
    torch.manual_seed(1)
    images = torch.rand(2, 3, 24, 24)
    with torch.no_grad():
        wanted = scale.target(scale.teacher(images))
        all_pixels = sum((adlearn.dense.dense_features(net, images, 17) - wanted).square().sum(1).mean()
                         for net in scale.students)
        drawn = torch.stack([scale.loss(images) for _ in range(300)])
    error = drawn.std() / len(drawn) ** 0.5
    assert abs(drawn.mean() - all_pixels) < 4 * error
    assert error < 0.05 * all_pixels


def test_error_and_disagreement_are_the_papers(scale):
    torch.manual_seed(0)
    said, answers = torch.randn(2, 32, 5, 6), [torch.randn(2, 32, 5, 6) for _ in range(3)]
    error, disagreement = scale.deviations(said, answers)
    y = (said - scale.mean_[:, None, None]) / scale.std_[:, None, None]
    for b, r, c in ((0, 0, 0), (1, 4, 5), (0, 2, 3)):
        rows = [answer[b, :, r, c] for answer in answers]
        mean = sum(rows) / 3
        assert error[b, r, c].item() == pytest.approx((mean - y[b, :, r, c]).square().sum().item(), rel=1e-4)
        v = sum(row.square().sum() for row in rows) / 3 - mean.square().sum()
        assert disagreement[b, r, c].item() == pytest.approx(v.item(), rel=1e-4)
    assert scale.deviations(said, answers[:1] * 3)[1].max() < 1e-12         # identical students agree


def test_targets_and_scores_are_standardised(fitted):
    scale = fitted.scales[0]
    images = fitted.seen_as(stripes(40))
    with torch.no_grad():
        targets = scale.target(scale.teacher(images)).movedim(1, 0).flatten(1)          # all pixels
        e, v = scale.maps(fitted.seen_as(stripes(60, seed=5)))
    assert targets.mean(1).abs().max() < 0.1
    assert (targets.std(1) - 1).abs().max() < 0.1
    for values, (mean, std) in ((e, scale.error_), (v, scale.disagreement_)):           # of other normal images
        assert values.mean().item() == pytest.approx(mean.item(), rel=0.1)
        assert values.std().item() == pytest.approx(std.item(), rel=0.2)


def test_the_map_is_the_mean_over_sizes_of_the_standardised_sum():
    torch.manual_seed(0)
    options = {**SMALL, "patch_sizes": (17, 33)}
    detector = UninformedStudents(**options).fit(stripes(20))
    images = stripes(2, seed=3)
    with torch.no_grad():
        found = detector.anomaly_map(images)
        wanted = torch.zeros_like(found)
        parts = {"error": torch.zeros_like(found), "disagreement": torch.zeros_like(found)}
        for scale in detector.scales:
            e, v = scale.maps(detector.seen_as(images))
            e, v = (e - scale.error_[0]) / scale.error_[1], (v - scale.disagreement_[0]) / scale.disagreement_[1]
            wanted += (e + v) / 2
            parts["error"] += e / 2
            parts["disagreement"] += v / 2
    torch.testing.assert_close(found, wanted)
    for name, part in parts.items():
        other = UninformedStudents(**options, score_by=name)
        other.load_state_dict(detector.state_dict())
        torch.testing.assert_close(other.eval().anomaly_map(images), part)


def test_students_learn_and_differ_and_the_teacher_stays(fitted):
    assert fitted.losses_[-1] < 0.7 * fitted.losses_[0]
    scale = fitted.scales[0]
    assert not torch.equal(scale.students[0][1].weight, scale.students[1][1].weight)
    assert scale.teacher.sha256 == backbones.teacher("teacher_17_narrow").sha256
    untouched = backbones.teacher("teacher_17_narrow").state_dict()
    assert all(torch.equal(value, untouched[key]) for key, value in scale.teacher.state_dict().items())
    assert all(weight.grad is None for weight in scale.teacher.parameters())


def test_what_is_planted_is_found_where_it_is(fitted):
    good = stripes(12, seed=7)
    bad = good.clone()
    bad[:, :, 8:18, 10:20] = 0.9
    masks = torch.zeros(24, 32, 32, dtype=torch.bool)
    masks[12:, 8:18, 10:20] = True
    assert metrics.pixel_auroc(masks, fitted.localize(torch.cat([good, bad]))) > 0.85


def test_nobody_learns_from_what_is_held_out(monkeypatch):
    seen = {"learnt": [], "held out": []}
    monkeypatch.setattr(students.Scale, "standardise_targets", lambda self, images: seen["learnt"].append(images))
    monkeypatch.setattr(students.Scale, "standardise_scores", lambda self, images: seen["held out"].append(images))
    trained = []
    train = students.training.train
    monkeypatch.setattr(students.training, "train",
                        lambda *args, **settings: trained.append(args[2]) or train(*args, **settings))
    given, other = stripes(20), stripes(5, seed=3)
    UninformedStudents(**SMALL).fit(given, epochs=1)
    UninformedStudents(**SMALL).fit(given, epochs=1, held_out=other)
    assert [len(images) for images in seen["held out"]] == [2, 5]
    assert [len(images) for images in seen["learnt"]] == [len(images) for images in trained] == [18, 20]

    def rows(images):
        return {bytes(image[0].numpy().tobytes()) for image in images}

    assert not rows(seen["held out"][0]) & rows(trained[0])
    assert rows(seen["held out"][0]) | rows(trained[0]) == rows(given)
    assert torch.equal(seen["learnt"][0], trained[0])


def test_too_few_or_equal_images_are_refused():
    for count, settings in ((2, {}), (1, {"held_out": stripes(3)})):
        with pytest.raises(ValueError, match=f"at least 3 to learn from and to hold one out, got {count}"):
            UninformedStudents(**SMALL).fit(stripes(count), **settings)
    with pytest.raises(ValueError, match="images must differ"):
        UninformedStudents(**SMALL).fit(torch.full((6, 1, 32, 32), 0.5))
    with pytest.raises(ValueError, match="rows must differ"):
        rival("nearest_neighbor").fit(torch.full((6, 1, 32, 32), 0.5))
    with pytest.raises(ValueError, match="lr must be"):
        UninformedStudents(**SMALL).fit(stripes(6), lr=0)


@pytest.mark.parametrize(("options", "message"), [
    ({"patch_sizes": (16,)}, "patch_sizes must be one of"),
    ({"patch_sizes": ()}, "at least one size"),
    ({"patch_sizes": ([17],)}, "patch_sizes must be one of"),
    ({"narrow": 1}, "narrow must be"),
    ({"patch_sizes": (17, 17)}, "none twice"),
    ({"students": 1}, "at least 2 to disagree"),
    ({"score_by": "variance"}, "score_by must be one of"),
    ({"size": 36}, "multiple of 8"),
    ({"size": 32, "patch_sizes": (65,)}, "size must be"),
    ({"narrow": "yes"}, "narrow must be"),
])
def test_bad_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        UninformedStudents(**options)


def test_one_student_has_an_error():
    torch.manual_seed(0)
    detector = UninformedStudents(**{**SMALL, "students": 1}, score_by="error").fit(stripes(12), epochs=1)
    assert detector.score(stripes(2)).isfinite().all()


def test_images_of_any_shape_have_maps_of_their_own_shape(fitted):
    assert fitted.localize(torch.rand(2, 1, 40, 52)).shape == (2, 40, 52)


# Rivals ------------------------------------------------------------------------------------------------------


def rival(rule, **options):
    return OnDescriptors(**{"rule": rule, "patch_sizes": (17,), "narrow": True, "size": 32, "sample": 600} | options)


def test_the_nearest_neighbour_is_that_of_all_kept_descriptors():
    torch.manual_seed(0)
    detector = rival("nearest_neighbor").fit(stripes(6))
    bank = detector.rule_.rows
    assert len(bank) == 600
    image = stripes(1, seed=4)
    with torch.no_grad():
        rows = (detector.describe(image)[0].flatten(1).T - detector.mean_) @ detector.axes_
        wanted = torch.cdist(rows.double(), bank.double()).amin(1).view(32, 32).float()
        torch.testing.assert_close(detector.anomaly_map(image)[0], wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("rule", students.RULES)
def test_rivals_keep_the_variance_asked_for(rule):
    torch.manual_seed(0)
    widths = [rival(rule, variance=share).fit(stripes(6)).axes_.shape[1] for share in (0.5, 0.95, 1.0)]
    assert widths[0] < widths[1] < widths[2] == 32


@pytest.mark.parametrize("rule", students.RULES)
def test_rivals_find_what_is_planted_and_can_be_kept(rule, tmp_path):
    torch.manual_seed(0)
    detector = rival(rule, patch_sizes=(17, 33)).fit(stripes(12))
    good = stripes(6, seed=7)
    bad = good.clone()
    bad[:, :, 8:18, 10:20] = 0.9
    masks = torch.zeros(12, 32, 32, dtype=torch.bool)
    masks[6:, 8:18, 10:20] = True
    maps = detector.localize(torch.cat([good, bad]))
    assert metrics.pixel_auroc(masks, maps) > 0.8
    detector.save(tmp_path / "rival.pt")
    torch.testing.assert_close(adlearn.load(tmp_path / "rival.pt").localize(bad), maps[6:])


def test_the_gamma_of_the_rivals_is_that_of_scikit_learn():
    from sklearn.svm import OneClassSVM

    torch.manual_seed(0)
    rows = torch.randn(200, 5) * torch.tensor([1.0, 2, 3, 4, 5])
    ours = density.OneClassSVM(gamma="scale").fit(rows)
    theirs = OneClassSVM(nu=0.5, gamma="scale").fit(rows.double().numpy())
    assert ours.gamma_.item() == pytest.approx(theirs._gamma, rel=1e-6)
    assert ((ours.score(rows) > 0).numpy() == (theirs.decision_function(rows.double().numpy()) < 0)).mean() > 0.98


def test_an_unknown_rule_is_refused():
    with pytest.raises(ValueError, match="rule must be one of"):
        OnDescriptors(rule="svm")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu(tmp_path):
    for detector in (UninformedStudents(**SMALL), *(rival(rule) for rule in students.RULES)):
        torch.manual_seed(0)
        maps = detector.cuda().fit(stripes(12)).localize(stripes(3, seed=2))
        assert maps.isfinite().all()
        detector.save(tmp_path / "detector.pt")
        torch.testing.assert_close(adlearn.load(tmp_path / "detector.pt").localize(stripes(3, seed=2)), maps,
                                   rtol=0.1, atol=0.05 * maps.std().item())             # TF32 on one side
