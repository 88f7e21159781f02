"""Which modules of a package a piece of code depends on: read from the syntax trees, nothing is imported.

The unit is a module's top-level name. `from adlearn.data import elpv` depends on `adlearn/__init__.py`, on
`adlearn/data/__init__.py` and on what binds `elpv` there, not on its siblings. A name may be bound by an import,
by a definition, or by a lazy table such as `{"NearestNeighbors": "adlearn.methods.classic"}`.
"""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path


class Module:
    """A module's top-level names: what they stand for elsewhere (`aliases`), what they are made of (`bodies`)."""

    def __init__(self, name: str, package: str, code: str):
        self.name, self.package = name, package
        self.tree = ast.parse(code)
        self.aliases: dict[str, str] = {}
        self.bodies: dict[str, list[ast.stmt]] = {}  # "": what runs on import and binds no name
        for statement in self.tree.body:
            self._bind(statement)

    def _bind(self, statement: ast.stmt) -> None:
        names = [""]
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names = [statement.name]
        elif isinstance(statement, ast.Assign | ast.AnnAssign | ast.AugAssign):
            stored = (node for node in ast.walk(statement) if isinstance(node, ast.Name))
            names = [node.id for node in stored if isinstance(node.ctx, ast.Store)]
            self.aliases |= lazy_names(statement.value, self.package)
        else:
            self.aliases |= imports(statement, self.package)
            if isinstance(statement, ast.Import | ast.ImportFrom):
                names = []
        for name in names:
            self.bodies.setdefault(name, []).append(statement)

    def refers(self, name: str) -> set[str]:
        """What one of its names refers to."""
        stands_for = {self.aliases[name]} if name in self.aliases else set()
        return stands_for.union(*(self.uses(body) for body in self.bodies.get(name, [])))

    def uses(self, tree: ast.AST) -> set[str]:
        """Every dotted name that a part of this module refers to."""
        local = imports(tree, self.package)
        aliases = self.aliases | local
        texts = {node.value for node in ast.walk(tree) if is_text(node)}
        named = {f"{text}.*" for text in texts if is_dotted(text)}  # import_module("adlearn.methods.goad")
        found = {*local.values(), *named}
        for head, tail in chains(tree):
            if head in aliases:
                found.add(f"{aliases[head]}.{tail}")
            elif head in self.bodies:
                found.add(f"{self.name}.{head}")
        return found


def imports(tree: ast.AST, package: str) -> dict[str, str]:
    """Local name → dotted name, for each import in the tree, also inside functions."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                root = alias.name.partition(".")[0]
                found |= {alias.asname: alias.name} if alias.asname else {root: root, alias.name: alias.name}
        elif isinstance(node, ast.ImportFrom):
            above = package.rsplit(".", node.level - 1)[0] if node.level else ""
            base = ".".join(part for part in (above, node.module) if part)
            found |= {alias.asname or alias.name: f"{base}.{alias.name}" for alias in node.names}
    return found


def lazy_names(table: ast.AST | None, package: str) -> dict[str, str]:
    """The aliases of a table {"Name": "package.module"}; a bare "module" is seen from the package."""
    if not isinstance(table, ast.Dict):
        return {}
    pairs = zip(table.keys, table.values, strict=True)
    homes = {key.value: value.value for key, value in pairs if is_text(key) and is_text(value)}
    root = package.partition(".")[0] + "."
    return {name: f"{home if home.startswith(root) else f'{package}.{home}'}.{name}" for name, home in homes.items()}


def is_text(node: ast.AST | None) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def is_dotted(text: str) -> bool:
    return "." in text and all(part.isidentifier() for part in text.split("."))


def chains(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Names with their attributes: ("data", "elpv") for `data.elpv`; ("data", "*"), all of it, for a bare `data`."""
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        parts = []
        if id(node) not in inner:
            while isinstance(node, ast.Attribute):
                parts.insert(0, node.attr)
                node = node.value
            if isinstance(node, ast.Name):
                yield node.id, ".".join(parts) or "*"


class Package:
    """A package's folder, seen as a graph of names."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.module = cache(self._module)  # each file is parsed once

    def file(self, name: str) -> Path | None:
        """Where a module stands; None if there is no module of that name."""
        return code_of(self.folder.parent / name.replace(".", "/"))

    def _module(self, name: str) -> Module:
        file = self.file(name)
        package = name if file.name == "__init__.py" else name.rpartition(".")[0]
        return Module(name, package, file.read_text("utf-8"))

    def needed(self, code: str) -> set[str]:
        """The dotted names of the modules that the code depends on."""
        chapter = Module("", "", code)
        todo, seen, needed = chapter.uses(chapter.tree), set(), set()
        while todo:
            name = todo.pop()
            if name.partition(".")[0] == self.folder.name and name not in seen:
                seen.add(name)
                todo |= self._step(name.split("."), needed)
        return needed

    def _step(self, parts: list[str], needed: set[str]) -> set[str]:
        """Follow one dotted name: note the modules on its way, return what the thing it names refers to."""
        found: set[str] = set()
        module = above = None
        rest = list(parts)
        while rest and self.file(dotted := ".".join([module.name, rest[0]] if module else rest[:1])):
            above, module = module, self.module(dotted)
            del rest[0]
            needed.add(module.name)
            found |= module.refers("")
        shadow = above.aliases.get(module.name.rpartition(".")[2]) if above else None
        if rest in ([], ["*"]) and shadow not in (None, module.name):
            return found | {shadow}  # the package binds a name over its own submodule: data.elpv is a function
        if rest == ["*"]:
            return found.union(self._below(module.name), *map(module.refers, [*module.aliases, *module.bodies]))
        if rest and rest[0] in module.aliases:
            return found | {".".join([module.aliases[rest[0]], *rest[1:]])}
        name = rest[0] if rest else ""
        return found | module.refers(name if name in ("", *module.bodies) else "__getattr__")

    def _below(self, name: str) -> set[str]:
        """The submodules of a package, each as a whole; none for a plain module."""
        file = self.file(name)
        stems = {path.stem for path in file.parent.iterdir()} if file.name == "__init__.py" else set()
        return {f"{name}.{stem}.*" for stem in stems - {"__init__"} if self.file(f"{name}.{stem}")}

    def files(self, name: str) -> list[Path]:
        """A module's file and its data: in a folder of its own name, or, of a package, in its own folder."""
        code = self.file(name)
        folder = code.parent if code.name == "__init__.py" else code.with_suffix("")
        return [code, *sorted(path for path in folder.rglob("*") if is_data(path) and owner(path) == code)]


def code_of(path: Path) -> Path | None:
    """The file of the module that would stand at a path without its ending."""
    return next((file for file in (path / "__init__.py", path.with_name(f"{path.name}.py")) if file.exists()), None)


def is_data(path: Path) -> bool:
    return path.is_file() and path.suffix not in {".py", ".pyc"} and not path.name.startswith(".")


def owner(data: Path) -> Path:
    """The code that a data file belongs to: of the nearest folder above that is a package or a module's own."""
    return next(code for folder in data.parents if (code := code_of(folder)))
