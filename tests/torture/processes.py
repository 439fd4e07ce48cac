"""Processes that can be limited, watched and killed: forks of one that has imported everything."""

from __future__ import annotations

import ctypes
import json
import multiprocessing
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CONTEXT: Any = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.torture.preload"])
NOBODY = 65534
# The forkserver's own way to tell an exit code takes no two readers at once.
_LOCK = threading.Lock()
# No process may take so much more than it begins with, whatever is measured of it.
CEILING = 4 * 2**30


@dataclass(frozen=True)
class Outcome:
    """What became of a process; its code is None where it had to be stopped, and below 0 for a
    signal's."""

    code: int | None
    out: str
    err: str
    seconds: float
    # Of one core; 0 where it did not live to tell.
    cpu: float
    # The most resident memory above what it began with; None where it did not live to tell.
    megabytes: float | None

    @property
    def said(self) -> str:
        """The last line of the errors."""
        return (self.err.strip().splitlines() or [""])[-1]

    def fault(self, *, longest: float | None = None, megabytes: float | None = None) -> str | None:
        """What is wrong with it as an answer to bad input; None if it is right."""
        if self.code is None:
            return "it does not end"
        if "Traceback" in self.err + self.out:
            return f"a traceback: {self.said}"
        if self.code < 0:
            return f"it died of {signal.Signals(-self.code).name}"
        if self.code not in (0, 2) or (self.code == 2 and not self.refused):
            return f"code {self.code}: {self.said}"
        if "\x1b" in self.out + self.err or "\x07" in self.out + self.err:
            return "it writes what a terminal obeys"
        if longest is not None and self.cpu > longest:
            return f"it took {self.cpu:.1f} s"
        if megabytes is not None and (self.megabytes or 0) > megabytes:
            return f"it took {self.megabytes:.0f} MB"
        return None

    @property
    def refused(self) -> bool:
        """Whether it is one sentence, or typer's own box about a misspelt option."""
        return self.code == 2 and (self.said.startswith("error: ") or "╰─" in self.said)


@dataclass
class Child:
    """A process under test, begun at once: a function, or the words of a command.

    Args:
        call: A function that can be imported, or the words behind `saesteer`.
        arguments: What the function is given.
        place: A folder of its own, for what it prints and where it stands.
        env: What its environment has besides; None takes a variable out.
        uid: Whose process it becomes; it can still read everything.
    """

    call: Callable[..., Any] | Sequence[str | Path]
    place: Path
    arguments: tuple[Any, ...] = ()
    env: Mapping[str, str | None] = field(default_factory=dict)
    uid: int | None = None

    def __post_init__(self) -> None:
        self.place.mkdir(parents=True, exist_ok=True)
        # A process may be begun again in the same place.
        count = len(list(self.place.glob("told-*.out")))
        self._told = self.place / f"told-{count}"
        if self.uid is not None:
            os.chmod(self.place, 0o777)
        words = None if callable(self.call) else [str(word) for word in self.call]
        given = (self.call if words is None else _command, self.arguments or (words,))
        how = (str(self._told), str(self.place), dict(self.env), self.uid)
        self._process = CONTEXT.Process(target=_child, args=(*given, *how))
        self.start = time.monotonic()
        with _LOCK:
            self._process.start()
        self.pid: int = self._process.pid

    @property
    def code(self) -> int | None:
        """The exit code; None while it is at work."""
        with _LOCK:
            return self._process.exitcode

    @property
    def begun(self) -> bool:
        """Whether it is at its task."""
        return Path(f"{self._told}.begun").exists()

    def children(self) -> list[int]:
        """The processes that it has begun."""
        with suppress(OSError):
            text = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text()
            return [int(pid) for pid in text.split()]
        return []

    def kill(self, pids: Sequence[int] | None = None) -> None:
        """Kill it, or other processes."""
        for pid in [self.pid] if pids is None else pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def end(self, most: float = 300.0) -> Outcome:
        """Wait for its end; after so many seconds it is killed."""
        code = self._wait(most)
        if code is None:
            self.kill([*self.children(), self.pid])
            self._wait(30)
        with suppress(OSError, ValueError):
            used = json.loads(Path(f"{self._told}.used").read_text())
            return Outcome(code, self._text("out"), self._text("err"), *used)
        return Outcome(
            code, self._text("out"), self._text("err"), time.monotonic() - self.start, 0.0, None
        )

    def _wait(self, most: float) -> int | None:
        last = time.monotonic() + most
        while (code := self.code) is None and time.monotonic() < last:
            time.sleep(0.02)
        return code

    def _text(self, name: str) -> str:
        return Path(f"{self._told}.{name}").read_bytes().decode("utf-8", "replace")


def _command(words: Sequence[str]) -> None:
    from saesteer.cli.main import main

    sys.argv = ["saesteer", *words]
    main()


def _child(
    call: Callable[..., Any],
    arguments: tuple[Any, ...],
    told: str,
    place: str,
    env: dict[str, str | None],
    uid: int | None,
) -> None:
    used = os.open(f"{told}.used", os.O_CREAT | os.O_WRONLY, 0o666)
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{told}.{name}", os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o666), number)
    for name, value in env.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    if uid is not None:
        _become(uid)
    os.chdir(place)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    before, size = _kilobytes("VmRSS"), _kilobytes("VmSize") * 1024
    resource.setrlimit(resource.RLIMIT_AS, (size + CEILING, size + CEILING))
    # Opened by name, so that a folder that somebody takes away meanwhile stops nothing here.
    os.close(os.open(f"{told}.begun", os.O_CREAT | os.O_WRONLY, 0o666))
    start, worked = time.monotonic(), time.process_time()
    try:
        call(*arguments)
    finally:
        seconds, cpu = time.monotonic() - start, time.process_time() - worked
        peak = (_kilobytes("VmHWM") - before) / 1024
        os.write(used, json.dumps([seconds, cpu, peak]).encode())


def _become(uid: int) -> None:
    """Become a user who may read everything, since temporary folders are root's, and write little.

    See capabilities(7): of root's own, only CAP_DAC_READ_SEARCH, the second bit, is kept.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    keep_capabilities, version, read_all = 8, 0x20080522, 1 << 2
    libc.prctl(keep_capabilities, 1, 0, 0, 0)
    os.setgroups([])
    os.setgid(uid)
    os.setuid(uid)
    header, wanted = (ctypes.c_uint32 * 2)(version, 0), (ctypes.c_uint32 * 6)(read_all, read_all)
    if libc.capset(header, wanted) != 0:
        raise OSError(ctypes.get_errno(), "capset")


def _kilobytes(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    return 0
