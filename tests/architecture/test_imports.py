"""The arrows of the architecture: every import in the package is read, none is executed."""

import ast
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src"
PACKAGE = "steadytune"

# Top to bottom: a room may import itself and those above it.
ROOMS = (
    "functional",
    "encoders",
    "tasks",
    "methods",
    "objective",
    "data",
    "recipes",
    "records",
    "training",
    "studies",
    "reports",
    "cli",
)
TORCH_FREE_ROOMS = ("records", "reports")
LOADS_TORCH = {"torch", "transformers", "accelerate", "sentence_transformers", "torchmetrics", "peft"}
OPTIONAL = {"onnx", "onnxruntime", "optuna", "peft", "ray", "tensorboard", "trackio", "wandb", "mlflow"}
SLOW_TO_LOAD = {"torchmetrics"}  # a second for one metric, which few runs compute
ROOMLESS_NAMES = {"util", "utils", "common", "helper", "helpers", "misc", "core", "base"}


@dataclass(frozen=True)
class Import:
    """One import as written: `target` is the deepest module it names, `attribute` what it takes from there."""

    target: str
    attribute: str | None
    line: int
    in_function: bool = False
    type_only: bool = False  # under `if TYPE_CHECKING:`
    dynamic: bool = False  # a call of `import_module` or `__import__`
    lazy_face: bool = False  # in the `__getattr__` by which a package's `__init__` loads its names (PEP 562)


@dataclass(frozen=True)
class Module:
    name: str
    file: Path
    is_package: bool
    imports: tuple[Import, ...]

    @property
    def room(self) -> str | None:
        """First name below the package; None for the package's own `__init__` and `__main__`."""
        parts = self.name.split(".")
        return parts[1] if len(parts) > 1 and parts[1] != "__main__" else None

    def at(self, found: Import) -> str:
        return f"{self.name}:{found.line}"


def read_tree(source: Path) -> dict[str, Module]:
    """All modules below `source`/steadytune by dotted name, with their imports resolved."""
    names = {}
    for file in sorted((source / PACKAGE).rglob("*.py")):
        parts = file.relative_to(source).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return {
        name: Module(name, file, file.name == "__init__.py", tuple(read_imports(name, file, set(names))))
        for name, file in names.items()
    }


def read_imports(name: str, file: Path, known: set[str]) -> Iterator[Import]:
    tree = ast.parse(file.read_text(encoding="utf-8"), filename=str(file))
    package = name.split(".") if file.name == "__init__.py" else name.split(".")[:-1]
    functions = ids_below(tree, lambda node: isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))
    types = ids_below(tree, lambda node: isinstance(node, ast.If) and last_name(node.test) == "TYPE_CHECKING")
    faces = ids_below(tree, lambda node: node in tree.body and getattr(node, "name", "") == "__getattr__")
    for node in ast.walk(tree):
        place = {
            "in_function": id(node) in functions,
            "type_only": id(node) in types,
            "lazy_face": id(node) in faces and file.name == "__init__.py",
        }
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, None, node.lineno, **place)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                deeper = f"{origin}.{alias.name}"
                if deeper in known:
                    yield Import(deeper, None, node.lineno, **place)
                else:
                    yield Import(origin, alias.name, node.lineno, **place)
        elif isinstance(node, ast.Call) and last_name(node.func) in {"import_module", "__import__"}:
            name_given = getattr(node.args[0], "value", None) if node.args else None
            target = name_given if isinstance(name_given, str) else "?"
            yield Import(target, None, node.lineno, **place, dynamic=True)


def ids_below(tree: ast.Module, chosen: Callable[[ast.AST], bool]) -> set[int]:
    return {id(child) for node in ast.walk(tree) if chosen(node) for child in ast.walk(node)}


def last_name(expression: ast.expr) -> str | None:
    if isinstance(expression, ast.Attribute):
        return expression.attr
    return expression.id if isinstance(expression, ast.Name) else None


def internal(found: Import) -> bool:
    return found.target.split(".")[0] == PACKAGE


def unknown_rooms(modules: dict[str, Module]) -> list[str]:
    return sorted({f"{m.name}: no room {m.room!r}" for m in modules.values() if m.room and m.room not in ROOMS})


def upward_arrows(modules: dict[str, Module]) -> list[str]:
    """Imports of a room further down, or of the public face, which hides which room is meant."""
    problems = []
    for module in modules.values():
        if module.room not in ROOMS:
            continue
        for found in filter(internal, module.imports):
            parts = found.target.split(".")
            if len(parts) == 1:
                if not (found.attribute or "").startswith("__"):
                    problems.append(f"{module.at(found)} imports the public face {PACKAGE!r}, not a room")
            elif parts[1] in ROOMS and ROOMS.index(parts[1]) > ROOMS.index(module.room):
                problems.append(f"{module.at(found)} imports {found.target}, which is below {module.room}")
    return problems


def roads_to_torch(modules: dict[str, Module]) -> list[str]:
    """For each module of a torch-free room, the first chain of imports that ends in torch."""
    problems = []
    for start in modules.values():
        if start.room not in TORCH_FREE_ROOMS:
            continue
        roads, seen = [[start.name]], {start.name}
        while roads:
            road = roads.pop(0)
            for target in loaded_by(modules[road[-1]], modules):
                if target.split(".")[0] in LOADS_TORCH or target == "safetensors.torch":
                    problems.append(" > ".join([*road, target]))
                elif target in modules and target not in seen:
                    seen.add(target)
                    roads.append([*road, target])
    return problems


def loaded_by(module: Module, modules: dict[str, Module]) -> list[str]:
    """What importing `module` loads next: its imports and every package on the way down to each and to itself.

    Imports for types alone load nothing, but a torch-free room may not have torch's types either.
    """
    strict = module.room in TORCH_FREE_ROOMS
    imports = [f for f in module.imports if not f.lazy_face and (strict or not f.type_only)]
    targets = []
    for name in [module.name, *(found.target for found in imports)]:
        parts = name.split(".")
        targets += [".".join(parts[:depth]) for depth in range(1, len(parts) + 1)] if parts[0] == PACKAGE else [name]
    targets += ["safetensors.torch" for f in imports if (f.target, f.attribute) == ("safetensors", "torch")]
    return [target for target in dict.fromkeys(targets) if target != module.name]


def cycles(modules: dict[str, Module]) -> list[str]:
    """Every module that reaches itself through imports as written, with one such road.

    An import for types alone counts: it is an arrow all the same. The public face is excepted, it must name all rooms.
    """
    arrows = {
        name: sorted(
            f.target
            for f in set(module.imports)
            if f.target in modules and f.target != name and not f.lazy_face and not (f.type_only and name == PACKAGE)
        )
        for name, module in modules.items()
    }
    found: dict[frozenset[str], str] = {}
    for start in modules:
        roads, seen = [[start]], set()
        while roads:
            road = roads.pop(0)
            for target in arrows[road[-1]]:
                if target == start:
                    found.setdefault(frozenset(road), " > ".join([*road, start]))
                elif target not in seen:
                    seen.add(target)
                    roads.append([*road, target])
    return sorted(found.values())


def hidden_imports(modules: dict[str, Module]) -> list[str]:
    """Imports in a function or by name, but of optional and slow third parties, in `cli`, by a package's lazy face."""
    return [
        f"{module.at(found)} imports {found.target} {'by name' if found.dynamic else 'inside a function'}"
        for module in modules.values()
        for found in module.imports
        if (found.in_function or found.dynamic)
        and found.target.split(".")[0] not in OPTIONAL | SLOW_TO_LOAD
        and module.room != "cli"
        and not found.lazy_face
    ]


def roomless_names(modules: dict[str, Module]) -> list[str]:
    return sorted(
        name for name in modules if ROOMLESS_NAMES & {part.strip("_").lower() for part in name.split(".")[1:]}
    )


Check = Callable[[dict[str, Module]], list[str]]
CHECKS: list[Check] = [unknown_rooms, upward_arrows, roads_to_torch, cycles, hidden_imports, roomless_names]


@pytest.fixture(scope="module")
def modules() -> dict[str, Module]:
    found = read_tree(SOURCE)
    assert found, f"no module below {SOURCE}"
    return found


def test_every_module_lies_in_a_room(modules: dict[str, Module]) -> None:
    assert unknown_rooms(modules) == []


def test_no_room_imports_from_below(modules: dict[str, Module]) -> None:
    assert upward_arrows(modules) == []


def test_records_and_reports_never_reach_torch(modules: dict[str, Module]) -> None:
    assert roads_to_torch(modules) == []


def test_no_module_reaches_itself(modules: dict[str, Module]) -> None:
    assert cycles(modules) == []


def test_no_import_hides_in_a_function(modules: dict[str, Module]) -> None:
    assert hidden_imports(modules) == []


def test_no_module_is_a_drawer_for_the_rest(modules: dict[str, Module]) -> None:
    assert roomless_names(modules) == []


@pytest.mark.parametrize("room", TORCH_FREE_ROOMS)
def test_a_torch_free_room_loads_without_torch(room: str, modules: dict[str, Module]) -> None:
    names = [name for name, module in modules.items() if module.room == room]
    program = "import importlib, sys; [importlib.import_module(n) for n in sys.argv[1:]]; print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", program, *names], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout.strip()) == (0, "False"), run.stderr


# The checks themselves: a lawful tree passes all of them, and each unlawful one fails the check that it is for.

LAWFUL = {
    "__init__.py": "import importlib\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n"
    "    from steadytune.methods import SCL\n__version__ = '1'\n"
    "def __getattr__(name):\n    return importlib.import_module('steadytune.cli')\n",
    "__main__.py": "from steadytune.cli import main\n",
    "functional/__init__.py": "from steadytune.functional.noise import draw\n",
    "functional/noise.py": "import torch\ndef draw(): ...\n",
    "methods/__init__.py": "from steadytune.methods.scl import SCL\n",
    "methods/scl.py": "from steadytune.functional import draw\nfrom .contract import Method\n",
    "methods/contract.py": "from steadytune import functional\nfrom steadytune import __version__\n",
    "objective.py": "from steadytune import methods\n",
    "records/__init__.py": "import json\nfrom steadytune import __version__\n",
    "training/__init__.py": "import importlib\ndef fit():\n    import peft\n    importlib.import_module('ray.tune')\n",
    "reports/__init__.py": "from steadytune.records import json\n",
    "cli/__init__.py": "def main():\n    from steadytune.training import fit\n",
}

UNLAWFUL: list[tuple[Check, dict[str, str], str]] = [
    (unknown_rooms, {"engine.py": ""}, "steadytune.engine"),
    (unknown_rooms, {"engine/step.py": ""}, "steadytune.engine.step"),
    (upward_arrows, {"functional/noise.py": "from steadytune.methods import SCL\n"}, "steadytune.methods"),
    (upward_arrows, {"functional/noise.py": "from ..methods.scl import SCL\n"}, "steadytune.methods.scl"),
    (upward_arrows, {"functional/noise.py": "from .. import objective\n"}, "steadytune.objective"),
    (upward_arrows, {"functional/noise.py": "import steadytune.cli as face\n"}, "steadytune.cli"),
    (upward_arrows, {"methods/__init__.py": "def f():\n    from steadytune.training import fit\n"}, "training"),
    (upward_arrows, {"objective.py": "from steadytune import SCL\n"}, "public face"),
    (upward_arrows, {"objective.py": "import steadytune\n"}, "public face"),
    (roads_to_torch, {"records/store.py": "import torch.nn\n"}, "steadytune.records.store > torch.nn"),
    (roads_to_torch, {"records/store.py": "from transformers import AutoModel\n"}, "store > transformers"),
    (roads_to_torch, {"records/store.py": "from safetensors import torch\n"}, "store > safetensors.torch"),
    (roads_to_torch, {"reports/page.py": "from steadytune.functional import draw\n"}, "functional.noise > torch"),
    (roads_to_torch, {"reports/page.py": "", "__init__.py": "import torch\n"}, "steadytune > torch"),
    (roads_to_torch, {"records/__init__.py": "if True:\n    import torch\n"}, "steadytune.records > torch"),
    (roads_to_torch, {"records/__init__.py": "if TYPE_CHECKING:\n    import torch\n"}, "steadytune.records > torch"),
    (cycles, {"functional/noise.py": "from steadytune.functional import draw\n"}, "steadytune.functional.noise"),
    (
        cycles,
        {"methods/a.py": "from .b import B", "methods/b.py": "from .c import C", "methods/c.py": "from . import a"},
        "steadytune.methods.a > steadytune.methods.b > steadytune.methods.c > steadytune.methods.a",
    ),
    (
        cycles,
        {"methods/a.py": "if TYPE_CHECKING:\n    from .b import B", "methods/b.py": "from .a import A"},
        "steadytune.methods.a > steadytune.methods.b > steadytune.methods.a",
    ),
    (hidden_imports, {"objective.py": "def step():\n    import json\n"}, "steadytune.objective:2 imports json"),
    (hidden_imports, {"objective.py": "class A:\n    def f(self):\n        from os import path\n"}, "imports os"),
    (hidden_imports, {"objective.py": "import importlib\nimportlib.import_module('json')\n"}, "json by name"),
    (hidden_imports, {"objective.py": "name = 'json'\n__import__(name)\n"}, "imports ? by name"),
    (hidden_imports, {"objective.py": "def __getattr__(name):\n    import json\n"}, "imports json"),
    (hidden_imports, {"methods/__init__.py": "class A:\n    def __getattr__(self, n):\n        import json\n"}, "json"),
    (roomless_names, {"data/utils.py": ""}, "steadytune.data.utils"),
    (roomless_names, {"data/_helpers.py": ""}, "steadytune.data._helpers"),
    (roomless_names, {"core/__init__.py": "", "core/step.py": ""}, "steadytune.core.step"),
]


def write_tree(source: Path, files: dict[str, str]) -> dict[str, Module]:
    for name, text in files.items():
        file = source / PACKAGE / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return read_tree(source)


@pytest.mark.parametrize("check", CHECKS)
def test_a_lawful_tree_passes(check: Check, tmp_path: Path) -> None:
    assert check(write_tree(tmp_path, LAWFUL)) == []


@pytest.mark.parametrize(("check", "change", "named"), UNLAWFUL)
def test_an_unlawful_tree_fails_and_is_named(check: Check, change: dict[str, str], named: str, tmp_path: Path) -> None:
    assert any(named in problem for problem in check(write_tree(tmp_path, LAWFUL | change)))


def test_every_check_is_seen_to_fail() -> None:
    assert {check for check, _, _ in UNLAWFUL} == set(CHECKS)
