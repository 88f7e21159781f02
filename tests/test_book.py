"""The book's machinery on a small book: nothing stale, nothing trusted that failed; and the real book's pages."""

import subprocess
import sys
import tomllib

import pytest
import sample_book
import yaml
from sample_book import ROOT, build, executions

sys.path.insert(0, str(ROOT / "book"))
from _ext.depends import Package

# --- what a chapter depends on ---

PACKAGE = {
    "__init__.py": "def __getattr__(name):\n    import importlib\n"
    '    return importlib.import_module("toy.engine").load\n',
    "plots.py": "def draw():\n    return 1\n",
    "engine.py": "def load():\n    from toy import plots\n    return plots.draw()\n",
    "metrics.py": "from .checks import check\n\n\ndef area():\n    return check()\n\n\n"
    "def show():\n    from toy.plots import draw\n    return draw()\n",
    "checks.py": "def check():\n    return 1\n",
    "runs.py": "",
    "runs/one.json": "{}",
    "note.txt": "belongs to the package itself",
    "data/__init__.py": "from toy.data.cells import cells\nfrom toy.data.parts import parts\n",
    "data/cells.py": "from toy.checks import check\n\n\ndef cells():\n    return check()\n",
    "data/parts.py": "def parts():\n    return 1\n",
    "data/palette.csv": "belongs to toy.data",
    "methods/__init__.py": '_HOMES = {"Near": "toy.methods.near", "Far": "far"}\n',
    "methods/near.py": "from toy.metrics import area\n\n\nclass Near:\n    fit = area\n",
    "methods/far.py": "class Far:\n    pass\n",
}


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("package") / "toy"
    for name, text in PACKAGE.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return Package(folder)


@pytest.mark.parametrize(
    ("code", "needed"),
    [
        ("import toy", ""),
        ("import numpy as toy_like", None),
        ("from toy.data import parts\nparts()", "data data.parts"),
        ("from toy.data import cells\ncells()", "data data.cells checks"),  # a function over its own submodule
        ("from toy import data\ndata.parts()", "data data.parts"),
        ("from toy import data as d\nd.cells()", "data data.cells checks"),
        ("import toy.data.parts\ntoy.data.parts.parts()", "data data.parts"),
        ("import toy.data.cells as c\nc.cells()", "data data.cells checks"),
        ("from toy import data\nprint(data)", "data data.parts data.cells checks"),
        ("from toy.data import *", "data data.parts data.cells checks"),
        ("from toy.methods import Near", "methods methods.near metrics checks"),
        ("from toy import methods\nmethods.Far()", "methods methods.far"),
        ("from toy.metrics import area", "metrics checks"),
        ("def late():\n    from toy.metrics import show\n    show()", "metrics plots"),
        ("import importlib\nimportlib.import_module('toy.plots')", "plots"),
        ("import toy\ntoy.load('x')", "engine plots"),
    ],
)
def test_a_chapter_depends_on_what_it_names(toy, code, needed):
    expected = set() if needed is None else {"toy", *(f"toy.{name}" for name in needed.split())}
    assert toy.needed(code) == expected


def test_data_belongs_to_the_module_of_its_folder(toy):
    def names(module):
        return [path.relative_to(toy.folder).as_posix() for path in toy.files(module)]

    assert names("toy.runs") == ["runs.py", "runs/one.json"]
    assert names("toy.data") == ["data/__init__.py", "data/palette.csv"]
    assert names("toy") == ["__init__.py", "note.txt"]
    assert names("toy.checks") == ["checks.py"]


# --- building a small book again and again ---


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    """A book without the page of all constructs, which test_editions.py looks at."""
    root = sample_book.write(tmp_path_factory.mktemp("book"))
    toc = root / "_toc.yml"
    toc.write_text(toc.read_text().replace("      - file: book/part/constructs\n", ""))
    done = build(root)
    assert done.returncode == 0, done.stdout
    assert "chapter 1 of 2: book/part/code … " in done.stdout
    assert executions(root) == {"code": 1, "records": 1}
    return root


def page(book, name):
    return (book / "_build/html/book/part" / f"{name}.html").read_text()


def notebooks(book):
    return {path.name: path.read_bytes() for path in (book / "book/notebooks").iterdir()}


def test_a_second_build_executes_nothing_and_writes_the_same_notebooks(book):
    before, ran = notebooks(book), executions(book)
    (book / "book/notebooks/part-gone.ipynb").write_text("of a chapter that is no longer there")
    done = build(book)
    assert done.returncode == 0, done.stdout
    assert "2 chapters, 0 to read" in done.stdout
    assert executions(book) == ran
    assert notebooks(book) == before


@pytest.mark.parametrize(
    ("changed", "text", "stale", "shown"),
    [
        ("adlearn/code.py", "def value():\n    return 'new code'\n", "code", "new code"),
        ("adlearn/records/runs.csv", "new record\n", "records", "new record"),
    ],
)
def test_a_change_executes_exactly_the_chapters_that_depend_on_it(book, changed, text, stale, shown):
    before = executions(book)
    (book / changed).write_text(text)
    done = build(book)
    assert done.returncode == 0, done.stdout
    assert executions(book) == before | {stale: before[stale] + 1}
    assert shown in page(book, stale)


def test_a_build_that_failed_fails_again_until_the_page_is_mended(book):
    chapter = book / "book/part/records.md"
    good = chapter.read_text()
    for fault in ("```{code-cell}\n1 / 0\n```", "{ref}`nowhere`"):
        chapter.write_text(f"{good}\n{fault}\n")
        assert build(book).returncode != 0
        assert build(book).returncode != 0
    chapter.write_text(good)
    before, done = executions(book), build(book)
    assert done.returncode == 0, done.stdout
    assert executions(book) == before  # outputs of good chapters were kept


# --- the real book ---


def pages():
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    parts = [chapter for part in toc.get("parts", [toc]) for chapter in part.get("chapters", [])]
    return [toc["root"], *(chapter["file"] for chapter in parts)]


def front_matter(text):
    return yaml.safe_load(text.split("---\n")[1]) if text.startswith("---\n") else {}


def fault(name):
    """What is wrong with the source of a page; None if nothing is."""
    path = ROOT / f"{name}.md"
    if not path.exists():
        return f"{name} is in _toc.yml and does not exist"
    text = path.read_text("utf-8")
    if "```{code-cell}" not in text:
        return None
    header = front_matter(text)
    if header.get("jupytext", {}).get("text_representation", {}).get("format_name") != "myst":
        return f"{name} has code cells and no jupytext header: they would not be executed"
    if not {"minutes_cpu", "minutes_gpu"} <= header.get("adlearn", {}).keys():
        return f"{name} does not tell its minutes"
    return None


def test_every_page_exists_and_every_chapter_is_a_notebook_that_tells_its_minutes():
    assert [fault(name) for name in pages() if fault(name)] == []


def test_notebooks_are_of_chapters():
    known = {name.removeprefix("book/").replace("/", "-") for name in pages()}
    assert {path.stem for path in (ROOT / "book/notebooks").glob("*.ipynb")} <= known


def test_the_public_address_is_set_in_one_place():
    address = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]
    bare = address.removeprefix("https://")
    command = ["git", "grep", "--untracked", "-lI", "--fixed-strings", bare, "--", ".", ":!book/notebooks"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.split()
    assert found == ["pyproject.toml"]
