import json

import pytest

from adlearn import results

RECORD = {
    "method": "nearest_neighbors", "variant": "pixels", "data": "digits", "profile": "quick", "seed": 0,
    "figures": {"mean_auroc": 0.9, "auroc": {"3": 0.9}}, "seconds": {"fit": 1.5}, "device": "CPU, 2 threads",
    "versions": {"torch": "2"}, "commit": "abc", "command": "python -m adlearn.bench nearest_neighbors",
}


def test_round_trip_and_name(tmp_path):
    path = results.write(RECORD, tmp_path)
    assert path.name == "nearest_neighbors-pixels-digits-quick-s0.json"
    assert results.read(path) == RECORD


@pytest.mark.parametrize(("change", "message"), [
    ({"figures": {}}, "figures is empty"),
    ({"figures": {"auroc": "0.9"}}, "figures.*finite numbers"),
    ({"figures": {"auroc": float("nan")}}, "finite"),
    ({"seconds": {"fit": None}}, "seconds"),
    ({"seed": "0"}, "seed must be int"),
    ({"seed": True}, "seed must be int"),
    ({"method": "Nearest Neighbours"}, "file name"),
    ({"data": "elpv-mono"}, "file name"),
    ({"profile": "fast"}, "profile must be one of"),
    ({"seed": -1}, "seed at least 0"),
    ({"figures": {"auroc": {}}}, "finite numbers"),
    ({"extra": 1}, r"unknown: \['extra'\]"),
])
def test_a_broken_record_is_refused(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        results.write({**RECORD, **change}, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_field_is_refused():
    with pytest.raises(ValueError, match=r"missing: \['commit'\]"):
        results.validate({k: v for k, v in RECORD.items() if k != "commit"})


def test_broken_files_are_refused(tmp_path):
    path = results.write(RECORD, tmp_path)
    renamed = tmp_path / "other.json"
    renamed.write_text(path.read_text())
    with pytest.raises(ValueError, match="disagree"):
        results.read(renamed)
    path.write_text(path.read_text()[:50])
    with pytest.raises(ValueError, match="not valid JSON"):
        results.read(path)
    with pytest.raises(FileNotFoundError, match=r"adlearn\.bench"):
        results.read("never-ran-x-quick-s0")


def test_all_kept_results_keep_the_schema():
    kept = sorted(results.folder().glob("*.json"))
    assert kept
    for path in kept:
        record = results.read(path)
        assert json.loads(path.read_text()) == record
        assert record["command"].startswith("python -m adlearn.bench")
    assert results.find(method="nearest_neighbors", data="elpv_mono")
    with pytest.raises(ValueError, match="unknown field"):
        results.find(methods="x")


def test_papers_are_filtered_and_numeric():
    rows = results.papers(dataset="MVTec AD", method="1-NN", metric="PRO-AUC")
    assert len(rows) == 16 or len(rows) == 32
    assert all(isinstance(row["value"], float) and row["source"] for row in rows)
    assert any(row["value"] == "2.5k" for row in results.papers(metric="TPUv3-core-days"))
    with pytest.raises(ValueError, match="unknown column"):
        results.papers(colour="red")


def test_a_figure_is_gathered_over_seeds(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "folder", lambda: tmp_path)
    study = {**RECORD, "variant": "study"}
    for seed in (0, 3):
        results.write({**study, "seed": seed, "figures": {"accuracy": {"a": 0.1 + seed, "b": 0.5}}})
    assert results.over_seeds("accuracy", variant="study") == {"a": {0: 0.1, 3: 3.1}, "b": {0: 0.5, 3: 0.5}}
    with pytest.raises(FileNotFoundError, match="no kept result"):
        results.over_seeds("accuracy", variant="other")
    with pytest.raises(ValueError, match="got 'loss'"):
        results.over_seeds("loss", variant="study")
    results.write({**study, "profile": "gpu", "seed": 3, "figures": {"accuracy": {"a": 0.5}}})
    with pytest.raises(ValueError, match="two records of seed 3"):
        results.over_seeds("accuracy", variant="study")


def test_differences_are_taken_seed_by_seed():
    cases = {"a": {0: 0.5, 1: 0.7, 2: 0.9}, "b": {0: 0.4, 1: 0.6, 2: 0.8, 3: 0.0}}
    assert results.difference(cases, "a", "b") == "+0.100 (+0.100 to +0.100)"
    assert results.difference(cases, "a", "b", digits=1) == "+0.1 (+0.1 to +0.1)"
    assert results.difference(cases, "a", "a") == ""
    assert results.interval([0.5, 0.5]) == "0.500 (0.500 to 0.500)"
    assert results.interval([0.4, 0.6]) == "0.500 (-0.771 to 1.771)"                  # Student's with one degree
    assert results.interval({5: 0.5, 7: 0.5}) == "0.500 (0.500 to 0.500)"
    assert results.interval([0.5]) == "0.500 (one run)"
    assert results.interval({}) == "–"
    assert results.difference({"a": {0: 0.5, 1: 0.0}, "b": {0: 0.75}}, "a", "b") == "-0.250 (one run)"
    assert results.difference({"a": {0: 0.5}, "b": {1: 0.4}}, "a", "b") == "–"
    with pytest.raises(ValueError, match="case must be one of"):
        results.difference(cases, "a", "c")


def test_a_methods_runs_by_seed_and_those_that_are_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "folder", lambda: tmp_path)
    run = {key: RECORD[key] for key in ("method", "variant", "data", "profile")}
    assert results.by_seed("mean_auroc", **run) == {}
    for seed, value in ((0, 0.5), (3, 0.75)):
        results.write({**RECORD, "seed": seed, "figures": {"mean_auroc": value}})
    assert results.by_seed("mean_auroc", **run) == {0: 0.5, 3: 0.75}
    assert [line.split("--seed ")[1] for line in results.missing(range(5), **run)] == ["1", "2", "4"]
    assert results.missing([3], **run) == []
    there, = results.missing([0], **{**run, "profile": "gpu"})
    assert there == f"ADLEARN_PROFILE=gpu {RECORD['command']} --variant pixels --data digits --seed 0"
    with pytest.raises(ValueError, match="figure must be one of"):
        results.by_seed("loss", **run)


def test_a_figure_is_averaged_over_the_cases_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "folder", lambda: tmp_path)
    run = {key: RECORD[key] for key in ("method", "variant", "data", "profile")}
    results.write({**RECORD, "figures": {"mean_auroc": 0.6, "auroc": {"a": 0.5, "b": 0.7, "c": 0.6}}})
    assert results.by_seed("auroc", over=("b", "c"), **run) == {RECORD["seed"]: pytest.approx(0.65)}
    with pytest.raises(ValueError, match="over must be one of"):
        results.by_seed("auroc", over=("b", "d"), **run)
    with pytest.raises(ValueError, match="kept by case"):
        results.by_seed("mean_auroc", over=("b",), **run)


def test_provenance_names_seeds_device_commit_and_command(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "folder", lambda: tmp_path)
    study = {**RECORD, "variant": "study"}
    for seed in (3, 0):
        results.write({**study, "seed": seed, "commit": "0123456789" * 4 + " with changes"})
    told = results.provenance(variant="study")
    assert "seeds 0, 3" in told
    assert RECORD["device"] in told
    assert "commit 0123456 with changes" in told
    assert RECORD["command"] in told
    with pytest.raises(FileNotFoundError, match="no kept result"):
        results.provenance(variant="other")
