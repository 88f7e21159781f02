"""Runs that are too long for a chapter, kept as results; and the speed comparisons.

    python -m adlearn.bench --list
    python -m adlearn.bench nearest_neighbors --data elpv_mono
    python -m adlearn.bench simclr --variant head --data parts
    python -m adlearn.bench speed

A run works through cases: for a detector those of a data set (splits of the cells, or the class that is normal), for a
study those that it compares (`adlearn.studies`). Each finished case is kept in the cache, so that an interrupted run
goes on where it stopped; the result file is written when all are there.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from adlearn import __version__, cache, checks, data, results, runtime, studies
from adlearn.data.cifar10 import CLASSES as CIFAR_CLASSES
from adlearn.data.parts import CLASSES
from adlearn.detector import Detector
from adlearn.methods import (
    CSI,
    GOAD,
    KDE,
    SPADE,
    VAE,
    AnoGAN,
    AutoEncoder,
    DeepSVDD,
    FastAnoGAN,
    FeatureDictionary,
    Gaussian,
    KMeans,
    MeanImage,
    NearestNeighbors,
    OnDescriptors,
    OneClassSVM,
    TwoStage,
    UninformedStudents,
    ViTSPADE,
)
from adlearn.methods.students import RULES
from adlearn.studies import Case

METHODS: dict[str, dict[str, Callable[[], Detector]]] = {
    name: {"efficientnet_lite0": lambda build=build: build(keep_features=True),
           "pixels": lambda build=build: build(backbone=None)}
    for name, build in {"nearest_neighbors": NearestNeighbors, "kmeans": KMeans, "one_class_svm": OneClassSVM,
                        "kde": KDE, "gaussian": Gaussian}.items()
} | {
    "feature_dictionary": {"efficientnet_lite0": FeatureDictionary},
    "mean_image": {"pixels": MeanImage},
    "autoencoder": {loss: partial(AutoEncoder, loss=loss) for loss in ("l2", "ssim")}
    | {"l2_seen_by_ssim": partial(AutoEncoder, loss="l2", measure="ssim")}
    | {f"latent_{latent}": partial(AutoEncoder, latent=latent) for latent in (2, 8, 32, 128, 512)},
    "vae": {name: partial(VAE, score_by=name) for name in ("elbo", "reconstruction", "probability")}
    | {"bernoulli": partial(VAE, likelihood="bernoulli"), "pixel_sigma": partial(VAE, sigma="pixel")},
    "anogan": {"search": AnoGAN, "search_100": partial(AnoGAN, steps=100)},
    "fast_anogan": {"encoder": FastAnoGAN},
    "deep_svdd": {name.replace("-", "_"): partial(DeepSVDD, objective=name) for name in ("one-class", "soft-boundary")},
    "goad": {shift: partial(GOAD, shift=shift) for shift in ("rotations", "geometric", "cut_permutations")},
    "two_stage": {pretext: partial(TwoStage, pretext=pretext) for pretext in ("rotation", "contrastive", "augmented")},
    "csi": {shift: partial(CSI, shift=shift) for shift in ("rotations", "cut_permutations")}
    | {"simclr": partial(CSI, shift=None)},
    "students": {"multi_scale": UninformedStudents},
    "on_descriptors": {rule: partial(OnDescriptors, rule=rule) for rule in RULES},
    "spade": {"efficientnet_lite0": SPADE},
    "vit_spade": {"distilled": ViTSPADE, "random_weights": studies.untaught,
                  "natural_images": studies.ON_NATURAL_IMAGES},
}
DATA: dict[str, dict[str, Callable[[int], data.OneClass]]] = {
    "elpv_mono": {f"split {i}": lambda seed, i=i: data.elpv("mono", size=224, seed=5 * seed + i) for i in range(5)},
    "elpv_poly": {f"split {i}": lambda seed, i=i: data.elpv("poly", size=224, seed=5 * seed + i) for i in range(5)},
    "elpv_mono_painted": {f"split {i}": lambda seed, i=i: data.elpv("mono", size=64, painted=True, seed=5 * seed + i)
                          for i in range(5)},
    "elpv_mono_painted_224": {
        f"split {i}": lambda seed, i=i: data.elpv("mono", size=224, painted=True, seed=5 * seed + i) for i in range(5)},
    "digits": {str(i): lambda seed, i=i: data.digits(i, seed=seed) for i in range(10)},
    "parts": {name: lambda seed, name=name: data.parts(name, seed=seed) for name in CLASSES},
    "cifar10": {name: lambda seed, name=name: data.cifar10(name, root=os.environ.get("ADLEARN_CIFAR10"), seed=seed)
                for name in CIFAR_CLASSES},
    "parts_damaged": {name: lambda seed, name=name: data.parts(name, seed=seed, defects=True) for name in CLASSES},
}


def run(method: str, variant: str, dataset: str, *, seed: int = 0, into: Path | None = None) -> Path:
    """Train and judge one method on every case, and write the result; returns its path.

    Raises:
        ValueError: an unknown method, variant or data set; or cases kept from a run with other settings.
    """
    cases = _cases(method, variant, dataset)
    record = {"method": method, "variant": variant, "data": dataset, "profile": runtime.profile(), "seed": seed,
              "device": runtime.device_name(), "versions": _versions(), "commit": _commit(),
              "command": results.command(method, variant, dataset, seed)}
    kept = _Kept(record)
    for case in runtime.progress([c for c in cases if c not in kept.cases], f"{method} on {dataset}"):
        kept.add(case, cases[case](seed))
    figures = _by_name("figures", kept.cases, cases)
    if (method, variant) not in studies.STUDIES:
        figures = {f"mean_{name}": sum(values.values()) / len(values) for name, values in figures.items()} | figures
    seconds = {stage: sum(values.values()) for stage, values in _by_name("seconds", kept.cases, cases).items()}
    path = results.write({**record, "figures": figures, "seconds": seconds}, into)
    kept.path.unlink()
    return path


def _cases(method: str, variant: str, dataset: str) -> dict[str, Case]:
    """What a run consists of, by name."""
    checks.choice(method, _variants(), "method")
    checks.choice(variant, _variants()[method], "variant")
    if (method, variant) not in studies.STUDIES:
        splits = DATA[checks.choice(dataset, DATA, "data")]
        build = METHODS[method][variant]
        return {case: lambda seed, split=split: studies.judge(build, split(seed), seed)
                for case, split in splits.items()}
    its_data, cases = studies.STUDIES[method, variant]
    checks.choice(dataset, [its_data], "data")
    return cases


def _variants() -> dict[str, list[str]]:
    """Every method with its variants, detectors first."""
    found = {name: list(variants) for name, variants in METHODS.items()}
    for method, variant in studies.STUDIES:
        found.setdefault(method, []).append(variant)
    return found


def _by_name(kind: str, kept: dict, order) -> dict[str, dict[str, float]]:
    """Figures or seconds of all cases, turned from case → name to name → case."""
    names = {name: None for case in order for name in kept[case][kind]}
    return {name: {case: kept[case][kind][name] for case in order if name in kept[case][kind]} for name in names}


class _Kept:
    """The finished cases of an unfinished run."""

    def __init__(self, record: dict):
        self.settings = {key: value for key, value in record.items() if key != "command"}
        self.path = cache.folder() / "bench" / f"{results.name(record)}.json"
        self.cases: dict[str, dict[str, dict[str, float]]] = {}
        if self.path.is_file():
            try:
                found = json.loads(self.path.read_text())
                settings, self.cases = found["settings"], found["cases"]
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                raise ValueError(f"{self.path} is damaged ({error!r}): delete it to start again") from error
            if settings != self.settings:
                raise ValueError(f"{self.path} holds cases of a run with other settings or code: delete it to start")

    def add(self, case: str, found: dict[str, dict[str, float]]) -> None:
        self.cases[case] = found
        cache.replace(self.path, json.dumps({"settings": self.settings, "cases": self.cases}).encode())


def _versions() -> dict[str, str]:
    """Of the packages, and the sha256 of the weights in the folder that comes before those of this package."""
    from importlib.metadata import version

    folder = os.environ.get("ADLEARN_WEIGHTS")
    files = sorted(Path(folder).expanduser().glob("*.*")) if folder else ()
    return {"python": platform.python_version(), "adlearn": __version__,
            **{name: version(name) for name in ("torch", "timm", "numpy", "scikit-learn")},
            **{file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}}


def _commit() -> str:
    here = Path(__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=False).stdout.strip()

    changed = git("status", "--porcelain", "--", ".", ":!results")
    return (git("rev-parse", "HEAD") or "not a checkout") + (" with changes" if changed else "")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m adlearn.bench", description=__doc__.split("\n\n")[0])
    parser.add_argument("method", nargs="?", help=f"{', '.join(_variants())}; or speed")
    parser.add_argument("--data", help=", ".join(DATA))
    parser.add_argument("--variant", help="what the method works on, or how; by default the first that --list names")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--list", action="store_true", help="name all methods, variants and data sets")
    asked = parser.parse_args(arguments)
    if asked.list or asked.method is None:
        for name, variants in _variants().items():
            print(f"{name}: {', '.join(variants)}")
        of_studies = sorted({its_data for its_data, _ in studies.STUDIES.values()})
        print(f"--data: {', '.join(DATA)}; for studies {' or '.join(of_studies)}")
        return 0
    if asked.method == "speed":
        from adlearn import speed

        speed.report()
        return 0
    try:
        variant = asked.variant or _variants()[checks.choice(asked.method, _variants(), "method")][0]
        path = run(asked.method, variant, asked.data, seed=asked.seed)
    except (ValueError, FileNotFoundError) as error:                        # of which the latter are weights
        print(error, file=sys.stderr)
        return 2
    print(f"{path}\n{json.dumps(results.read(path)['figures'], indent=2)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
