"""The public address of the repository: one setting in `pyproject.toml`, and every link is derived from it."""

import tomllib
from functools import cache
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.util import logging
from sphinx.util.docutils import ReferenceRole

BRANCH = "main"
NOTEBOOKS = "book/notebooks"  # where the Colab edition stands, relative to the repository's root
COLAB = "https://colab.research.google.com"
BADGE = f"{COLAB}/assets/colab-badge.svg"


@cache
def repository(root: Path | str) -> str:
    """The address as `pyproject.toml` gives it, without a trailing slash."""
    project = tomllib.loads((Path(root) / "pyproject.toml").read_text("utf-8"))["project"]
    return project["urls"]["Repository"].rstrip("/")


def blob(root: Path | str, path: str) -> str:
    """The page that shows a file of the repository."""
    return f"{repository(root)}/blob/{BRANCH}/{path}"


def raw(root: Path | str, path: str) -> str:
    """The file itself, as an image needs it."""
    owner = repository(root).removeprefix("https://github.com/")
    return f"https://raw.githubusercontent.com/{owner}/{BRANCH}/{path}"


def notebook(docname: str) -> str:
    """Where a chapter's generated notebook stands: `book/foundations/problem` → `foundations-problem.ipynb`."""
    return f"{NOTEBOOKS}/{docname.removeprefix('book/').replace('/', '-')}.ipynb"


def colab(root: Path | str, docname: str) -> str:
    """The link that opens a chapter in Colab."""
    return blob(root, notebook(docname)).replace("https://github.com", f"{COLAB}/github", 1)


class SourceRole(ReferenceRole):
    """`` {src}`adlearn/metrics.py` `` or `` {src}`the metrics <adlearn/metrics.py>` ``: a file here, as a link."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        root = Path(self.env.srcdir)
        if not (root / self.target).exists():
            logging.getLogger(__name__).warning(
                "{src}: no such file: %s", self.target, location=self.get_location()
            )
        link = nodes.reference(self.rawtext, internal=False, refuri=blob(root, self.target))
        link += nodes.Text(self.title) if self.has_explicit_title else nodes.literal(text=self.title)
        return [link], []


def set_theme(app: Sphinx, config: Config) -> None:
    config.html_theme_options |= {
        "repository_url": repository(app.srcdir),
        "repository_branch": BRANCH,
        "path_to_docs": "",
        "use_repository_button": True,
        "launch_buttons": {"colab_url": COLAB},
    }


def open_notebook(app: Sphinx, pagename: str, template: str, context: dict, doctree: object) -> None:
    """The theme's Colab button names the page's source, which Colab cannot open: name the notebook."""
    for group in context.get("header_buttons", []):
        for button in group.get("buttons", []):
            if button.get("text") == "Colab":
                button["url"] = colab(app.srcdir, pagename)


def setup(app: Sphinx) -> dict:
    app.add_role("src", SourceRole())
    app.connect("config-inited", set_theme)
    app.connect("html-page-context", open_notebook, priority=502)  # the theme adds its buttons at 501
    return {"parallel_read_safe": True, "parallel_write_safe": True}
