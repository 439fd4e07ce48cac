"""Write constraints/oldest.txt from pyproject.toml, constraints/newest.txt from this environment.

`make pins` runs it in the environment that `make test-newest` has tested. Local labels such as
`+cpu` are left out: they name a build that other machines cannot find.
"""

from __future__ import annotations

import datetime
import platform
import tomllib
from collections.abc import Iterator
from importlib.metadata import distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]


def requirements() -> Iterator[Requirement]:
    """Yield what pyproject.toml asks for, its extras included."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for group in (project["dependencies"], *project["optional-dependencies"].values()):
        yield from map(Requirement, group)


def floors() -> dict[str, str]:
    """Return the oldest version that pyproject.toml allows, by normalised name."""
    return {
        canonicalize_name(each.name): bound.version
        for each in requirements()
        for bound in each.specifier
        if bound.operator == ">="
    }


def installed() -> dict[str, str]:
    """Return the public version of each distribution here but saesteer, by normalised name."""
    found = {canonicalize_name(each.metadata["Name"]): each.version for each in distributions()}
    return {name: Version(found[name]).public for name in found if name != "saesteer"}


def write(name: str, head: str, versions: dict[str, str]) -> None:
    """Write a constraints file, sorted by name."""
    pins = [f"{each}=={versions[each]}" for each in sorted(versions)]
    (ROOT / "constraints" / name).write_text("\n".join([f"# {head}", *pins, ""]), encoding="utf-8")


if __name__ == "__main__":
    write("oldest.txt", "The floors of pyproject.toml; written by `make pins`.", floors())
    head = f"Tested with Python {platform.python_version()} on {datetime.date.today()}."
    write("newest.txt", head, installed())
