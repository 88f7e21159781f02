"""What a chapter's references say in the book: numbers, titles, citations and links, looked up after the build."""

import posixpath
import re
from functools import cache

from _ext.address import blob, colab, raw
from docutils.nodes import make_id
from pybtex.backends.markdown import Backend
from pybtex.database import Entry
from pybtex.plugin import find_plugin
from pybtex.richtext import Text
from sphinx.environment import BuildEnvironment


class Unknown(Exception):
    """Something that plain Markdown cannot say, or that the book does not know."""


class References:
    """Looks things up on behalf of one chapter, and remembers what it cites."""

    def __init__(self, env: BuildEnvironment, docname: str, notebooks: list[str]):
        self.env, self.docname, self.notebooks = env, docname, notebooks  # notebooks: the docnames of all chapters
        self.cited: set[str] = set()
        self.listed = False  # the list of what is cited has been written

    # --- numbers and titles ---

    def equation(self, label: str) -> str:
        """The number as the book shows it, such as "1.2"."""
        if label not in (known := self.env.get_domain("math").equations):
            raise Unknown(f"no equation has the label {label!r}")
        docname, count = known[label]
        numbers = self.env.toc_fignumbers.get(docname, {}).get("displaymath", {})
        return ".".join(map(str, numbers.get(make_id(f"equation-{label}"), (count,))))

    def numbered(self, label: str, style: str = "") -> str:
        """ "Fig. 1.2", "Table 3.1", "Exercise 2.4", "Section 1.3"; `style` may hold a %s or {number} of its own."""
        docname, identifier = self._place(label)
        kinds = {kind: ids.get(identifier) for kind, ids in self.env.toc_fignumbers.get(docname, {}).items()}
        sections = self.env.toc_secnumbers.get(docname, {})
        kinds["section"] = kinds.get("section") or sections.get(f"#{identifier}") or sections.get("")
        for kind, number in kinds.items():
            if number:
                style = (style or self.env.config.numfig_format[kind]).replace("{number}", "%s")
                return style.replace("%s", ".".join(map(str, number)))
        raise Unknown(f"{label!r} has no number")

    def titled(self, label: str) -> str:
        """The title of the section, figure or table that a label stands before."""
        self._place(label)
        if label not in (known := self.env.get_domain("std").labels):
            raise Unknown(f"{label!r} has no title: write the text, as in {{ref}}`text <{label}>`")
        return known[label][2]

    def _place(self, label: str) -> tuple[str, str]:
        known = self.env.get_domain("std").anonlabels
        if label not in known:
            raise Unknown(f"nothing has the label {label!r}")
        return known[label]

    # --- links ---

    def path(self, target: str) -> str:
        """A path in the chapter, relative to it or "/…" from the root, as a path from the repository's root."""
        folder = "" if target.startswith("/") else posixpath.dirname(self.docname)
        path = posixpath.normpath(posixpath.join(folder, target.lstrip("/")))
        if not (self.env.srcdir / path).exists():
            raise Unknown(f"no such file: {path}")
        return path

    def image(self, target: str) -> str:
        return target if is_address(target) else raw(self.env.srcdir, self.path(target))

    def source(self, path: str) -> str:
        return blob(self.env.srcdir, self.path(f"/{path}"))

    def page(self, docname: str) -> str | None:
        """The address of a chapter's notebook, or of the text of another page; None for this very chapter."""
        if docname == self.docname:
            return None
        if docname not in self.env.found_docs:
            raise Unknown(f"the book has no page {docname!r}")
        if docname in self.notebooks:
            return colab(self.env.srcdir, docname)
        return blob(self.env.srcdir, posixpath.relpath(self.env.doc2path(docname), self.env.srcdir))

    def labelled(self, label: str) -> str | None:
        """The page where a label stands, as `page` gives it."""
        return self.page(self._place(label)[0])

    def link(self, target: str) -> tuple[str | None, str]:
        """The address of a Markdown link's target, and the text if the link has none."""
        if is_address(target):
            return target, target
        path, _, anchor = target.partition("#")
        label = path or anchor
        if label in self.env.get_domain("std").anonlabels:
            return self.labelled(label), self.titled(label)
        if not path:
            return None, anchor  # a heading of this chapter
        path = self.path(path)
        docname = posixpath.splitext(path)[0]
        if docname in self.env.found_docs:
            return self.page(docname), self.env.titles[docname].astext()
        return blob(self.env.srcdir, path), path

    def document(self, target: str) -> tuple[str | None, str]:
        """As `link`, for the {doc} role: the target has no ending."""
        return self.link(f"{target}.md")

    # --- citations ---

    def cite(self, keys: str, *, in_text: bool) -> str:
        """(Ruff et al., 2018; Zhou and Paffenroth, 2017), or in the text: Ruff et al. (2018)."""
        entries = [self._entry(key.strip()) for key in keys.split(",")]
        if in_text:
            return ", ".join(f"{authors(entry)} ({year(entry)})" for entry in entries)
        return f"({'; '.join(f'{authors(entry)}, {year(entry)}' for entry in entries)})"

    def _entry(self, key: str) -> Entry:
        known = self.env.get_domain("cite").bibdata.data.entries
        if key not in known:
            raise Unknown(f"no reference has the key {key!r}")
        if self.listed and key not in self.cited:
            raise Unknown(f"{key!r} is cited after the list of references")
        self.cited.add(key)
        return known[key]

    def bibliography(self) -> str:
        """The list of all that the chapter has cited."""
        self.listed = True
        entries = sorted(map(self._entry, self.cited), key=lambda entry: (authors(entry), year(entry)))
        style = find_plugin("pybtex.style.formatting", "unsrt")()
        written = (entry.text.render(Backend()) for entry in style.format_entries(entries))
        # The backend escapes every sign that Markdown could read; these are harmless inside a line.
        return "\n".join("- " + re.sub(r"\\([-.()!])", r"\1", text.replace("\n", " ")) for text in written)


def authors(entry: Entry) -> str:
    """ "Ruff", "Zhou and Paffenroth", "Sohn et al." """
    people = entry.persons.get("author") or entry.persons.get("editor")
    if not people:
        return entry.fields["title"]
    names = [" ".join(map(decoded, person.last_names)) for person in people]
    return f"{names[0]} et al." if len(names) > 2 else " and ".join(names)


@cache
def decoded(latex: str) -> str:
    """Decoding takes tens of milliseconds, and a name is cited many times."""
    return Text.from_latex(latex).render_as("text")


def year(entry: Entry) -> str:
    return entry.fields.get("year", "n.d.")


def is_address(target: str) -> bool:
    return bool(re.match(r"[a-z][a-z0-9+.-]*:", target))
