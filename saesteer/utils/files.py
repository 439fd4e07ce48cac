"""Files that are written whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import socket
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from secrets import token_hex
from typing import Any

from safetensors import SafetensorError

from saesteer.utils.errors import UnwritableError
from saesteer.utils.redaction import redact_file, redact_text
from saesteer.utils.text import spoken_bytes

# A draft of another machine cannot be told from one under way until nobody has touched it so long.
FOREIGN_SECONDS = 24 * 3600.0
_DRAFT = re.compile(r"\.saesteer-draft-([0-9a-f]{8})-(\d+)-[0-9a-f]{8}-.+", re.DOTALL)
_UNDER_WAY: set[str] = set()
# What is read as text, and so can show a key.
_TEXTS = (".json", ".jsonl", ".csv", ".html", ".md", ".txt", ".yaml", ".yml")


def write_atomic(path: str | os.PathLike[str], content: bytes | Callable[[Path], Any]) -> Path:
    """Write a file whole or not at all, making its folder.

    What killed processes left of the same file is removed, and so are known keys in a text. The
    content is bytes, or a function that writes the draft that it is given. `OutputError` says what
    cannot be written.
    """
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _draft_beside(target) as draft:
            if isinstance(content, bytes):
                draft.write_bytes(content)
            else:
                draft.touch()
                usual = draft.stat().st_mode
                content(draft)
                _open_up(draft, usual)
            if target.suffix.lower() in _TEXTS and draft.is_file():
                redact_file(draft)
            os.replace(draft, target)
    except (OSError, SafetensorError) as error:
        raise unwritable(target, error) from error
    return target


def append_json(path: Path, record: Any) -> None:
    """Append a record as one line, on the disk before anything goes on.

    Written at once to a file opened for appending, lines of two processes do not mix.
    """
    text = redact_text(json.dumps(record, ensure_ascii=False, allow_nan=False)) + "\n"
    line = text.encode("utf-8", "replace")
    try:
        with path.open("ab", buffering=0) as stream:
            written = stream.write(line)
            if written < len(line):
                # A disk that is full takes what still fits; what follows must begin a line.
                stream.truncate(stream.tell() - written)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(stream.fileno())
    except OSError as error:
        raise unwritable(path, error) from error


def unwritable(path: Path, error: Exception) -> UnwritableError:
    """Return what to say of a file that cannot be written."""
    return UnwritableError(
        f"{path} cannot be written ({getattr(error, 'strerror', None) or error}); free some space "
        "or choose another place, and run the same command again."
    )


def check_room(folder: Path, needed: int, what: str, there: str) -> None:
    """Make a folder, and refuse where its disk cannot hold so many bytes.

    Files of the pattern `there` are counted as written already.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file in folder.glob(there):
            # Another process may be renaming it.
            with suppress(FileNotFoundError):
                needed -= file.stat().st_size
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise unwritable(folder, error) from error
    if needed > free:
        raise UnwritableError(
            f"{folder} has room for {spoken_bytes(free)} and {what} need {spoken_bytes(needed)} "
            "more; free some space, choose another place or take less, and run the same command "
            "again."
        )


def draft_of(path: Path) -> Path:
    """Return a new name beside a file, which says what machine and process write there.

    Nobody else touches it until its writer is no more, or calls `leave`.
    """
    name = f".saesteer-draft-{_machine()}-{os.getpid()}-{token_hex(4)}-{_end(path.name)}"
    _UNDER_WAY.add(name)
    return path.with_name(name)


def _end(name: str) -> str:
    # Cut so that a draft's name fits wherever the file's own does.
    return name[-40:]


def leave(draft: Path) -> None:
    """Give a draft up: what is there of it may be removed, or taken over by another writer."""
    _UNDER_WAY.discard(draft.name)


def remove_abandoned(folder: Path, name: str | None = None) -> None:
    """Remove what killed processes left in a folder: of one of its files, or of all below it."""
    start = ".saesteer-draft-*"
    walk = folder.rglob(start) if name is None else folder.glob(f"{start}-{escape(_end(name))}")
    for draft in sorted(walk):
        if _is_abandoned(draft):
            _remove(draft)


def _is_abandoned(draft: Path) -> bool:
    """Return whether a file is a draft that nobody writes any more."""
    named = _DRAFT.fullmatch(draft.name)
    if named is None or draft.name in _UNDER_WAY:
        return False
    if named[1] == _machine():
        # An earlier process may have had this one's number.
        return int(named[2]) == os.getpid() or not is_running(int(named[2]))
    try:
        return time.time() - draft.stat().st_mtime > FOREIGN_SECONDS
    except OSError:
        return False


@contextmanager
def _draft_beside(path: Path) -> Iterator[Path]:
    """Give a draft's name; what is there of it in the end is removed."""
    remove_abandoned(path.parent, path.name)
    draft = draft_of(path)
    try:
        yield draft
    finally:
        _remove(draft)
        leave(draft)


def _open_up(file: Path, usual: int) -> None:
    """Let a file be read and written as usual: safetensors 0.8 makes it its owner's alone."""
    if file.is_file():
        file.chmod(stat.S_IMODE(file.stat().st_mode | usual & 0o666))


def build_folder(folder: Path, build: Callable[[Path], Any]) -> Path:
    """Make a folder whole or not at all, through `build`, which is given an empty one beside it.

    One that is there already, or that another process makes meanwhile, stays as it is.
    """
    if os.path.isdir(folder):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _draft_beside(folder) as draft:
        draft.mkdir()
        build(draft)
        for file in draft.rglob("*"):
            _open_up(file, draft.stat().st_mode)
        try:
            draft.rename(folder)
        except OSError:
            # Another process was faster: its folder holds the same.
            if not folder.is_dir():
                raise
    return folder


def _remove(draft: Path) -> None:
    if draft.is_dir():
        shutil.rmtree(draft, ignore_errors=True)
    else:
        with suppress(OSError):
            draft.unlink(missing_ok=True)


def portable_name(text: str) -> str:
    """Return a text as a part of a file's name that every system takes."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.")[:80] or "unnamed"


def _machine() -> str:
    """Return what tells the machine that counts this process from others."""
    counted = ""
    with suppress(OSError):
        # Containers may share a name, and each counts its processes from 1.
        counted = os.readlink("/proc/self/ns/pid")
    return hashlib.sha256(f"{socket.gethostname()} {counted}".encode()).hexdigest()[:8]


def is_running(pid: int) -> bool:
    """Return whether a process of this number is at work on this machine, whosever it is."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError, ValueError):
        return False
    except OSError:
        pass  # Somebody else's process.
    return True
