"""Kept results: one JSON file a run, and the published figures.

A run's file is named `<method>-<variant>-<data>-<profile>-s<seed>.json` and says how it came about, so that a
chapter can show the figure with its provenance and anybody can repeat it.
"""

from __future__ import annotations

import csv
import json
import math
import re
import statistics
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from adlearn import cache, checks, metrics
from adlearn.runtime import PROFILES

FIELDS = {
    "method": str, "variant": str, "data": str, "profile": str, "seed": int,
    "figures": dict,      # name of the figure -> number, or -> {case: number}
    "seconds": dict,      # stage -> seconds
    "device": str, "versions": dict, "commit": str, "command": str,
}


def folder() -> Path:
    """Where the package keeps its results."""
    return Path(str(resources.files("adlearn") / "results"))


def name(record: dict) -> str:
    """The file name, without ending, that belongs to a record."""
    return "{method}-{variant}-{data}-{profile}-s{seed}".format(**record)


def command(method: str, variant: str, data: str, seed: int) -> str:
    """The line that makes the run, in the profile that it is said in."""
    return f"python -m adlearn.bench {method} --variant {variant} --data {data} --seed {seed}"


def validate(record: dict, where: str = "record") -> dict:
    """The record itself if it keeps the schema; otherwise `ValueError` with the field and the cure."""
    if not isinstance(record, dict):
        raise ValueError(f"{where} must be a JSON object, got {type(record).__name__}")
    missing, unknown = FIELDS.keys() - record.keys(), record.keys() - FIELDS.keys()
    if missing or unknown:
        raise ValueError(f"{where} must hold exactly the fields {', '.join(FIELDS)}; "
                         f"missing: {sorted(missing)}, unknown: {sorted(unknown)}")
    for field, kind in FIELDS.items():
        if not isinstance(record[field], kind) or isinstance(record[field], bool):
            raise ValueError(f"{where}: {field} must be {kind.__name__}, got {record[field]!r}")
    for field in ("method", "variant", "data", "profile"):
        if not re.fullmatch(r"[a-z0-9_.+]+", record[field]):
            raise ValueError(f"{where}: {field} becomes a part of the file name: use lower-case letters, digits "
                             f"and underscores, got {record[field]!r}")
    if record["profile"] not in PROFILES or record["seed"] < 0:
        raise ValueError(f"{where}: profile must be one of {', '.join(PROFILES)} and seed at least 0, got "
                         f"{record['profile']!r} and {record['seed']}")
    if not record["figures"]:
        raise ValueError(f"{where}: figures is empty: a result without a figure says nothing")
    for field in ("figures", "seconds"):
        for key, value in record[field].items():
            cases = list(value.values()) if isinstance(value, dict) else [value]
            if not cases or not all(_is_number(case) for case in cases):
                raise ValueError(f"{where}: {field}[{key!r}] must be finite numbers, got {value!r}")
    return record


def write(record: dict, into: Path | None = None) -> Path:
    """Validate a record and write it in one step; returns the path."""
    path = (into or folder()) / f"{name(validate(record))}.json"
    cache.replace(path, (json.dumps(record, indent=2, sort_keys=True) + "\n").encode())
    return path


def read(path: Path | str) -> dict:
    """One record, by path or by name without ending. Broken or misnamed files raise `ValueError`."""
    path = Path(path)
    if path.suffix != ".json":
        path = folder() / f"{path}.json"
    if not path.is_file():
        raise FileNotFoundError(f"no kept result {path.name}: run python -m adlearn.bench to make it, "
                                f"or choose from {[p.stem for p in sorted(folder().glob('*.json'))]}")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON ({error}): delete it and run its command again") from error
    validate(record, str(path))
    if name(record) != path.stem:
        raise ValueError(f"{path} holds the record of {name(record)}: its name and content disagree")
    return record


def find(**fields) -> list[dict]:
    """All kept records whose fields equal the given ones, e.g. ``find(method="nearest_neighbors")``."""
    if unknown := fields.keys() - FIELDS.keys():
        raise ValueError(f"unknown field {sorted(unknown)}: choose from {', '.join(FIELDS)}")
    records = [read(path) for path in sorted(folder().glob("*.json"))]
    return [r for r in records if all(r[field] == value for field, value in fields.items())]


def _some(**fields) -> list[dict]:
    records = find(**fields)
    if not records:
        raise FileNotFoundError(f"no kept result of {fields}: run python -m adlearn.bench to make it")
    return records


def over_seeds(figure: str, **fields) -> dict[str, dict[int, float]]:
    """One figure of a study in all kept runs: case → {seed: value}, e.g. ``over_seeds("accuracy", variant="head")``.

    Raises:
        ValueError: an unknown field; two records of one seed; a record without the figure.
        FileNotFoundError: no record at all.
    """
    records = _some(**fields)
    found: dict[str, dict[int, float]] = {}
    for record in records:
        values = record["figures"].get(figure)
        if not isinstance(values, dict):
            raise ValueError(f"figure must be one that {name(record)} holds by case, "
                             f"{', '.join(record['figures'])}, got {figure!r}")
        for case, value in values.items():
            if record["seed"] in found.setdefault(case, {}):
                raise ValueError(f"two records of seed {record['seed']}: name more fields, e.g. profile=, got {fields}")
            found[case][record["seed"]] = value
    return found


def by_seed(figure: str, *, method: str, variant: str, data: str, profile: str = "quick",
            over: Sequence[str] | None = None) -> dict[int, float | dict]:
    """One figure of a method in its kept runs: {seed: value}; empty if there are none, see `missing`.

    Args:
        over: the cases whose mean is wanted, as `adlearn.data.parts.UPRIGHT`, of a figure that is kept by case.
    """
    records = find(method=method, variant=variant, data=data, profile=profile)
    found = {record["seed"]: record["figures"][checks.choice(figure, record["figures"], "figure")]
             for record in records}
    if over is None:
        return found
    if single := [value for value in found.values() if not isinstance(value, dict)]:
        raise ValueError(f"figure must be one that is kept by case to be averaged over {over}, got {figure!r}, which "
                         f"is {single[0]}")
    return {seed: statistics.fmean(values[checks.choice(case, values, "over")] for case in over)
            for seed, values in found.items()}


def missing(seeds, *, method: str, variant: str, data: str, profile: str = "quick") -> list[str]:
    """The commands of those seeds' runs that are not kept: a page names them rather than leaving them out."""
    there = {record["seed"] for record in find(method=method, variant=variant, data=data, profile=profile)}
    asked = "" if profile == "quick" else f"ADLEARN_PROFILE={profile} "
    return [asked + command(method, variant, data, seed) for seed in seeds if seed not in there]


def provenance(**fields) -> str:
    """One line on where kept records come from: seeds, profile, device, commit, and the command of the first.

    Raises:
        FileNotFoundError: no record at all.
    """
    records = _some(**fields)
    values = {name: sorted({str(record[name]) for record in records}) for name in ("profile", "device", "commit")}
    seeds = sorted({record["seed"] for record in records})
    commits = [re.sub(r"[0-9a-f]{40}", lambda found: found[0][:7], commit) for commit in values["commit"]]
    return (f"kept runs: {records[0]['command']} and likewise\nseeds {', '.join(map(str, seeds))} · profile "
            f"{', '.join(values['profile'])} · {', '.join(values['device'])} · commit {', '.join(commits)}")


def interval(values, *, signed: bool = False, digits: int = 3) -> str:
    """Mean and 95 % interval of numbers, or of a dict's values, as text, "0.931 (0.925 to 0.937)".

    Of a single number, itself, "0.931 (one run)"; of none, a dash. See `metrics.mean_interval`.
    """
    values = list(values.values() if isinstance(values, dict) else values)
    if not values:
        return "–"
    form = f"{'+' if signed else ''}.{digits}f"
    if len(values) == 1:
        return f"{values[0]:{form}} (one run)"
    mean, low, high = (f"{value:{form}}" for value in metrics.mean_interval(values))
    return f"{mean} ({low} to {high})"


def difference(cases: dict[str, dict[int, float]], case: str, reference: str, *, digits: int = 3) -> str:
    """How far a case lies above another, seed by seed: mean and interval as text; above itself, an empty one.

    Args:
        cases: name to {seed: value}, as `over_seeds` gives them, or of several `by_seed`.

    Raises:
        ValueError: an unknown case.
    """
    for name in (case, reference):
        checks.choice(name, cases, "case")
    if case == reference:
        return ""
    seeds = cases[case].keys() & cases[reference].keys()
    return interval([cases[case][seed] - cases[reference][seed] for seed in sorted(seeds)], signed=True, digits=digits)


def papers(**columns) -> list[dict]:
    """Published figures, one dict a row of `papers.csv`, filtered by column.

    Columns: method, dataset, setting, class, metric, value, source, verified ("yes", or what it rests on).
    `value` is a float, or the printed text where the paper prints no plain number ("2.5k").
    """
    with open(folder() / "papers.csv", encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    if unknown := columns.keys() - table[0].keys():
        raise ValueError(f"unknown column {sorted(unknown)}: choose from {', '.join(table[0])}")
    kept = [row for row in table if all(row[column] == value for column, value in columns.items())]
    return [{**row, "value": _number_or_text(row["value"])} for row in kept]


def _number_or_text(printed: str) -> float | str:
    try:
        return float(printed)
    except ValueError:
        return printed


def _is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
