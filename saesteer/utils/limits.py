"""What a file may hold at most, checked before the work, and readers of text that keep to it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

# Bytes: of a file of settings, of one of records (pairs, texts, tasks), of any other JSON, and of
# what a safetensors file says of itself before its tensors.
SETTINGS_BYTES = 1_000_000
RECORDS_BYTES = 200_000_000
JSON_BYTES = 64_000_000
HEADER_BYTES = 8_000_000
# Lists and mappings within each other, fields of a record or columns of a table, and digits.
DEPTH = 50
FIELDS = 1_000
DIGITS = 300
# Characters of YAML once every anchor is written out where it is used.
WRITTEN_OUT = 4_000_000
# What a configuration may declare, by words in a setting's name; far above what any model has.
_DECLARED = {
    r"layers?|blocks": 10_000,
    r"heads?|experts?": 100_000,
    r"size|dim|embd|inner|width|model|ffn|ff|d|length": 100_000_000,
}
NOT_WAITING = getattr(os, "O_NONBLOCK", 0)
_TOO_DEEP = f"it is nested more than {DEPTH} deep"
_NUMBER = re.compile(r"[-+]?[0-9][0-9a-fA-FxXoObB_:]*(\.[0-9_]*)?")


def check_bytes(size: int, most: int) -> None:
    """Refuse more bytes than allowed; every refusal here is a ValueError that names its limit."""
    if size > most:
        raise ValueError(f"it has {size:,} bytes or more and may have {most:,}")


def check_depth(value: Any) -> None:
    """Refuse lists and mappings that are nested too deeply."""
    level = [value]
    for _ in range(DEPTH + 1):
        inner: list[Any] = []
        for one in level:
            if isinstance(one, dict):
                inner.extend(one.values())
            elif isinstance(one, list | tuple):
                inner.extend(one)
        if not inner:
            return
        level = inner
    raise ValueError(_TOO_DEEP)


def check_fields(names: Iterable[object], what: str) -> None:
    """Refuse too many fields of one record, or columns of one table."""
    count = sum(1 for _ in names)
    if count > FIELDS:
        raise ValueError(f"it has {count:,} {what} and may have {FIELDS:,}")


def parse_json(text: str) -> Any:
    """Read JSON; what is none, or nested too deeply, is a ValueError."""
    try:
        found = json.loads(text)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    check_depth(found)
    return found


def read_bytes(path: Path, most: int) -> bytes:
    """Read a whole file; one that is too large, or has no end, is a ValueError."""
    # A pipe into which nobody writes is empty then, and does not wait for somebody.
    with open(path, "rb", opener=lambda name, how: os.open(name, how | NOT_WAITING)) as stream:
        os.set_blocking(stream.fileno(), True)
        found = stream.read(most + 1)
    # What a device or a pipe would give has no size.
    check_bytes(max(len(found), path.stat().st_size), most)
    return found


def read_json(path: Path, most: int = JSON_BYTES) -> Any:
    """Read a file of JSON; what is none, too large or too deep is a ValueError."""
    return parse_json(read_bytes(path, most).decode("utf-8"))


def odd_file(folder: Path) -> Path | None:
    """Return what in a folder is neither a file nor a folder, for which a library might wait."""
    return next((file for file in folder.iterdir() if not (file.is_file() or file.is_dir())), None)


def check_header(path: Path) -> None:
    """Refuse a safetensors file that says more of itself than it may; see its format's first 8."""
    with path.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
    # A longer one is no safetensors file at all, which whoever opens it says.
    if HEADER_BYTES < size <= path.stat().st_size:
        raise ValueError(f"its header has {size:,} bytes and may have {HEADER_BYTES:,}")


def check_declared(name: str, value: Any) -> None:
    """Refuse a number in a configuration, or in those inside it, that no model or SAE has."""
    if isinstance(value, dict):
        for inner, one in value.items():
            check_declared(str(inner), one)
    if not isinstance(value, int) or isinstance(value, bool):
        return
    words = re.split(r"[^a-z]+", name.lower())
    for pattern, most in _DECLARED.items():
        if value > most and any(re.fullmatch(pattern, word) for word in words):
            raise ValueError(f"{name} is {value:,} and may be {most:,}")


def parse_yaml(text: str, loader: Any) -> Any:
    """Read YAML with a loader's class; what is none or too large is a YAMLError."""
    import yaml

    try:
        check_bytes(len(text.encode("utf-8", "surrogatepass")), SETTINGS_BYTES)
        _check_events(yaml.parse(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
        return yaml.load(text, loader)
    except RecursionError:
        raise yaml.YAMLError(_TOO_DEEP) from None
    except yaml.MarkedYAMLError as error:
        # libyaml's own limit, which it does not name.
        if "nesting depth" not in str(error):
            raise
        raise yaml.YAMLError(_TOO_DEEP) from None
    # Such as the 31st of February.
    except (ValueError, OverflowError, TypeError) as error:
        raise yaml.YAMLError(str(error)) from None


def _check_events(events: Iterable[Any]) -> None:
    """Refuse depth, numbers and anchors that multiply, before anything is built of them."""
    import yaml

    # Characters below each open list or mapping, with its anchor; and below every anchor.
    opened: list[tuple[str | None, int]] = [(None, 0)]
    anchored: dict[str, int] = {}
    for event in events:
        anchor, size = getattr(event, "anchor", None), 1
        if isinstance(event, yaml.CollectionStartEvent):
            opened.append((anchor, 1))
            if len(opened) > DEPTH:
                raise ValueError(_TOO_DEEP)
            continue
        if isinstance(event, yaml.AliasEvent):
            if anchor not in anchored:
                raise ValueError(f"*{anchor} stands within &{anchor}, or before it")
            size = anchored[anchor]
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, size = opened.pop()
        elif isinstance(event, yaml.ScalarEvent):
            size = 1 + len(event.value)
            if event.implicit[0] and size > DIGITS and _NUMBER.fullmatch(event.value):
                raise ValueError(f"it holds a number of more than {DIGITS} digits")
        else:
            continue
        if anchor is not None:
            anchored[anchor] = size
        outer, sum_ = opened.pop()
        if sum_ + size > WRITTEN_OUT:
            raise ValueError(
                f"with its anchors written out it has more than {WRITTEN_OUT:,} characters"
            )
        opened.append((outer, sum_ + size))
