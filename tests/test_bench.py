import hashlib
import json
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from adlearn import augment, bench, cache, data, losses, metrics, results, runtime, speed, studies
from adlearn.methods import SPADE, UninformedStudents, ViTSPADE


@pytest.fixture(autouse=True)
def own_cache(cache_folder):
    return cache_folder


def test_a_run_writes_a_result(tmp_path):
    path = bench.run("nearest_neighbors", "pixels", "digits", into=tmp_path)
    record = results.read(path)
    assert path.name == "nearest_neighbors-pixels-digits-quick-s0.json"
    assert record["figures"]["mean_auroc"] > 0.9
    assert len(record["figures"]["auroc"]) == 10
    assert record["figures"]["mean_auroc"] == pytest.approx(sum(record["figures"]["auroc"].values()) / 10)
    assert record["versions"]["torch"]
    assert not list((cache.folder() / "bench").iterdir())


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path, monkeypatch):
    judged = []
    judge = studies.judge

    def stop_at_four(build, split, seed):
        if len(judged) == 4:
            raise KeyboardInterrupt
        judged.append(split.name)
        return judge(build, split, seed)

    monkeypatch.setattr(studies, "judge", stop_at_four)
    with pytest.raises(KeyboardInterrupt):
        bench.run("kmeans", "pixels", "digits", into=tmp_path)
    assert not list(tmp_path.glob("*.json"))
    monkeypatch.setattr(studies, "judge", lambda *a: judged.append(a[1].name) or judge(*a))
    bench.run("kmeans", "pixels", "digits", into=tmp_path)
    assert len(judged) == len(set(judged)) == 10


def test_cases_of_other_settings_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "_commit", lambda: "old code")
    monkeypatch.setattr(studies, "judge", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    record = {"method": "kmeans", "variant": "pixels", "data": "digits", "profile": "quick", "seed": 0}
    cache.replace(cache.folder() / "bench" / f"{results.name(record)}.json",
                  json.dumps({"settings": {}, "cases": {}}).encode())
    with pytest.raises(ValueError, match="other settings or code"):
        bench.run("kmeans", "pixels", "digits", into=tmp_path)


def test_unknown_names_are_refused(capsys):
    with pytest.raises(ValueError, match="method must be one of"):
        bench.run("deep", "pixels", "digits")
    assert bench.main(["nearest_neighbors", "--data", "mnist"]) == 2
    assert "data must be one of" in capsys.readouterr().err
    assert bench.main(["--list"]) == 0
    assert "elpv_mono" in capsys.readouterr().out


def test_speed_compares_equal_results():
    """The comparisons stop when the two results disagree; so on equal work they run through, and on other work not."""
    speed.aupro_ratio(images=6, size=48, repeats=1)
    speed.neighbors_ratio(queries=50, bank=400, width=16, repeats=1)
    with pytest.raises(RuntimeError, match="disagree"):
        speed._compare(lambda: 1.0, lambda: 1.1, 1)


def test_a_step_of_csi_is_compared_with_a_bare_loop():
    found = speed.step_ratio(encoder="small", images=4, repeats=1)
    assert found["ratio"] > 0
    assert 0 < speed.step_share(encoder="small", images=4, repeats=1) < 1


def test_losses_that_disagree_are_not_timed(monkeypatch):
    info_nce = losses.info_nce
    monkeypatch.setattr(losses, "info_nce", lambda *a, **k: 2 * info_nce(*a, **k))
    with pytest.raises(RuntimeError, match="the losses disagree"):
        speed.step_ratio(encoder="small", images=4, repeats=1)


@pytest.mark.filterwarnings("ignore")                            # the peer's own, about what it imports
def test_dense_features_are_compared_with_patches(monkeypatch):
    found = speed.dense_ratio(33, shrink=8, size=48, sample=16, repeats=1)
    assert found.keys() == {"ours_seconds", "peer_seconds", "ratio", "of_peak", "megabytes"}
    assert found["ratio"] > 2                                      # a hundred on a quiet machine, at published widths
    monkeypatch.setattr(speed.dense, "dense_features", lambda net, images, p: torch.rand(1, net.dim, 48, 48))
    with pytest.raises(RuntimeError, match="disagree"):
        speed.dense_ratio(33, shrink=8, size=48, sample=16, repeats=1)


def test_the_search_of_a_gallery_is_timed_against_all_differences(monkeypatch):
    found = speed.gallery_ratio(size=64, neighbors=2, sample=16, repeats=1)
    assert found["ratio"] == pytest.approx(found["peer_seconds"] / found["ours_seconds"])
    assert 0 < found["of_peak"] < 2
    assert 100 < found["megabytes"] < 2000
    monkeypatch.setattr("adlearn.methods.spade.knn", lambda rows, bank, k: (torch.rand(len(rows), k), None))
    with pytest.raises(RuntimeError, match="the two disagree"):
        speed.gallery_ratio(size=64, neighbors=2, sample=16, repeats=1)


@pytest.mark.parametrize("loss", speed.LOSSES)
def test_losses_are_compared_on_equal_work(loss):
    found = speed.loss_ratio(loss, rows=64, repeats=1)
    assert found["ratio"] > 0


@pytest.mark.filterwarnings("ignore")
def test_memory_is_measured_in_processes_of_their_own():
    held = torch.ones(200_000_000)                                 # 800 MB, which a child's peak must not inherit
    del held
    found = speed.loss_memory("info_nce", rows=400)                # the peer lists all triples: 400³ numbers
    assert found["peer_megabytes"] > 400
    assert found["ours_megabytes"] < 100


def test_a_study_is_a_run_like_any_other(tmp_path, monkeypatch):
    def case(seed):
        return {"figures": {"accuracy": 0.5 + 0.01 * seed}, "seconds": {"train": 1.0}}

    monkeypatch.setitem(studies.STUDIES, ("simclr", "head"), ("parts", {"none": case, "linear": case}))
    record = results.read(bench.run("simclr", "head", "parts", seed=3, into=tmp_path))
    assert record["figures"] == {"accuracy": {"none": 0.53, "linear": 0.53}}
    assert record["seconds"] == {"train": 2.0}
    with pytest.raises(ValueError, match="data must be one of 'parts'"):
        bench.run("simclr", "head", "digits", into=tmp_path)
    with pytest.raises(ValueError, match="variant must be one of"):
        bench.run("simclr", "pixels", "parts", into=tmp_path)


ONE_CLASS = [(method, variant) for method in ("deep_svdd", "goad", "two_stage", "csi")
             for variant in bench.METHODS[method]]


@pytest.mark.parametrize(("method", "variant"), ONE_CLASS, ids=map("-".join, ONE_CLASS))
def test_the_papers_schedules_run_on_cifar10(method, variant, tmp_path, monkeypatch):
    """End to end in the paper profile, with its networks and optimisers, on a few images and for one step."""
    def few(name, root, seed):
        generator = torch.Generator().manual_seed(seed)
        train, calibration, test = (torch.rand(n, 3, 32, 32, generator=generator) for n in (4, 2, 4))
        return data.OneClass(train=train, calibration=calibration, test=test, labels=torch.tensor([0, 0, 1, 1]),
                             masks=None, kinds=["good", "good", "cat", "dog"], name=name, licence="", source="")

    monkeypatch.setenv("ADLEARN_PROFILE", "paper")
    monkeypatch.setattr(data, "cifar10", few)
    monkeypatch.setitem(bench.DATA, "cifar10", {"ship": bench.DATA["cifar10"]["ship"]})
    detector = type(bench.METHODS[method][variant]())
    for steps in ("training_steps", "pretraining_steps"):
        monkeypatch.setattr(detector, steps, dict.fromkeys(runtime.PROFILES, 1), raising=False)
    record = results.read(bench.run(method, variant, "cifar10", into=tmp_path))
    assert record["profile"] == "paper"
    figures = record["figures"]
    assert set(figures["auroc"]) == {"ship"}
    extra = {"two_stage": {"auroc_kde", "auroc_ocsvm", "auroc_gaussian", "uniformity"},
             "csi": {"auroc_con", "auroc_cls", "auroc_identity", "auroc_cosine"}}.get(method, set())
    assert extra <= figures.keys()
    if method == "two_stage":
        assert figures["auroc_kde"] == figures["auroc"]


def test_a_share_of_the_labels_is_made_wrong():
    labels = torch.arange(1000) % 10
    noisy = studies.wrong(labels, 0.4, seed=1)
    assert (noisy != labels).sum() == 400
    assert torch.equal(noisy, studies.wrong(labels, 0.4, seed=1))
    moved = (noisy - labels)[noisy != labels] % 10
    assert set(moved.tolist()) == set(range(1, 10))
    assert torch.equal(studies.wrong(labels, 0, seed=1), labels)


@pytest.mark.parametrize("study", [("metric_learning", "few_labels"), ("simclr", "objectives")], ids="-".join)
def test_the_cases_of_a_study_see_as_many_images_as_often(study, monkeypatch):
    """Where methods are compared: equal images and first weights, and steps and views within a tenth."""
    from adlearn import training

    few = studies.images(0, per_class=16)
    monkeypatch.setattr(studies, "images", lambda seed, per_class=300: few)
    monkeypatch.setattr(studies, "STEPS", 6)
    monkeypatch.setattr(studies, "EPOCHS", 1)
    work, first, looked = {}, {}, []
    fresh, train, view = studies.fresh, training.train, augment.Compose.apply
    monkeypatch.setattr(augment.Compose, "apply", lambda *a: looked.append(1) or view(*a))

    def watched(seed, dim=None):
        encoder = fresh(seed, dim)
        first[name] = encoder[0].weight.detach().clone()
        return encoder

    def counted(module, loss, *data, epochs, batch_size, **options):
        work[name] = epochs * len(training.Shuffled(len(data[0]), batch_size))
        return train(module, loss, *data, epochs=epochs, batch_size=batch_size, **options)

    monkeypatch.setattr(studies, "fresh", watched)
    monkeypatch.setattr(training, "train", counted)
    for name, case in studies.STUDIES[study][1].items():
        if name != "untrained":
            looked.clear()
            case(0)
            assert len(looked) == 2 * work[name], name               # both views of every batch
    assert max(work.values()) <= 1.1 * min(work.values()), work
    assert all(torch.equal(weight, first[name]) for weight in first.values())


@pytest.mark.parametrize("study", [("metric_learning", "few_labels"), ("metric_learning", "label_noise"),
                                   ("metric_learning", "mining"), ("simclr", "head"), ("simclr", "objectives"),
                                   ("distillation", "compression"), ("distillation", "noisy_student"),
                                   ("vit", "amount")],
                         ids="-".join)
def test_the_cases_of_a_study_train_and_judge(study, monkeypatch):
    """Every case once, on few images and for few steps: what it needs is there and its figures are shares."""
    from adlearn import training

    few, train = studies.images(0, per_class=16), training.train
    monkeypatch.setattr(studies, "images", lambda seed, per_class=300: few)
    monkeypatch.setattr(training, "train", lambda *a, **k: train(*a, **{**k, "epochs": 1}))
    monkeypatch.setattr(studies, "SEEN_AT", 64)
    for name, case in studies.STUDIES[study][1].items():
        figures = case(0)["figures"]
        assert figures, name
        assert all(0 <= value <= 1 for value in figures.values()), name


@pytest.mark.parametrize("variant", ["moons", "parts"])
def test_semi_supervised_cases_train_and_judge(variant, monkeypatch):
    from adlearn import training
    from adlearn.methods import meta_pseudo_labels

    train, asked = training.train, []

    def short(module, name):
        own = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, **k: asked.append((name, k.get("feedback"))) or
                            own(*a, **{**k, "steps": 3}))

    short(meta_pseudo_labels, "learn")
    short(meta_pseudo_labels, "finetune")
    short(studies, "softly")
    monkeypatch.setattr(training, "train", lambda *a, **k: train(*a, **{**k, "epochs": 1}))
    monkeypatch.setattr(studies, "images", lambda seed, per_class=300: data.parts_labelled(n=22, seed=seed))
    for name, case in studies.STUDIES["meta_pseudo_labels", variant][1].items():
        asked.clear()
        figures = case(0)["figures"]
        assert all(0 <= value <= 1 for value in figures.values()), name
        assert ("accuracy_of_teacher" in figures) == (name != "supervised")
        learnt = [feedback for step, feedback in asked if step == "learn"]
        assert learnt == (["none"] if name.endswith(("fixed teacher", "no feedback")) else
                          [None] if name.endswith(("MPL", "opposite sign")) else []), name


@pytest.mark.parametrize("study", [("two_stage", "batch"), ("csi", "longer"), ("csi", "ood_ness"), ("csi", "shifts")],
                         ids="-".join)
def test_the_one_class_cases_of_a_study_train_and_judge(study, monkeypatch):
    from adlearn import training

    asked, train, parts = [], training.train, data.parts
    monkeypatch.setattr(data, "parts", lambda name, *, seed: asked.append((name, seed)) or parts(name, n=20))
    monkeypatch.setattr(training, "train", lambda *a, **k: train(*a, **{**k, "epochs": 1}))
    for name, case in studies.STUDIES[study][1].items():
        figures = case(3)["figures"]
        assert all(0 <= value <= 1 for figure, value in figures.items() if figure != "uniformity"), name
        plain = study == ("csi", "ood_ness") or name.endswith("no shift") or name.startswith("SimCLR")
        assert ("ood_ness_rotate" in figures) == plain
    assert {seed for _, seed in asked} == {studies.FIRST_SEED + 3}                       # images that no chapter shows


def test_a_study_may_bear_the_name_of_a_detector(tmp_path, monkeypatch):
    monkeypatch.setattr(studies, "judge", lambda *a, **k: {"figures": {"auroc": 0.5}, "seconds": {"fit": 1.0}})
    figures = results.read(bench.run("two_stage", "batch", "parts", into=tmp_path))["figures"]
    assert set(figures) == {"auroc"}                                     # a mean over what is compared says nothing
    assert set(figures["auroc"]) == set(studies.STUDIES["two_stage", "batch"][1])


def test_longer_trainings_are_whole_multiples_of_the_detectors_own(monkeypatch):
    from adlearn import training

    asked, parts = [], data.parts
    monkeypatch.setattr(data, "parts", lambda name, *, seed: parts(name, n=20))
    monkeypatch.setattr(training, "passes", lambda count, batch_size, steps: asked.append((steps, batch_size)) or 1)
    cases = studies.STUDIES["csi", "longer"][1]
    own = {"GOAD": (400, 16), "rotation": (600, 32), "contrastive": (600, 32), "augmented": (600, 32),
           "SimCLR with CSI's score": (300, 32), "CSI": (300, 32)}
    assert set(cases) == {f"{name}, steps times {factor}" for name in own for factor in (1, 4, 16)}
    for case in cases.values():
        case(0)
    assert asked == [(factor * steps, batch_size) for factor in (1, 4, 16) for steps, batch_size in own.values()]


def test_a_shift_as_an_augmentation_gives_one_copy_of_each_image():
    images = torch.rand(40, 3, 8, 8)
    drawn = studies.one_of("rotate", images)
    equal = (augment.rotations(images).unflatten(0, (4, 40)) == drawn).all((2, 3, 4))     # (4, 40)
    assert equal.sum(0).eq(1).all()
    assert equal.any(1).all()


def test_a_damaged_file_of_kept_cases_is_named(tmp_path):
    record = {"method": "kmeans", "variant": "pixels", "data": "digits", "profile": "quick", "seed": 0}
    cache.replace(cache.folder() / "bench" / f"{results.name(record)}.json", b'{"settings": ')
    with pytest.raises(ValueError, match="is damaged"):
        bench.run("kmeans", "pixels", "digits", into=tmp_path)


def test_students_are_judged_whole_and_in_parts(monkeypatch):
    split, seen = data.elpv("mono", size=32, painted=True, n=8), []
    standardise = UninformedStudents.standardise_scores
    monkeypatch.setattr(UninformedStudents, "standardise_scores",
                        lambda self, images: seen.append((self, len(images))) or standardise(self, images))
    build = partial(UninformedStudents, patch_sizes=(17, 33), students=2, narrow=True, size=40, score_by="error")
    figures = studies.judge(build, split, 0, epochs=1)["figures"]
    (detector, held_out), = seen
    assert held_out == len(split.calibration)                      # nobody learns from them, nor are any taken away
    parts = {f"aupro{name}" for name in ("", "_error", "_disagreement", "_17", "_33")}
    assert {name for name in figures if name.startswith("aupro")} == parts
    maps = detector.localize(split.test)
    assert figures["aupro"] == pytest.approx(metrics.aupro(split.masks, maps), abs=1e-6)
    assert figures["auroc"] == pytest.approx(metrics.auroc(split.labels, maps.flatten(1).amax(1)), abs=1e-6)
    assert figures["aupro"] == figures["aupro_error"] != figures["aupro_disagreement"]


def test_patient_students_take_whole_multiples_of_their_own_steps(monkeypatch):
    judged = []
    monkeypatch.setattr(studies, "judge", lambda build, split, seed: judged.append((build(), split.name, seed)))
    for case in studies.STUDIES["students", "longer"][1].values():
        case(2)
    own = UninformedStudents().training_steps["quick"]
    assert [detector.training_steps["quick"] for detector, _, _ in judged] == [own, 4 * own, 16 * own]
    assert {(name, seed, detector.patch_sizes) for detector, name, seed in judged} == {
        ("elpv: mono, painted", 2, (17,))}


@pytest.mark.parametrize("study", [("spade", "choices"), ("vit_spade", "choices")], ids="-".join)
def test_choices_change_one_thing_at_a_time(study, monkeypatch):
    judged = []
    monkeypatch.setattr(studies, "judge", lambda build, split, seed: judged.append((build().options(), split.name)))
    monkeypatch.setattr(studies.data, "elpv", lambda kind, *, seed, **how: SimpleNamespace(name=(kind, seed, how)))
    for case in studies.STUDIES[study][1].values():
        case(2)
    (own, same), *others = judged
    assert own == {"spade": SPADE, "vit_spade": ViTSPADE}[study[0]]().options()
    for options, images in others:
        assert images == same == ("mono", studies.FIRST_SEED + 2, {"size": 224, "painted": True, "n": 100})
        assert sum(options[name] != own[name] for name in own) == 1, options


def test_cells_and_parts_are_judged_by_their_maps(monkeypatch):
    elpv, parts = data.elpv, data.parts
    monkeypatch.setattr(data, "elpv", lambda kind, **how: elpv(kind, **how | {"size": 32, "n": 8}))
    monkeypatch.setattr(data, "parts", lambda normal, **how: parts(normal, **how | {"size": 32, "n": 8}))
    for case in (studies.of_few_cells(size=64), studies.of_few_tokens(sizes=(64,)),
                 studies.of_large_parts(partial(SPADE, size=64), "gear")):
        figures = case(0)["figures"]
        assert figures.keys() == {"auroc", "average_precision", "pixel_auroc", "aupro"}
        assert figures["pixel_auroc"] > 0.5


def test_an_untaught_detector_differs_in_its_weights_alone():
    taught, untaught = ViTSPADE(), studies.untaught()
    assert type(taught) is type(untaught)
    assert taught.options() == untaught.options()
    assert (untaught.network.origin, untaught.network.size) == ("random", taught.network.size)
    assert untaught.network.sha256 != taught.network.sha256


def test_weights_from_a_folder_are_named_in_the_record(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ADLEARN_WEIGHTS", str(tmp_path))
    (tmp_path / "other.safetensors").write_bytes(b"weights")
    record = results.read(bench.run("nearest_neighbors", "pixels", "digits", into=tmp_path / "results"))
    assert record["versions"]["other.safetensors"] == hashlib.sha256(b"weights").hexdigest()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert bench.main(["vit_spade", "--variant", "natural_images", "--data", "elpv_mono"]) == 2
    assert "no weights for 'vit_small_patch14_dinov2'" in capsys.readouterr().err


def test_no_two_seeds_share_a_split_of_the_cells(monkeypatch):
    drawn = []
    monkeypatch.setattr(data, "elpv", lambda kind, *, seed, **how: drawn.append((kind, str(how), seed)))
    for name, splits in bench.DATA.items():
        for split in splits.values() if name.startswith("elpv") else ():
            for seed in range(3):
                split(seed)
    assert len(drawn) == len(set(drawn)) == 4 * 5 * 3
