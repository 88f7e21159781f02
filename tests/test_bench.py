import json

import pytest

from adlearn import bench, cache, results, speed


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
    judge = bench._judge

    def stop_at_four(build, split, seed):
        if len(judged) == 4:
            raise KeyboardInterrupt
        judged.append(split.name)
        return judge(build, split, seed)

    monkeypatch.setattr(bench, "_judge", stop_at_four)
    with pytest.raises(KeyboardInterrupt):
        bench.run("kmeans", "pixels", "digits", into=tmp_path)
    assert not list(tmp_path.glob("*.json"))
    monkeypatch.setattr(bench, "_judge", lambda *a: judged.append(a[1].name) or judge(*a))
    bench.run("kmeans", "pixels", "digits", into=tmp_path)
    assert len(judged) == len(set(judged)) == 10


def test_cases_of_other_settings_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "_commit", lambda: "old code")
    monkeypatch.setattr(bench, "_judge", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
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


def test_a_damaged_file_of_kept_cases_is_named(tmp_path):
    record = {"method": "kmeans", "variant": "pixels", "data": "digits", "profile": "quick", "seed": 0}
    cache.replace(cache.folder() / "bench" / f"{results.name(record)}.json", b'{"settings": ')
    with pytest.raises(ValueError, match="is damaged"):
        bench.run("kmeans", "pixels", "digits", into=tmp_path)
