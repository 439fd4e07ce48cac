"""A little of what `make torture` does much of, so that neither it nor its promises rot."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.torture.disk import try_disk
from tests.torture.files import try_files
from tests.torture.kills import try_kills
from tests.torture.long_use import try_long_use
from tests.torture.servers import try_servers
from tests.torture.together import try_together

# How many are tried of each part, here; scripts/torture.py says how many there.
PARTS = {
    "kills": (try_kills, 2),
    "disk": (try_disk, 3),
    "files": (try_files, 16),
    "servers": (try_servers, 2),
    "together": (try_together, 2),
    "long": (try_long_use, 8),
}


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
@pytest.mark.parametrize("part", PARTS)
def test_what_is_promised_holds(part, world):
    attempt, few = PARTS[part]
    counts = json.loads(os.environ.get("TORTURE_COUNTS", "{}"))
    tallies = attempt(world, counts.get(part, few))
    if place := os.environ.get("TORTURE_FOUND"):
        Path(place, f"{part}.json").write_text(json.dumps([asdict(one) for one in tallies]))
    faults = [fault for tally in tallies for fault in tally.faults]
    assert not faults, "\n".join(faults)
