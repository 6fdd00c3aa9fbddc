"""The shape of the house: who may import whom, what stays out of where, how long modules are."""

import ast
import importlib
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "bart_hk"

# Imports run downward only: a room may use itself and the rooms of lower floors.
FLOORS = [
    {"config", "errors"},
    {"text", "torch_format", "kernels"},
    {"model", "checkpoint", "data", "zoo", "compilation", "memory"},
    {"generation"},
    {"tasks"},
    {"hub"},
    {"training"},
    {"cli", "conf"},
    {"hubconf", "tools"},
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}

# Third-party packages that only these rooms may import.
HOME = {
    "haiku": {"model"},
    "jax": set(FLOOR) - {"config", "data", "text", "torch_format"},
    "jaxlib": set(FLOOR) - {"config", "data", "text", "torch_format"},
    "hydra": {"cli"},
    "argparse": {"cli", "tools"},
    "torch": {"tools", "hubconf", "hub"},
    "fairseq": {"tools"},
    "transformers": {"tools"},
}
MAX_LINES = 500


def sources() -> dict[str, Path]:
    """Module name -> file, of the package, hubconf.py and tools/."""
    paths = [*PACKAGE.rglob("*.py"), *ROOT.glob("hubconf.py"), *(ROOT / "tools").rglob("*.py")]
    modules = {}
    for path in paths:
        parts = path.relative_to(ROOT).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return modules


MODULES = sources()


def room(module: str) -> str:
    """The room of a module: model of bart_hk.model.attention; the empty one of bart_hk itself."""
    first, _, rest = module.partition(".")
    return rest.partition(".")[0] if first == "bart_hk" else first


def imports(module: str) -> Iterator[tuple[int, str]]:
    """(line, absolute name) of every import of `module`, those inside functions included."""
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module}:{node.lineno}: imports are absolute here"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                # `from bart_hk.model import BART` names the module and a thing in it
                yield node.lineno, name if name in MODULES else str(node.module)


def own_imports(module: str) -> set[str]:
    """The modules of the project that `module` imports."""
    return {name for _, name in imports(module) if name.partition(".")[0] == "bart_hk"}


@pytest.mark.parametrize("module", sorted(set(MODULES) - {"bart_hk"}))
def test_imports_run_downward(module: str) -> None:
    here = room(module)
    assert here in FLOOR, f"{module} is in no layer: add it to FLOORS"
    for line, name in imports(module):
        if name.partition(".")[0] != "bart_hk":
            continue
        there = room(name)
        allowed = there == here or there == "" or FLOOR.get(there, len(FLOORS)) < FLOOR[here]
        # What stands at the door hands out everything, so inside the house nobody goes through it.
        if there == "":
            allowed = here in {"hubconf", "tools"}
        assert allowed, f"{module}:{line}: {here} imports {name}, which is not below it"


@pytest.mark.parametrize("module", sorted(MODULES))
def test_packages_stay_in_their_rooms(module: str) -> None:
    for line, name in imports(module):
        package = name.partition(".")[0]
        homes = HOME.get(package)
        assert homes is None or room(module) in homes, (
            f"{module}:{line}: only {', '.join(sorted(homes))} may import {package}"
        )


def test_no_circles() -> None:
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module in done or module not in MODULES:
            return
        for name in sorted(own_imports(module) - {module}):
            visit(name, (*path, module))
        done.add(module)

    for module in sorted(MODULES):
        visit(module, ())


@pytest.mark.parametrize("module", sorted(name for name in MODULES if name.startswith("bart_hk")))
def test_modules_are_short(module: str) -> None:
    lines = MODULES[module].read_text(encoding="utf-8").count("\n")
    assert lines <= MAX_LINES, f"{module} has {lines} lines: it holds more than one concept"


def loaded_by(statement: str) -> set[str]:
    """Top-level packages that are loaded after `statement` ran in a fresh interpreter."""
    program = f"{statement}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(run.stdout.split())


def every_module_of(package: str) -> str:
    path = importlib.import_module(package).__path__
    names = [module.name for module in pkgutil.walk_packages(path, f"{package}.")]
    return f"import {', '.join([package, *names])}"


@pytest.mark.parametrize(
    ("package", "without"),
    [
        ("bart_hk.text", {"jax", "haiku", "hydra", "torch"}),
        ("bart_hk.data", {"jax", "haiku", "hydra", "torch"}),
        ("bart_hk.torch_format", {"jax", "haiku", "hydra", "torch"}),
        ("bart_hk.checkpoint", {"haiku", "torch"}),
    ],
)
def test_what_an_import_brings_in(package: str, without: set[str]) -> None:
    assert not loaded_by(every_module_of(package)) & without


def test_the_package_itself_is_light() -> None:
    """`import bart_hk` fetches its public names on first use."""
    assert not loaded_by("import bart_hk") & {"jax", "haiku", "numpy", "tokenizers"}
