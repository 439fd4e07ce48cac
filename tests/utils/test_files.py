"""Files are whole or not there, and only drafts that nobody writes any more are removed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from saesteer.utils import files
from saesteer.utils.errors import OutputError
from saesteer.utils.files import draft_of, portable_name, write_atomic
from saesteer.utils.run_folder import RunFolder

DEAD = 2**22 - 11


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.rglob("*") if file.is_file())


def killed_draft(target: Path, monkeypatch, *, host: str | None = None) -> Path:
    """Leave what a process of another number, here or on another host, would leave."""
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "getpid", lambda: DEAD)
        if host is not None:
            patch.setattr(files.socket, "gethostname", lambda: host)
        draft = draft_of(target)
    files.leave(draft)
    draft.write_bytes(b"half")
    return draft


def test_what_is_written_is_there_whole_and_alone(tmp_path):
    path = write_atomic(tmp_path / "new" / "a.bin", b"\0whole")
    assert path.read_bytes() == b"\0whole"
    write_atomic(str(path), lambda draft: draft.write_text("again"))
    assert path.read_text() == "again"
    assert names(tmp_path) == ["a.bin"]
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask
    # The draft keeps the ending, which says the format, and fits where the file does.
    seen = []
    target = tmp_path / ("ü" * 125 + ".png")
    write_atomic(target, lambda draft: seen.append(draft.suffix) or draft.write_bytes(b"x"))
    assert seen == [".png"] and target.exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError, OSError(28, "No space")])
def test_a_writer_that_fails_leaves_the_old_file(error, tmp_path):
    path = write_atomic(tmp_path / "a", b"old")

    def half(draft: Path) -> None:
        draft.write_bytes(b"ha")
        raise error

    with pytest.raises(OutputError if isinstance(error, OSError) else error):
        write_atomic(path, half)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


def test_writers_of_one_file_do_not_meet(tmp_path):
    def outer(draft: Path) -> None:
        draft.write_bytes(b"first")
        write_atomic(tmp_path / "a", b"second")

    write_atomic(tmp_path / "a", outer)
    assert (tmp_path / "a").read_bytes() == b"first"


def test_what_a_killed_process_left_is_removed_and_a_users_own_file_is_not(tmp_path, monkeypatch):
    own = [f".{DEAD}-mine.txt", f"..{DEAD}-v.safetensors", ".v.safetensors", ".git-keep"]
    own += [f".saesteer-draft-{DEAD}-v.safetensors", f".saesteer-{DEAD}-v.safetensors"]
    for name in own:
        (tmp_path / name).write_text("mine")
    alive = draft_of(tmp_path / "v.safetensors")
    alive.write_bytes(b"under way")
    killed_draft(tmp_path / "v.safetensors", monkeypatch)
    RunFolder(tmp_path).create()
    assert set(names(tmp_path)) == {*own, alive.name}
    killed_draft(tmp_path / "v.safetensors", monkeypatch)
    write_atomic(tmp_path / "v.safetensors", b"whole")
    assert set(names(tmp_path)) == {*own, alive.name, "v.safetensors"}


def test_another_machines_draft_stays_for_a_day(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path)
    draft = killed_draft(tmp_path / "a.json", monkeypatch, host="another")
    folder.create()
    write_atomic(tmp_path / "a.json", b"{}")
    assert draft.exists()
    yesterday = time.time() - files.FOREIGN_SECONDS - 60
    os.utime(draft, (yesterday, yesterday))
    folder.create()
    assert names(tmp_path) == ["a.json"]


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from saesteer.models import Site
from saesteer.steering import SteeringVector
os.replace = lambda *a: os.kill(os.getpid(), signal.SIGKILL)
vector = SteeringVector.from_raw(torch.ones(4), site=Site(0), model="m")
vector.save(Path(sys.argv[1]) / "vector.safetensors")
"""


def test_a_vector_whose_saving_was_killed_leaves_nothing_for_the_next_run(tmp_path):
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(names(tmp_path)) == 1
    RunFolder(tmp_path).create()
    assert names(tmp_path) == []


def test_a_name_becomes_one_that_every_system_takes():
    names = {"bundled:sentiment": "bundled-sentiment", "a/b\\c": "a-b-c", '*?"<>|': "unnamed"}
    names |= {"..": "unnamed", "ok-1.2_x": "ok-1.2_x", "naïve": "na-ve", "x" * 300: "x" * 80}
    assert {text: portable_name(text) for text in names} == names
