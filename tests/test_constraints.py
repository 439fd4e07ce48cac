"""The constraints files agree with pyproject.toml, and a tested lane has tests."""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]


def _script():
    spec = importlib.util.spec_from_file_location("pin", ROOT / "scripts" / "pin.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


REQUIREMENTS = list(_script().requirements())


def _pins(name: str) -> dict[str, str]:
    lines = (ROOT / "constraints" / name).read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


def test_a_file_of_constraints_holds_sorted_exact_public_versions_and_no_address():
    for name in ("newest.txt", "oldest.txt"):
        head, *lines = (ROOT / "constraints" / name).read_text(encoding="utf-8").splitlines()
        assert head.startswith("# ")
        assert lines
        for line in lines:
            assert re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", line), line
        names = [line.split("==")[0] for line in lines]
        assert names == sorted({canonicalize_name(each) for each in names})


def test_the_oldest_versions_are_the_floors_and_the_newest_lie_in_every_range():
    oldest, newest = _pins("oldest.txt"), _pins("newest.txt")
    assert set(oldest) == {canonicalize_name(each.name) for each in REQUIREMENTS}
    for requirement in REQUIREMENTS:
        bounds = [each for each in requirement.specifier if each.operator == ">="]
        assert len(bounds) == 1, f"{requirement} names no oldest release that works"
        name = canonicalize_name(requirement.name)
        version = Version(oldest[name])
        assert version == Version(bounds[0].version), str(requirement)
        assert version in requirement.specifier, str(requirement)
        # The one extra that the tests' environment leaves out.
        if name != "kaleido":
            assert newest[name] in requirement.specifier, str(requirement)


def test_every_library_that_is_imported_is_a_requirement():
    asked = {canonicalize_name(each.name) for each in REQUIREMENTS}
    owners = packages_distributions()
    imported = {
        name.split(".")[0]
        for file in (ROOT / "saesteer").rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        for name in _imported(node)
    } - set(sys.stdlib_module_names)
    for name in imported - {"saesteer"}:
        assert asked & set(map(canonicalize_name, owners[name])), f"{name} is no requirement"


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [each.name for each in node.names]
    if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
        return [node.module]
    return []


def test_the_lane_of_the_libraries_names_tests_that_are_there():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8").replace("\\\n", " ")
    lane = re.search(r"^LIBRARIES := (.*)$", makefile, re.MULTILINE)
    assert lane is not None
    for place in lane[1].split():
        assert (ROOT / place).exists(), place


def test_the_readme_names_the_tested_versions():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in ("torch", "transformers", "transformer-lens", "sae-lens", "numpy", "scikit-learn"):
        row = f"| {name} | {_pins('oldest.txt')[name]} | {_pins('newest.txt')[name]} |"
        assert row in readme, f"README.md has no row {row!r}"
