"""Public names are documented, and their docstrings name the parameters that exist."""

import ast
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src"
FULLY_DOCUMENTED_ROOM = "steadytune/functional/"  # here every parameter of a function is described

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Docs:
    """The classes of a tree by name, so that an override is documented where the method is declared."""

    classes: dict[str, ast.ClassDef]

    def ancestors(self, node: ast.ClassDef) -> list[ast.ClassDef]:
        """The bases that lie in the tree, and theirs, nearest first."""
        found: list[ast.ClassDef] = []
        for base in node.bases:
            bare = base.value if isinstance(base, ast.Subscript) else base
            name = bare.attr if isinstance(bare, ast.Attribute) else getattr(bare, "id", "")
            if (parent := self.classes.get(name)) is not None and parent is not node:
                found += [parent, *self.ancestors(parent)]
        return found


def docstring_problems(source: Path) -> list[str]:
    """Each public name without a docstring, and each docstring that disagrees with its signature."""
    trees = {
        file.relative_to(source).as_posix(): ast.parse(file.read_text(encoding="utf-8"))
        for file in sorted(source.rglob("*.py"))
    }
    docs = Docs({n.name: n for tree in trees.values() for n in ast.walk(tree) if isinstance(n, ast.ClassDef)})
    problems = []
    for file, tree in trees.items():
        if any(part.startswith("_") and part != "__init__.py" for part in file.split("/")):
            continue
        for node in public(tree.body):
            if isinstance(node, ast.ClassDef):
                problems += class_problems(file, node, docs)
            else:
                problems += function_problems(f"{file}:{node.lineno} {node.name}", node, skip_first=False)
                if file.startswith(FULLY_DOCUMENTED_ROOM) and parameters(node) and args_section(node) is None:
                    problems.append(f"{file}:{node.lineno} {node.name}: has parameters and no 'Args:' section")
    return problems


def public(body: list[ast.stmt]) -> list[ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    return [
        node
        for node in body
        if isinstance(node, ast.ClassDef | Function)
        and not node.name.startswith("_")
        and not {"overload", "setter", "deleter"} & {decorator_name(d) for d in node.decorator_list}
    ]


def decorator_name(node: ast.expr) -> str:
    node = node.func if isinstance(node, ast.Call) else node
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def class_problems(file: str, node: ast.ClassDef, docs: Docs) -> list[str]:
    where = f"{file}:{node.lineno} {node.name}"
    problems = [] if ast.get_docstring(node) else [f"{where}: no docstring"]
    family = [node, *docs.ancestors(node)]
    fields = {
        statement.target.id
        for member in family
        for statement in member.body
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
    }
    for member in family:
        for statement in member.body:
            if isinstance(statement, Function) and statement.name == "__init__":
                fields |= set(parameters(statement)[1:])
    if unknown := [name for name in args_section(node) or [] if name not in fields]:
        problems.append(f"{where}: 'Args:' names {unknown}, which are neither fields nor parameters of __init__")
    for method in public(node.body):
        declared_above = any(
            isinstance(statement, Function) and statement.name == method.name and ast.get_docstring(statement)
            for parent in family[1:]
            for statement in parent.body
        )
        if isinstance(method, Function) and not (declared_above and not ast.get_docstring(method)):
            static = "staticmethod" in {decorator_name(d) for d in method.decorator_list}
            problems += function_problems(
                f"{file}:{method.lineno} {node.name}.{method.name}", method, skip_first=not static
            )
    return problems


def function_problems(where: str, node: Function, *, skip_first: bool) -> list[str]:
    if not ast.get_docstring(node):
        return [f"{where}: no docstring"]
    documented = args_section(node)
    actual = parameters(node)[1:] if skip_first else parameters(node)
    if documented is not None and documented != actual:
        return [f"{where}: 'Args:' names {documented}, the signature {actual}"]
    return []


def parameters(node: Function) -> list[str]:
    """Parameter names in the order of the signature."""
    a = node.args
    listed = [
        *a.posonlyargs,
        *a.args,
        *([a.vararg] if a.vararg else []),
        *a.kwonlyargs,
        *([a.kwarg] if a.kwarg else []),
    ]
    return [argument.arg for argument in listed]


def args_section(node: ast.ClassDef | Function) -> list[str] | None:
    """The names that the 'Args:' section describes, in order; None where there is no such section."""
    lines = (ast.get_docstring(node) or "").splitlines()
    if "Args:" not in lines:
        return None
    names: list[str] = []
    for line in lines[lines.index("Args:") + 1 :]:
        if line and not line.startswith(" "):
            break
        if entry := re.match(r" {4}(\*{0,2}\w+(?:, \*{0,2}\w+)*):(?: |$)", line):
            names += [name.lstrip("*") for name in entry.group(1).split(", ")]
    return names


def test_public_names_are_documented_as_they_are() -> None:
    problems = docstring_problems(SOURCE)
    assert problems == [], "\n" + "\n".join(problems)


def documented(docstring: str, header: str = "def f(a, *, b=1, **rest):") -> str:
    body = "\n".join("    " + line if line else "" for line in f'"""{docstring}"""'.splitlines())
    return f"{header}\n{body}\n"


FULL = """\
What it gives.

Args:
    a: one.
    b: two, and
        more: of it.
    rest: others.
Returns:
    c: d.
"""
BASE = 'class Base:\n    """A."""\n    weight: float\n    def loss(self, step):\n        """B."""\n'


@pytest.mark.parametrize(
    ("file", "text", "named"),
    [
        ("data/a.py", "def f(): ...\n", "f: no docstring"),
        ("data/__init__.py", "def f(): ...\n", "f: no docstring"),
        ("data/a.py", "class A: ...\n", "A: no docstring"),
        ("data/a.py", 'class A:\n    """A."""\n    def f(self): ...\n', "A.f: no docstring"),
        ("data/a.py", BASE + 'class C(Base):\n    """C."""\n    def other(self): ...\n', "C.other: no docstring"),
        ("data/a.py", 'class C(nn.Module):\n    """C."""\n    def forward(self): ...\n', "C.forward: no docstring"),
        ("data/a.py", documented(FULL, "def f(a, b):"), "['a', 'b', 'rest'], the signature ['a', 'b']"),
        ("data/a.py", documented(FULL, "def f(a, b, extra, **rest):"), "the signature ['a', 'b', 'extra', 'rest']"),
        ("data/a.py", documented(FULL, "def f(b, a, **rest):"), "the signature ['b', 'a', 'rest']"),
        ("data/a.py", documented("A.\n\nArgs:\n    size: b.\n", "class A:") + "    weight: int\n", "['size']"),
        ("functional/a.py", documented("One line."), "no 'Args:' section"),
    ],
)
def test_a_missing_or_wrong_docstring_is_named(file: str, text: str, named: str, tmp_path: Path) -> None:
    target = tmp_path / "steadytune" / file
    target.parent.mkdir(parents=True)
    target.write_text(text)
    assert any(named in problem for problem in docstring_problems(tmp_path))


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("data/a.py", documented(FULL)),
        ("data/a.py", documented("One line.")),
        ("data/a.py", "def _f(): ...\nclass _A: ...\n"),
        ("data/_a.py", "def f(): ...\n"),
        ("data/a.py", "def f():\n    '''F.'''\n    def inner(): ...\n"),
        ("data/a.py", "@overload\ndef f(a: int): ...\ndef f(a):\n    '''F.'''\n"),
        ("data/a.py", BASE + 'class C(Base):\n    """C."""\n    def loss(self, step): ...\n'),
        ("data/a.py", BASE + 'class C(Base):\n    """C.\n\n    Args:\n        weight: w.\n    """\n'),
        ("data/a.py", 'class A:\n    """A.\n\n    Args:\n        x: w.\n    """\n    def __init__(self, x): ...\n'),
        ("functional/a.py", documented(FULL)),
        ("functional/a.py", "def f():\n    '''No parameter to describe.'''\n"),
    ],
)
def test_a_right_docstring_passes(file: str, text: str, tmp_path: Path) -> None:
    target = tmp_path / "steadytune" / file
    target.parent.mkdir(parents=True)
    target.write_text(text)
    assert docstring_problems(tmp_path) == []
