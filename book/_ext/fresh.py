"""No stale outputs: a chapter is executed again when the code or the data that it depends on has changed.

The execution cache looks at a chapter's own cells only. So each chapter gets one more cell, hidden, that holds a
hash of all the files of `adlearn` that the chapter depends on (depends.py says which), of the pinned
requirements, and of the Python and the profile at hand; and a chapter whose hash has changed is read again.
"""

import hashlib
import os
import sys
from functools import cache
from pathlib import Path

from _ext.chapters import chapters, is_chapter, python, read
from _ext.depends import Package
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

CELL = "\n\n```{{code-cell}} ipython3\n:tags: [remove-cell]\n\n# depends on {}\n```\n"


def state(env: BuildEnvironment, docname: str, package: Package) -> str:
    """A hash of every file that the chapter's outputs depend on, besides the chapter."""
    root = Path(env.srcdir)
    names = package.needed(python(read(env, docname)))
    files = {file for name in names for file in package.files(name)} | {root / "requirements.txt"}
    lines = [f"{file.relative_to(root)} {digest(file)}" for file in sorted(files) if file.exists()]
    lines += [sys.version, os.environ.get("ADLEARN_PROFILE", "")]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


@cache
def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def changed(app: Sphinx, env: BuildEnvironment, *_: object) -> list[str]:
    """The chapters to read again."""
    package = Package(Path(app.srcdir) / "adlearn")
    before = getattr(env, "adlearn_states", {})
    env.adlearn_states = {docname: state(env, docname, package) for docname in chapters(env)}
    return [docname for docname, now in env.adlearn_states.items() if before.get(docname) != now]


def add_cell(app: Sphinx, docname: str, text: list[str]) -> None:
    if is_chapter(text[0]):
        text[0] += CELL.format(app.env.adlearn_states[docname])


def setup(app: Sphinx) -> dict:
    app.connect("env-get-outdated", changed)
    app.connect("source-read", add_cell)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
