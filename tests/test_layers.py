"""Imports point down only, and `import adlearn` stays light."""

import ast
import subprocess
import sys
from pathlib import Path
from statistics import median

import pytest

PACKAGE = Path(__file__).parents[1] / "adlearn"
FLOORS = {
    0: {"checks", "losses", "metrics", "neighbors", "density", "augment", "dense", "nets", "projection", "plots",
        "widgets", "runtime", "cache", "results", "data"},
    1: {"detector", "reconstruction", "training", "film", "backbones"},
    2: {"methods"},
    3: {"cli", "bench", "speed", "studies", "teach", "report", "adapters", "pretrain"},
}
FLOOR = {name: floor for floor, names in FLOORS.items() for name in names}
BETWEEN_METHODS = {("vit_spade", "spade"), ("csi", "simclr"), ("two_stage", "simclr")}


def imports(file: Path) -> set[str]:
    """The modules of adlearn that a file imports anywhere, lazily too, as dotted names without 'adlearn.'."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file.name}, line {node.lineno}: a relative import; write it from adlearn on"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    names = {name.removeprefix("adlearn.") for name in found if name.startswith("adlearn.")}
    return {name for name in names if name.split(".")[0] in FLOOR}


FILES = sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


def test_every_module_has_a_floor():
    assert {p.relative_to(PACKAGE).parts[0].removesuffix(".py") for p in FILES} <= FLOOR.keys()


@pytest.mark.parametrize("file", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(file):
    own = file.relative_to(PACKAGE).with_suffix("").parts
    for name in imports(file):
        parts = name.split(".")
        if own[0] == "methods" and parts[0] == "methods" and own[-1] != "__init__" and len(parts) > 1:
            assert parts[1] == own[1] or (own[1], parts[1]) in BETWEEN_METHODS, f"{own[1]} imports {parts[1]}"
        assert FLOOR[parts[0]] <= FLOOR[own[0]], f"{'.'.join(own)} (floor {FLOOR[own[0]]}) imports {name}"


def test_the_layer_check_sees_lazy_imports(tmp_path):
    file = tmp_path / "x.py"
    file.write_text("def f():\n    from adlearn.methods import KDE\n    import adlearn.bench\n")
    assert {"methods", "bench"} <= imports(file)
    file.write_text("def f():\n    from ..bench import main\n")
    with pytest.raises(AssertionError, match="relative import"):
        imports(file)


def test_import_is_light():
    heavy = ["matplotlib", "umap", "numba", "timm", "torchvision", "sklearn", "scipy", "pandas", "seaborn", "IPython",
             "ipywidgets"]
    code = (f"import sys, torch; before = set(sys.modules); import adlearn;"
            "import adlearn.metrics, adlearn.neighbors, adlearn.density, adlearn.data, adlearn.backbones,"
            "adlearn.training, adlearn.film, adlearn.plots, adlearn.widgets, adlearn.methods.classic;"
            f"print([m for m in {heavy} if m in set(sys.modules) - before])")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_import_adds_little_to_that_of_torch():
    code = "import time, torch; start = time.perf_counter(); import adlearn; print(time.perf_counter() - start)"
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(3)]
    assert median(float(run.stdout) for run in runs) < 0.3
