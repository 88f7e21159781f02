"""The Colab edition: of a small book that uses every construct, and the notebooks that are committed."""

import re

import nbformat
import pytest
import sample_book
from markdown_it import MarkdownIt
from mdit_py_plugins.dollarmath import dollarmath_plugin
from sample_book import ROOT

COMMITTED = sorted((ROOT / "book/notebooks").glob("*.ipynb"))
COLAB = "https://colab.research.google.com/github/someone/elsewhere/blob/main/book/notebooks"
FILES = "https://github.com/someone/elsewhere/blob/main"
RAW = "https://raw.githubusercontent.com/someone/elsewhere/main"


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    root = sample_book.write(tmp_path_factory.mktemp("editions"))
    done = sample_book.build(root)
    assert done.returncode == 0, done.stdout
    return root


@pytest.fixture(scope="module")
def cells(book):
    return sample_book.notebook(book, "part-constructs")["cells"]


def text(cells, kind):
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == kind)


def myst_left(markdown):
    """What of a cell's text, outside code and formulas, is MyST and not Markdown."""
    parser = MarkdownIt("commonmark").enable("table").use(dollarmath_plugin)
    seen = []
    for token in parser.parse(markdown):
        seen += [child.content for child in token.children or [] if child.type in ("text", "html_inline")]
        seen += [f"::: {line}" for line in token.content.splitlines() if token.children and line[:2] == ": "]
        seen += [token.info] if token.type == "fence" else []
        seen += [f"$$ ({token.info})"] if token.type == "math_block_label" else []
    pattern = r"\{[\w:-]+\}|:::|\([\w-]+\)=|^%|\[\^|\$\$|\{\{"
    return [part for part in seen if re.search(pattern, part)]


@pytest.mark.parametrize(
    "left",
    ["a {cite}`b`", "```{note}\nx\n```", ":::{tip}\nx\n:::", "(label)=\n# Title", "% comment", "x[^1]",
     "$$\nx\n$$ (eq-x)", "{{ value }}", "- a\n  - {eq}`x`", "> :::{note}", "Term\n: text"],
)  # fmt: skip
def test_the_check_itself_finds_what_is_left(left):
    assert myst_left(left)
    assert not myst_left(f"````\n{left}\n````")


# What the constructs of the small book must become.
PLAIN = [
    "# Every `construct` of $MyST$",
    "What Ruff et al. (2018) found (Ruff et al., 2018; Zhou and Paffenroth, 2017):",
    f"see [Depends on code]({COLAB}/part-code.ipynb), the section, [Depends on data]({COLAB}/part-records.ipynb)",
    f"[the other]({COLAB}/part-records.ipynb), [Depends on code]({COLAB}/part-code.ipynb)",
    f"[the start]({FILES}/book/intro.md), Fig. 1.1,\nPicture 1.1, (1.1).",
    "Escaped \\*stars\\*, $a_b * c_d$, `code {cite}x`, *emphasis **in** it*, [`adlearn/code.py`]"
    f"({FILES}/adlearn/code.py)",
    f"[the data]({FILES}/adlearn/records/runs.csv), anchor, H<sub>2</sub>O, x<sup>2</sup>",
    "<https://example.org>.<sup>foot</sup>",
    "Reached: `auroc` (printed below), and again `auroc`.",
    "<sup>foot</sup> A footnote by Zhou and Paffenroth (2017).",
    "$$\n\\begin{aligned}\nL = x \\\\\n + 1\n\\end{aligned} \\tag{1.1}\n$$",
    "$$\ny = 2 \\tag{1.2}\n$$",
    "$$\n\\begin{aligned}\na &= b\n\\end{aligned}\n$$",
    "> **Note**\n>\n> A list:\n>\n> - one Ruff et al. (2018)\n>\n>   1. deeper (1.1)\n>\n> - two\n",
    '>   ```python\n>   kept = "{cite}`ruff`"\n>   ```\n',
    ">\n>   > **Tip**\n>   >\n>   > First line\n>   >\n>   > Deep (1.2).",
    "<details><summary>Titled <code>so</code></summary>\n\nFolded Table 1.1.\n\n</details>",
    "- **Term**: Defined by (1.1)",
    "| a | b |\n| --- | --: |\n| $\\|x\\|$ | Zhou and Paffenroth (2017) |",
    "**Table 1.1.** A *table*\n\n| head | two |\n| --- | --- |\n| $a$ | b, (1.1) |",
    f"![A square]({RAW}/book/part/square.png)\n\n**Fig. 1.1.** Caption of Ruff et al. (2018).",
    f"![inline]({RAW}/book/part/square.png)",
    "> A quote of (1.1).",
    "**Fig. 1.2.** Drawn, see (1.1).",
    "> **Exercise 1.1** (Try)\n>\n> Do (1.2).",
    "<details><summary>Solution to Exercise 1.1</summary>\n\nDone by Ruff et al. (2018).\n\n</details>",
    "> **Exercise 1.2**\n\nWrite code.\n\n<details><summary>Solution to Exercise 1.2</summary>\n\nExplained:",
    "<details><summary>Solution to Exercise 1.2</summary>\n\nAnd after.\n\n</details>",
    "```python\ndef value():\n    return 1\n```",
    "**One**\n\nFirst\n\n**Two**\n\nSecond",
    "## References\n\n- Lukas Ruff, Robert Vandermeulen, and Nico Görnitz. One class. *Journal*, 2018.\n- Chong",
]


def test_constructs_become_plain_markdown(cells):
    markdown = text(cells, "markdown")
    assert [written for written in PLAIN if written not in markdown] == []


def test_code_is_kept_folded_or_dropped(cells):
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert any(source.startswith("#@title Code of this step\nfrom IPython") for source in code)
    assert "#@title Solution\nanswer = 42" in code
    assert not any("only_in_the_book" in source for source in code)
    assert all(cell["metadata"] == {"cellView": "form"} for cell in cells if "#@title" in "".join(cell["source"]))
    assert not any(cell.get("outputs") for cell in cells)


def test_first_cells_open_install_and_tell_the_time(book):
    title, install = sample_book.notebook(book, "part-code")["cells"][:2]
    assert "".join(title["source"]).startswith("# Depends on code\n\n[![Open in Colab](")
    assert f"]({COLAB}/part-code.ipynb)" in "".join(title["source"])
    source = "".join(install["source"])
    pip = next(line for line in source.splitlines() if "pip" in line)
    assert pip == '    %pip install --quiet --no-deps "adlearn @ git+https://github.com/someone/elsewhere"'
    assert "runtime.describe()" in source
    assert "2 min on a GPU and 3 min on a CPU" in source


def test_notebooks_are_valid_and_ask_for_a_gpu(book):
    for path in sorted((book / "book/notebooks").glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
        assert notebook.metadata["accelerator"] == "GPU"
        assert notebook.metadata["colab"]["gpuType"] == "T4"


def test_the_colab_button_opens_the_notebook(book):
    html = book / "_build/html/book"
    assert f'"{COLAB}/part-code.ipynb"' in (html / "part/code.html").read_text()
    assert "colab.research" not in (html / "intro.html").read_text()


def test_the_script_that_lets_play_work_stands_before_the_theme_s(book):
    page = (book / "_build/html/book/part/code.html").read_text()
    assert 0 < page.index("observeMutations: false") < page.index("fontawesome")


def test_unknown_constructs_fail_the_build_and_are_named(book):
    page = book / "book/part/records.md"
    good, written = page.read_text(), (book / "book/notebooks/part-records.ipynb").read_bytes()
    page.write_text(good + "\nPress {kbd}`x`.\n\n- in a list\n\n  ```{rubric} Title\n  ```\n")
    done = sample_book.build(book)
    assert done.returncode != 0
    last = len(good.splitlines())
    assert f"book/part/records.md:{last + 2}: the Colab edition has no rule for the role 'kbd'" in done.stdout
    assert f"book/part/records.md:{last + 6}: the Colab edition has no rule for the directive 'rubric'" in done.stdout
    assert (book / "book/notebooks/part-records.ipynb").read_bytes() == written
    page.write_text(good)


@pytest.mark.parametrize("path", [None, *COMMITTED], ids=lambda path: path.stem if path else "sample")
def test_no_myst_is_left_over(path, cells):
    if path:
        cells = nbformat.read(path, as_version=4).cells
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
    assert [part for source in sources for part in myst_left(source)] == []
    assert not any("</summary>\n\n\n" in source for source in sources)       # a fold with nothing in it
    assert "myst_nb" not in text(cells, "code")
