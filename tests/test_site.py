"""The site builds offline without a warning; its links lead somewhere and ask nobody."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import saesteer
from tests.test_tutorials import ROOT, script

# What a browser fetches by itself when a page opens.
FETCHED = {
    ("script", "src"),
    ("img", "src"),
    ("link", "href"),
    ("iframe", "src"),
    ("source", "src"),
}


class Page(HTMLParser):
    """A page's links, what it fetches, and its anchors."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if value is None:
                continue
            if name in ("id", "name"):
                self.anchors.add(value)
            elif (tag, name) in FETCHED:
                self.fetched.append(value)
            elif (tag, name) == ("a", "href"):
                self.links.append(value)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> dict[Path, Page]:
    pytest.importorskip("zensical", reason="no zensical here; pip install -e .[dev]")
    folder = tmp_path_factory.mktemp("site") / "built"
    script("build_docs").main(folder)
    return {path: Page(path) for path in sorted(folder.rglob("*.html"))}


def test_every_link_inside_leads_to_a_page_and_an_anchor(site) -> None:
    wrong = []
    for path, page in site.items():
        if path.name == "404.html":  # Its links are from the root of a server.
            continue
        for link in page.links + page.fetched:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            there = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not there.is_file():
                wrong.append(f"{path.name}: {link}")
                continue
            anchors = site[there].anchors if there in site else {unquote(parts.fragment)}
            if parts.fragment and unquote(parts.fragment) not in anchors:
                wrong.append(f"{path.name}: {link} has no such anchor")
    assert not wrong, "\n".join(wrong)


def test_no_page_fetches_anything_from_elsewhere(site) -> None:
    folder = min(site).parent
    asked = [
        f"{path.name}: {link}"
        for path, page in site.items()
        for link in page.fetched
        if urlsplit(link).netloc
    ]
    styles = [
        path
        for path in folder.rglob("*.css")
        if re.search(r"url\(.?(https?:)?//", path.read_text())
    ]
    assert not asked and not styles


def test_reference_and_commands_are_whole(site) -> None:
    anchors = set().union(*(page.anchors for page in site.values()))
    missing = [name for name in saesteer.__all__ if f"saesteer.{name}" not in anchors]
    assert not missing
    commands = next(page for path, page in site.items() if path.name == "commands.html")
    assert {"saesteer-steer", "saesteer-patch-lens", "saesteer-vector-bake"} <= commands.anchors


def test_every_page_stands_in_the_menu() -> None:
    settings = (ROOT / "docs" / "zensical.toml").read_text(encoding="utf-8")
    for path in (ROOT / "docs").rglob("*.md"):
        assert f'"{path.relative_to(ROOT / "docs").as_posix()}"' in settings, path.name
