"""The house: sixteen rooms and the faces, imports only downward."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import saesteer

# From the ground up: a room may import from those before it and from none behind.
FLOORS = (
    *("utils", "data", "models", "saes", "steering", "evaluation", "methods", "probes"),
    *("patching", "corruption", "tracking", "report", "experiments", "sweeps", "agent"),
    *("app", "cli"),
)
PACKAGE = Path(saesteer.__file__).parent


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts).removesuffix(".__init__")] = path
    return found


def imports(path: Path, known: dict[str, Path]) -> Iterator[tuple[int, str]]:
    """Yield line and module of every import of the package that runs, wherever it stands."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("saesteer"):
            for name in node.names:
                inner = f"{node.module}.{name.name}"
                yield node.lineno, inner if inner in known else str(node.module)
        elif isinstance(node, ast.Import):
            for name in node.names:
                if name.name.startswith("saesteer"):
                    yield node.lineno, name.name


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def test_every_room_is_known() -> None:
    folders = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()}
    assert folders <= set(FLOORS)
    loose = {path.name for path in PACKAGE.glob("*.py")}
    assert loose == {"__init__.py"}


def test_imports_go_down() -> None:
    known = modules()
    up = [
        f"{path.relative_to(PACKAGE.parent)}:{line} imports {target}"
        for module, path in known.items()
        for line, target in imports(path, known)
        if room(module) and room(target) and FLOORS.index(room(target)) > FLOORS.index(room(module))
    ]
    assert not up, "\n".join(["these imports go up:", *up])


def test_imports_lead_somewhere() -> None:
    # Those inside functions too, which only a command that gets there would miss.
    known = modules()
    nowhere = [
        f"{path.relative_to(PACKAGE.parent)}:{line} imports {target}"
        for path in known.values()
        for line, target in imports(path, known)
        if target not in known
    ]
    assert not nowhere, "\n".join(["these modules are not there:", *nowhere])


def test_no_circles_between_files() -> None:
    known = modules()
    graph = {
        module: {target for _, target in imports(path, known)} & known.keys() - {module, "saesteer"}
        for module, path in known.items()
    }
    circles = []
    while True:
        try:
            TopologicalSorter(graph).prepare()
        except CycleError as error:
            circle = error.args[1]
            circles.append(" <- ".join(circle))
            graph[circle[1]] -= {circle[0]}
        else:
            break
    assert not circles, "\n".join(["these files import each other:", *circles])
