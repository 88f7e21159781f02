"""The directives that the Colab edition knows, each written as plain Markdown: one method a directive."""

import re

from _ext.markdown import details, display, fenced, joined, quoted, table
from _ext.references import Unknown
from markdown_it.tree import SyntaxTreeNode
from sphinx.directives.code import LiteralIncludeReader


class Directive:
    """A fence taken apart: `{name} argument`, the lines of `:option: value`, and the body."""

    def __init__(self, node: SyntaxTreeNode, line: int):
        name, _, argument = node.info.strip().removeprefix("{").partition("}")
        self.name, self.argument = name, argument.strip()
        self.options: dict[str, str] = {}
        lines = node.content.splitlines()
        if lines[:1] == ["---"]:
            raise Unknown("write a directive's options as `:option: value`, one a line")
        while lines and (option := re.fullmatch(r":([\w-]+):\s*(.*)", lines[0])):
            self.options[option[1]] = option[2].strip()
            del lines[0]
        self.body = "\n".join(lines)
        self.line = line + 1 + len(self.options)  # where the body starts in the source
        self.label = self.options.get("label") or self.options.get("name", "")
        self.folded = "dropdown" in self.options.get("class", "").split()


class Directives:
    """The part of `Plain` (plain.py) that writes directives."""

    def admonition(self, title, directive, first=""):
        body = self.nested(joined([first, directive.body]), directive.line - (2 if first else 0))
        return details(title, body) if directive.folded else quoted(joined([f"**{title}**", body]))

    def directive_admonition(self, directive):
        return self.admonition(self.text(directive.argument, directive), directive)

    def named_admonition(self, directive):
        """Its name is its title; text on the first line belongs to the body."""
        name = "See also" if directive.name == "seealso" else directive.name.capitalize()
        return self.admonition(name, directive, directive.argument)

    directive_note = directive_tip = directive_hint = directive_important = directive_seealso = named_admonition
    directive_warning = directive_caution = directive_danger = directive_attention = named_admonition

    def directive_dropdown(self, directive):
        return details(self.text(directive.argument, directive), self.nested(directive.body, directive.line))

    def contents_only(self, directive):
        return self.nested(directive.body, directive.line)

    directive_grid = directive_grid_item = directive_tab_set = directive_epigraph = contents_only

    def titled_part(self, directive):
        title = directive.argument and f"**{self.text(directive.argument, directive)}**"
        return joined([title, self.nested(directive.body, directive.line)])

    directive_tab_item = directive_card = directive_grid_item_card = directive_margin = titled_part

    def directive_math(self, directive):
        number = directive.label and self.references.equation(directive.label)
        return display(joined([directive.argument, directive.body]), number)

    def directive_image(self, directive):
        return f"![{directive.options.get('alt', '')}]({self.references.image(directive.argument)})"

    def directive_figure(self, directive):
        return joined([self.directive_image(directive), self.caption(directive)])

    def directive_glue_figure(self, directive):
        where = self.drawn(directive.argument)
        return joined([self.caption(directive), f"*(drawn {where})*"])

    def caption(self, directive):
        return self.captioned(directive.label, directive.body, directive.line)

    def captioned(self, label, text, line):
        """The number, the caption and what follows it."""
        try:
            return f"**{self.number(label)}.** {self.nested(text, line)}".rstrip()
        except Unknown as problem:
            self.problems.append((line, str(problem)))
            return ""

    def number(self, label):
        if not label:
            raise Unknown("this needs a label: without one its number cannot be told")
        return self.references.numbered(label)

    def directive_table(self, directive):
        title = f"**{self.number(directive.label)}.** {self.text(directive.argument, directive)}"
        return joined([title, self.nested(directive.body, directive.line)])

    def directive_list_table(self, directive):
        tree = SyntaxTreeNode(self.parser.parse(directive.body))
        outer, self.line = self.line, directive.line
        rows = [[self.blocks(cell.children) for cell in row.children[0].children] for row in tree.children[0].children]
        self.line = outer
        head = [] if int(directive.options.get("header-rows", 0)) else [[""] * len(rows[0])]
        title = f"**{self.number(directive.label)}.** " if directive.label else ""
        return joined([title + self.text(directive.argument, directive), table(head + rows, [""] * len(rows[0]))])

    def directive_code_block(self, directive):
        return fenced(directive.argument, directive.body)

    directive_code = directive_code_block

    def directive_literalinclude(self, directive):
        path = self.references.path(directive.argument)
        root, config = self.references.env.srcdir, self.references.env.config
        code, _ = LiteralIncludeReader(str(root / path), directive.options, config).read()
        return joined([f"From [`{path}`]({self.references.source(path)}):", fenced("python", code)])

    def directive_exercise(self, directive):
        title = f"**{self.number(directive.label)}**"
        if directive.argument:
            title += f" ({self.text(directive.argument, directive)})"
        return quoted(joined([title, self.nested(directive.body, directive.line)]))

    directive_exercise_start = directive_exercise

    def directive_exercise_end(self, directive):
        return ""

    def directive_solution(self, directive):
        return details(self.solution_of(directive), self.nested(directive.body, directive.line))

    def directive_solution_start(self, directive):
        self.solution = self.solution_of(directive)
        return ""

    def directive_solution_end(self, directive):
        self.solution = ""
        return ""

    def solution_of(self, directive):
        return f"Solution to {self.references.numbered(directive.argument)}"

    def directive_bibliography(self, directive):
        return self.references.bibliography()

    def directive_tableofcontents(self, directive):
        return ""

    directive_contents = directive_tableofcontents

    def text(self, argument, directive):
        """The text of a directive's first line."""
        return self.nested(argument, directive.line - 1)
