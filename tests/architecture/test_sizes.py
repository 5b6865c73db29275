"""Sizes are reported as warnings; they never fail a run. What is tested is that the measuring works."""

import ast
import warnings
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src"
FILE_LINES, METHOD_FILE_LINES, FUNCTION_LINES = 400, 250, 40
EXEMPT = ("steadytune/cli/", "steadytune/training/trainer.py")  # their frameworks force their shape


class SizeWarning(UserWarning):
    """Something has grown over its bound; say what it does twice, and part it there."""


def oversized(source: Path) -> list[str]:
    """Each file and function over its bound, as one line; blank lines, comments and docstrings of files count."""
    found = []
    for file in sorted(source.rglob("*.py")):
        name = file.relative_to(source).as_posix()
        if name.startswith(EXEMPT):
            continue
        text = file.read_text(encoding="utf-8")
        bound = METHOD_FILE_LINES if name.startswith("steadytune/methods/") else FILE_LINES
        if (lines := len(text.splitlines())) > bound:
            found.append(f"{name}: {lines} lines, bound {bound}")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (n := code_lines(node)) > FUNCTION_LINES:
                found.append(f"{name}:{node.lineno} {node.name}: {n} lines, bound {FUNCTION_LINES}")
    return found


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from `def` to the end, without the docstring: a full one is asked for elsewhere."""
    lines = (function.end_lineno or function.lineno) - function.lineno + 1
    if ast.get_docstring(function) is None:
        return lines
    docstring = function.body[0]
    return lines - ((docstring.end_lineno or docstring.lineno) - docstring.lineno + 1)


def test_sizes_are_reported() -> None:
    for line in oversized(SOURCE):
        warnings.warn(line, SizeWarning, stacklevel=1)


def function_of(lines: int, docstring: str = "") -> str:
    return "def f():\n" + docstring + "    x = 1\n" * (lines - 1)


@pytest.mark.parametrize(
    ("name", "text", "named"),
    [
        ("steadytune/data/sources.py", "x = 1\n" * 401, "401 lines, bound 400"),
        ("steadytune/methods/scl.py", "x = 1\n" * 251, "251 lines, bound 250"),
        ("steadytune/objective.py", function_of(41), "steadytune/objective.py:1 f: 41 lines, bound 40"),
        ("steadytune/objective.py", "class A:\n    def g(self):\n" + "        x = 1\n" * 40, "2 g: 41 lines"),
    ],
)
def test_over_the_bound_is_named(name: str, text: str, named: str, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).write_text(text)
    assert any(named in line for line in oversized(tmp_path))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("steadytune/data/sources.py", "x = 1\n" * 400),
        ("steadytune/methods/scl.py", "x = 1\n" * 250),
        ("steadytune/objective.py", function_of(40, docstring='    """One.\n\n    Two.\n    """\n')),
        ("steadytune/cli/train.py", "x = 1\n" * 500 + function_of(50)),
        ("steadytune/training/trainer.py", "x = 1\n" * 500),
    ],
)
def test_at_the_bound_or_exempt_is_silent(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).write_text(text)
    assert oversized(tmp_path) == []
