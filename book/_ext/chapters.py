"""What the book's extensions share: which pages are chapters, and how to read one."""

import os
from pathlib import Path

from IPython.core.inputtransformer2 import TransformerManager
from myst_nb.core.read import is_myst_markdown_notebook, read_myst_markdown_notebook
from nbformat import NotebookNode
from sphinx.environment import BuildEnvironment


def is_chapter(text: str) -> bool:
    """A chapter is a MyST text notebook: its front matter names jupytext's format. Other pages run no code."""
    return is_myst_markdown_notebook(text)


def source(env: BuildEnvironment, docname: str) -> Path:
    return Path(env.doc2path(docname))


def chapters(env: BuildEnvironment) -> list[str]:
    """The docnames of all chapters, sorted."""
    return sorted(doc for doc in env.found_docs if is_chapter(source(env, doc).read_text("utf-8")))


def read(env: BuildEnvironment, docname: str) -> NotebookNode:
    """A chapter as a notebook; `metadata.source_map` holds the (0-based) source line of each cell."""
    path = source(env, docname)
    text = path.read_text("utf-8")
    return read_myst_markdown_notebook(text, env.myst_config, add_source_map=True, path=path)


def python(notebook: NotebookNode) -> str:
    """The code of all cells, with IPython's magics turned into plain Python."""
    plain = TransformerManager().transform_cell
    return "\n".join(plain(cell.source) for cell in notebook.cells if cell.cell_type == "code")


def write_atomically(path: Path, text: str) -> None:
    """Write beside and rename, so that a killed build leaves no half file; an unchanged file keeps its date."""
    if path.exists() and path.read_text("utf-8") == text:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(text, "utf-8")
    beside.replace(path)
