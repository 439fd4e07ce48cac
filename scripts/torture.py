"""What faults and hostile input do to saesteer: prints a table, and writes it to docs/trust.md."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "trust.md"
BEGIN, END = "<!-- torture: begin -->", "<!-- torture: end -->"
# What is tried of each part, as a whole; each server is asked by four clients.
COUNTS = {"kills": 100, "disk": 60, "files": 500, "servers": 50, "together": 16, "long": 200}
TITLES = {
    "kills": "kills at random moments",
    "disk": "disks",
    "files": "spoiled files",
    "servers": "servers that misbehave",
    "together": "two and three at once",
    "long": "long use",
}


def main() -> int:
    """Try the parts one after the other; the exit code says whether anything was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=COUNTS, action="append", help="a part; repeat for more")
    parser.add_argument("--count", type=int, help="how many of each part, for a quick try")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    parts = asked.only or list(COUNTS)
    whole = parts == list(COUNTS) and asked.count is None
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="torture-") as place:
        failed = [part for part in parts if not _tried(part, asked.count, asked.seed, Path(place))]
        found = {part: _found(part, Path(place)) for part in parts}
    minutes = (time.monotonic() - start) / 60
    table = _table(found)
    how = f"Seed {asked.seed}, {os.cpu_count()} cores, Python {platform.python_version()}, "
    how += f"{time.strftime('%Y-%m-%d')}, {minutes:.0f} minutes."
    print(f"\n{table}\n\n{how}")
    for fault in [fault for rows in found.values() for row in rows for fault in row["faults"]]:
        print(f"- {fault}"[:2000])
    if whole:
        before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
        text = f"{before}{BEGIN}\n{table}\n\n{how}\n{END}{rest.split(END)[1]}"
        PAGE.write_text(text, encoding="utf-8")
        print(f"\nThe table stands in {PAGE}; --only kills --count 10 tries a part of it again.")
    else:
        print("\nA part of it; make torture does all, and writes docs/trust.md.")
    return 1 if failed else 0


def _tried(part: str, count: int | None, seed: int, place: Path) -> bool:
    env = {
        **os.environ,
        "TORTURE_COUNTS": json.dumps({part: count or COUNTS[part]}),
        "TORTURE_SEED": str(seed),
        "TORTURE_FOUND": str(place),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=line"]
    command += ["--basetemp", str(place / part), "tests/torture", "-k", f"[{part}]"]
    print(f"{TITLES[part]} ...", flush=True)
    return subprocess.run(command, cwd=ROOT, env=env, check=False).returncode == 0


def _found(part: str, place: Path) -> list[dict[str, Any]]:
    file = place / f"{part}.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else []


def _table(found: dict[str, list[dict[str, Any]]]) -> str:
    lines = ["| tried | how often | as promised | longest | most memory |", "|---|--:|--:|--:|--:|"]
    for part, rows in found.items():
        for row in rows:
            good = row["tried"] - len(row["faults"]) if part != "long" else row["tried"]
            good = 0 if part == "long" and row["faults"] else good
            seconds = f"{row['seconds']:.1f} s" if row["seconds"] and part != "long" else ""
            memory = f"{row['megabytes']:.0f} MB" if row["megabytes"] else ""
            name = f"{TITLES[part]}: {row['sort']}"
            lines.append(f"| {name} | {row['tried']} | {good} | {seconds} | {memory} |")
        if not rows:
            lines.append(f"| {TITLES[part]}: could not be tried here | 0 | 0 | | |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
