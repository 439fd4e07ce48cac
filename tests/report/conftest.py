"""Made-up metrics and a real browser."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# Chromium runs as root in CI, without a GPU, and must not look for updates.
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1280,900",
)


@pytest.fixture(scope="session")
def made_up() -> Callable[..., dict[str, Any]]:
    """Return the function that makes metrics up; see `made_up.py`."""
    spec = importlib.util.spec_from_file_location("made_up", Path(__file__).parent / "made_up.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.made_up_metrics


@pytest.fixture
def small() -> dict[str, Any]:
    """Return metrics of two personas and three methods with numbers to check by hand."""
    effects = [
        {"persona": p, "method": m, "seed": s, "kl_target": 0.3, "effect": e, "low": e - 0.1}
        | {"high": e + 0.1, "anti_steerable": 0.1 * s, "common_shift": -0.2}
        for p, m, s, e in (
            ("warm", "ours", 0, 0.4),
            ("warm", "ours", 1, 0.6),
            ("warm", "theirs", 0, 0.2),
            ("brave", "ours", 0, 0.9),
            ("brave", "theirs", 0, 0.3),
        )
    ]
    effects.append({**effects[0], "persona": "brave", "method": "chance", "effect": None})
    summary = [
        {"method": m, "kl_target": b, "n_personas": 2, "effect": e, "low": e - 0.2, "high": e + 0.2}
        | {"ratio": e / 0.25, "ratio_low": e / 0.25 - 0.5, "ratio_high": e / 0.25 + 0.5}
        | {"p": 0.5, "p_holm": 0.04, "beyond_null": 2}
        for m, b, e in (
            ("ours", 0.1, 0.3),
            ("ours", 0.3, 0.7),
            ("theirs", 0.1, 0.1),
            ("theirs", 0.3, 0.25),
        )
    ]
    null = [
        {"persona": p, "kind": "random_direction", "effects": e, "largest": 0.1, "p": 0.25}
        for p, e in (("warm", [0.05, -0.1]), ("brave", [0.02, 0.1]))
    ]
    return {
        "name": "by hand",
        "kl_targets": [0.1, 0.3],
        "headline_kl_target": 0.3,
        "headline_method": "ours",
        "baseline": "theirs",
        "methods": [
            {"name": "chance", "label": "random direction", "kind": "null"},
            {"name": "theirs", "label": "difference in means", "kind": "dense"},
            {"name": "ours", "label": "SAE features", "kind": "sae"},
        ],
        "personas": [{"name": "warm", "own": False}, {"name": "brave", "own": True}],
        "effects": effects,
        "summary": summary,
        "null": null,
    }


@pytest.fixture(scope="session")
def browser(tmp_path_factory) -> Iterator[Any]:
    """Return Debian's Chromium, driven by ChromeDriver; skips where either is missing."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("no chromium here; apt-get install -y chromium chromium-driver")
    pytest.importorskip("selenium", reason="no selenium here; pip install selenium")
    from selenium.webdriver import Chrome, ChromeOptions
    from selenium.webdriver.chrome.service import Service

    options = ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    # The driver's path is given, so that selenium does not go looking for one on the network.
    opened = Chrome(options=options, service=Service(driver))
    opened.set_page_load_timeout(60)
    yield opened
    opened.quit()
