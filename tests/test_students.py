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
    return UninformedStudents(**SMALL).fit(stripes(30))


# Teachers ----------------------------------------------------------------------------------------------------


def test_compactness_is_that_of_the_correlation_matrix():
    torch.manual_seed(0)
    z = torch.randn(50, 6) @ torch.randn(6, 6) + 3
    c = torch.corrcoef(z.T)
    wanted = sum(c[i, j] ** 2 for i in range(6) for j in range(6) if i != j)
    assert students.correlated(z).item() == pytest.approx(wanted.item(), rel=1e-4)
    assert students.correlated(2 * z - 5).item() == pytest.approx(wanted.item(), rel=1e-4)     # no matter of scale
    twins = torch.randn(50, 1).expand(-1, 6)
    assert students.correlated(twins).item() == pytest.approx(30, rel=1e-5)
    assert students.correlated(-twins * torch.tensor([1.0, -1, 1, -1, 1, -1])).item() == pytest.approx(30, rel=1e-5)


def test_triplets_take_the_nearer_of_two_negatives():
    anchors, positives = torch.tensor([[0.0, 0], [4, 0]]), torch.tensor([[1.0, 0], [4, 1]])
    # row 0: near 1, negative (4, 0): from the anchor 16, from the positive 9; row 1: near 1, negative (0, 0): 16, 17
    assert students.triplets(anchors, positives).item() == pytest.approx(((10 + 1 - 9) + 0) / 2)
    assert students.triplets(anchors, anchors.clone(), margin=16.0).item() == pytest.approx(0)


def test_a_patch_beside_is_the_patch_moved():
    torch.manual_seed(0)
    patches = torch.rand(6, 3, 17, 17)
    moved = students.beside(patches)
    assert moved.shape == patches.shape
    noise = [min((moved[i] - F.pad(patches[i:i + 1], [4] * 4, mode="reflect")[0, :, t:t + 17, left:left + 17])
                 .square().mean() for t in range(9) for left in range(9)).sqrt() for i in range(6)]
    assert max(noise) < 0.11                                                # one of the 81 places fits, but for noise


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


def test_patches_must_be_bytes_with_a_target_each():
    net = nets.PatchNet(17, shrink=8)
    for patches, targets in ((torch.rand(8, 3, 17, 17), torch.rand(8, 2)),
                             (torch.zeros(8, 3, 17, 17, dtype=torch.uint8), torch.rand(7, 2))):
        with pytest.raises(ValueError, match="patches must be"):
            students.distil_teacher(net, patches, targets, steps=1)


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
    image = torch.rand(1, 3, 40, 40)
    patch = F.pad(image, (p // 2, p - 1 - p // 2) * 2, mode="reflect")[:, :, 20:20 + p, 7:7 + p]
    torch.testing.assert_close(teacher(image)[0, :, 20, 7], teacher.net(patch).flatten(), rtol=1e-4, atol=1e-4)


def test_shipped_weights_are_small():
    files = list(backbones.SHIPPED.glob("*"))
    assert {file.name for file in files} == {f"{name}.{end}" for name in backbones.TEACHERS
                                             for end in ("safetensors", "json")}
    assert sum(file.stat().st_size for file in files) <= 13e6


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


def test_some_patches_are_every_pixels_equally_often():
    """Of an image whose pixels are their own numbers, at all places that can be drawn."""
    torch.manual_seed(0)
    side = 24
    for name, stride in (("teacher_17_narrow", 1), ("teacher_33_narrow", 4)):
        scale = students.Scale(name, seen=4)
        numbers = torch.arange(side * side, dtype=torch.float32).view(1, 1, side, side)
        counts = torch.zeros(side * side, dtype=torch.int64)
        draws = 4000
        for _ in range(draws):
            window = scale.some(numbers)
            p = scale.patch_size
            middle = window[0, 0, p // 2:window.shape[2] - (p - 1 - p // 2):stride,
                            p // 2:window.shape[3] - (p - 1 - p // 2):stride]
            counts += torch.bincount(middle.flatten().long(), minlength=side * side)
        share = counts.double() / draws                                     # of draws in which a pixel was seen
        rows = side // stride
        expected = (rows / -(-rows // 4)) ** 2 / side ** 2
        assert (share / expected - 1).abs().max() < 0.5
        assert abs(share.mean() / expected - 1) < 0.03


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
        e, v = scale.maps(fitted.seen_as(stripes(40, seed=5)))
    assert targets.mean(1).abs().max() < 0.3
    assert (targets.std(1) - 1).abs().max() < 0.3
    for values, (mean, std) in ((e, scale.error_), (v, scale.disagreement_)):           # of other normal images
        assert values.mean().item() == pytest.approx(mean.item(), rel=0.3)
        assert values.std().item() == pytest.approx(std.item(), rel=0.5)


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


def test_held_out_images_may_be_given(monkeypatch):
    seen = []
    monkeypatch.setattr(students.Scale, "standardise_scores", lambda self, images: seen.append(len(images)))
    learnt = []
    monkeypatch.setattr(students.Scale, "standardise_targets", lambda self, images: learnt.append(len(images)))
    UninformedStudents(**SMALL).fit(stripes(20), epochs=1)
    UninformedStudents(**SMALL).fit(stripes(20), epochs=1, held_out=stripes(5))
    assert seen == [2, 5]
    assert learnt == [18, 20]


@pytest.mark.parametrize(("options", "message"), [
    ({"patch_sizes": (16,)}, "patch_sizes must be one of"),
    ({"patch_sizes": ()}, "at least one size"),
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
    bank = detector.judge.rows
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
