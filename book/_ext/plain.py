"""MyST to plain Markdown, which Colab can show: one rule a construct, and no rule means that the build fails.

The text is parsed by MyST's own parser and written anew from the tree of tokens, so that nesting holds: a
citation in a list in an admonition is reached as any other. The rules are methods: `block_…` and `span_…` for the
parser's tokens, `directive_…` and `role_…` for MyST's. What the book knows is looked up by references.py.
"""

import re
from collections.abc import Iterable
from textwrap import indent

from _ext.directives import Directive, Directives
from _ext.markdown import details, display, environment, fenced, joined, linked, quoted, table, titled
from _ext.references import References, Unknown
from markdown_it.renderer import RendererHTML
from markdown_it.tree import SyntaxTreeNode
from myst_parser.parsers.mdit import create_md_parser


class Plain(Directives):
    """Converts the Markdown cells of one chapter, in order; what it cannot say is collected in `problems`."""

    def __init__(self, references: References, code: list[str]):
        self.references = references
        self.parser = create_md_parser(references.env.myst_config, RendererHTML)
        self.parser.disable("text_join")  # keeps the escapes as they were written
        self.problems: list[tuple[int, str]] = []
        self.solution = ""  # the heading of the gated solution that is open
        self.code, self.seen = code, 0  # all code cells, and how many of them stand above
        self.glued: set[str] = set()
        self.line = 0  # the line of the source on which the text that is being written starts

    def convert(self, text: str, line: int) -> str:
        """One cell, which starts on the given (0-based) line. Parts inside a gated solution are folded."""
        self.line = line
        groups = [(self.solution, [])]
        for node in SyntaxTreeNode(self.parser.parse(text)).children:
            written = self.rule("block", node.type, node)
            if self.solution != groups[-1][0]:
                groups.append((self.solution, []))
            groups[-1][1].append(written)
        texts = [(title, joined(parts)) for title, parts in groups]     # a solution may end with code: nothing to fold
        return joined(details(title, text) if title and text else text for title, text in texts)

    def rule(self, family: str, name: str, node: SyntaxTreeNode, *arguments: object) -> str:
        """Apply the rule of that name to a node, and note the line if there is none or if it fails."""
        try:
            method = getattr(self, f"{family}_{re.sub('[-:]', '_', name)}", None)
            if method is None:
                raise Unknown(f"the Colab edition has no rule for the {family} {name!r} (book/_ext/plain.py)")
            return method(*(arguments or (node,)))
        except Unknown as problem:
            self.problems.append((self.line_of(node), str(problem)))
            return ""

    def line_of(self, node: SyntaxTreeNode) -> int:
        while not node.map and node.parent:
            node = node.parent
        return self.line + (node.map[0] if node.map else 0)

    def blocks(self, children: Iterable[SyntaxTreeNode]) -> str:
        return joined(self.rule("block", node.type, node) for node in children)

    def nested(self, text: str, line: int) -> str:
        """The body of a directive."""
        outer, self.line = self.line, line
        written = self.blocks(SyntaxTreeNode(self.parser.parse(text)).children)
        self.line = outer
        return written

    def spans(self, node: SyntaxTreeNode) -> str:
        return "".join(self.rule("span", child.type, child) for child in node.children)

    # --- blocks ---

    def block_paragraph(self, node):
        return self.spans(node.children[0])

    def block_heading(self, node):
        return f"{'#' * int(node.tag[1])} {self.spans(node.children[0])}"

    def block_blockquote(self, node):
        return quoted(self.blocks(node.children))

    def block_bullet_list(self, node):
        return self.items(node, [f"{node.markup} "] * len(node.children))

    def block_ordered_list(self, node):
        first = int(node.attrs.get("start", 1))
        return self.items(node, [f"{first + i}{node.markup} " for i in range(len(node.children))])

    def items(self, node, markers):
        tight = all(child.type != "paragraph" or child.hidden for item in node.children for child in item.children)
        written = [
            marker + indent(self.blocks(item.children), " " * len(marker)).lstrip()
            for marker, item in zip(markers, node.children, strict=True)
        ]
        return ("\n" if tight else "\n\n").join(written)

    def block_dl(self, node):
        """A definition list: plain Markdown has none, so each term becomes an item."""
        written = ""
        for child in node.children:
            if child.type == "dt":
                written += f"\n- **{self.spans(child.children[0])}**:"
            else:
                written += " " + indent(self.blocks(child.children), "  ").lstrip()
        return written.lstrip()

    def block_table(self, node):
        rows = [row for part in node.children for row in part.children]
        styles = [str(cell.attrs.get("style", "")) for cell in rows[0].children]
        return table([[self.spans(cell.children[0]) for cell in row.children] for row in rows], styles)

    def block_hr(self, node):
        return "---"

    def block_html_block(self, node):
        return node.content.rstrip("\n")

    def block_code_block(self, node):
        return fenced("", node.content)

    def block_math_block(self, node):
        return display(node.content)

    def block_math_block_label(self, node):
        return display(node.content, self.references.equation(node.info))

    def block_amsmath(self, node):
        return display(re.sub(r"\\(begin|end)\{(\w+)\*?\}", environment, node.content), wrap=False)

    def block_footnote_reference(self, node):
        return f"<sup>{node.meta['label']}</sup> {self.blocks(node.children)}"

    def block_myst_target(self, node):
        return ""

    def block_myst_line_comment(self, node):
        return ""

    def block_fence(self, node):
        if not node.info.startswith("{"):
            return fenced(node.info, node.content)
        directive = Directive(node, self.line_of(node))
        return self.rule("directive", directive.name, node, directive)

    block_colon_fence = block_fence

    # --- spans ---

    def span_text(self, node):
        return node.content

    def span_text_special(self, node):
        return node.markup

    def span_softbreak(self, node):
        return "\n"

    def span_hardbreak(self, node):
        return "\\\n"

    def span_code_inline(self, node):
        pad = " " if "`" in (node.content[:1], node.content[-1:]) else ""
        return f"{node.markup}{pad}{node.content}{pad}{node.markup}"

    def span_em(self, node):
        return f"{node.markup}{self.spans(node)}{node.markup}"

    span_strong = span_s = span_em

    def span_html_inline(self, node):
        return node.content

    def span_math_inline(self, node):
        return f"${node.content}$"

    def span_math_inline_double(self, node):
        return f"$${node.content}$$"

    def span_image(self, node):
        return f"![{node.content}]({self.references.image(node.attrs['src'])})"

    def span_link(self, node):
        if node.markup in ("autolink", "linkify"):
            return f"<{node.attrs['href']}>"
        address, text = self.references.link(node.attrs["href"])
        return linked(self.spans(node) or text, address)

    def span_footnote_ref(self, node):
        return f"<sup>{node.meta['label']}</sup>"

    def span_myst_role(self, node):
        return self.rule("role", node.meta["name"], node, node.content)

    # --- roles ---

    def role_cite(self, text):
        return self.references.cite(text, in_text=False)

    role_cite_p = role_cite

    def role_cite_t(self, text):
        return self.references.cite(text, in_text=True)

    def role_eq(self, text):
        return f"({self.references.equation(text)})"

    def role_numref(self, text):
        style, label = titled(text)
        return linked(self.references.numbered(label, style), self.references.labelled(label))

    def role_ref(self, text):
        title, label = titled(text)
        return linked(title or self.references.titled(label), self.references.labelled(label))

    def role_doc(self, text):
        title, target = titled(text)
        address, name = self.references.document(target)
        return linked(title or name, address)

    def role_src(self, text):
        title, path = titled(text)
        return linked(title or f"`{path}`", self.references.source(path))

    def role_term(self, text):
        title, term = titled(text)
        return title or term

    def role_math(self, text):
        return f"${text}$"

    def role_sub(self, text):
        return f"<sub>{text}</sub>"

    def role_sup(self, text):
        return f"<sup>{text}</sup>"

    def role_glue_text(self, text):
        """A number that a cell computes is pointed to, never pasted: it changes with the run."""
        name = text.partition(":")[0]
        where = self.drawn(name)
        first, self.glued = name not in self.glued, self.glued | {name}
        return f"`{name}` (printed {where})" if first else f"`{name}`"

    def drawn(self, name):
        """Whether the cell that glues this name stands above or below."""
        for number, code in enumerate(self.code):
            if f'"{name}"' in code or f"'{name}'" in code:
                return "above" if number < self.seen else "below"
        raise Unknown(f"no cell glues the name {name!r}")
