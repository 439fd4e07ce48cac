"""Spoils files: cut, flipped, nested, of other types, too large, obeyed by terminals, no files."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.torture.world import KEY

_VALUE = re.compile(rb'"(?:[^"\\\n]|\\.){0,200}"|-?\d[\d.eE+-]*|\btrue\b|\bfalse\b|\bnull\b')
_NUMBER = re.compile(rb"-?\d+(?:\.\d+)?")
_OTHER = (
    b"null", b"[]", b"{}", b"5", b'"x"', b"true", b"1e308", b"[[1]]", b'{"a": 1}', b'""', b"-1",
    b"[null]", b'{"": null}', b"0.5", b'" "', b"\xc3\xa9",
)  # fmt: skip
_SIZES = (0, 1, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1, 2**64 - 1)
_AMOUNTS = (
    b"1e999", b"-1", b"10000000000", b"9" * 6000, b"NaN", b"-Infinity", b"1e-320", b"0", b"1_0",
    b"0x10", b"999999999999999999999", b".5", b"1" + b"0" * 400, b"2147483648", b"!!int 5",
)  # fmt: skip
_OBEYED = (
    b"\x1b]0;owned\x07", b"\x1b[2J\x1b[1;1H", b"\\u001b[2J", b"\xc2\x9b2J", b"\\u009b2J", b"\x07",
    b"\x1b]8;;http://x/\x1b\\click\x1b]8;;\x1b\\", b"\r\r\r", b"\x08" * 20,
)  # fmt: skip
_ENCODINGS = ("utf-16", "utf-16-le", "utf-32", "utf-7", "cp037")
_ODD = (
    b"\\ud800", b"\xed\xa0\x80", b"\xff\xfe", b"\xef\xbb\xbf", b"\xc0\xaf", b"\x00", b"\\u0000",
    b"\xe2\x80\xae", b"\xe2\x80\xa8", b"\xf4\x90\x80\x80", b"\\", b'"', b"'", b"{", b"}", b"\n",
    b"\t", b"&a", b"*a", b"!!python/object:os.system", b"<<: *a", b"%", b"../../..", b"~",
)  # fmt: skip

Mutator = Callable[[bytes, np.random.Generator], bytes]


def _at(data: bytes, rng: np.random.Generator) -> int:
    return int(rng.integers(len(data) + 1))


def _put(data: bytes, place: int, piece: bytes, over: int = 0) -> bytes:
    return data[:place] + piece + data[place + over :]


def _choice(rng: np.random.Generator, options: tuple[bytes, ...]) -> bytes:
    return options[int(rng.integers(len(options)))]


def _replaced(
    pattern: re.Pattern[bytes], data: bytes, piece: bytes, rng: np.random.Generator
) -> bytes:
    """Put a piece in the place of one of the matches; anywhere where there is none."""
    found = list(pattern.finditer(data[:200_000]))
    if not found:
        return _put(data, _at(data, rng), piece)
    one = found[int(rng.integers(len(found)))]
    return data[: one.start()] + piece + data[one.end() :]


def cut(data: bytes, rng: np.random.Generator) -> bytes:
    return data[: _at(data, rng)] if rng.random() < 0.9 else b""


def flip(data: bytes, rng: np.random.Generator) -> bytes:
    found = bytearray(data)
    # Half of them where the sizes and names stand.
    most = len(found) if rng.random() < 0.5 else min(len(found), 400)
    for _ in range(int(rng.integers(1, 20)) if most else 0):
        found[int(rng.integers(most))] ^= 1 << int(rng.integers(8))
    return bytes(found)


def shuffle(data: bytes, rng: np.random.Generator) -> bytes:
    """A piece taken out, put in elsewhere or said many times."""
    start, end = sorted((_at(data, rng), _at(data, rng)))
    piece = data[start:end]
    times = int(rng.choice([0, 2, 3, 1000])) if len(piece) < 2000 else int(rng.choice([0, 2]))
    return _put(data, start, piece * times, over=len(piece))


def sizes(data: bytes, rng: np.random.Generator) -> bytes:
    """Another size or number where one is declared."""
    if b"\0" not in data[:200]:
        return _replaced(_NUMBER, data, _choice(rng, _AMOUNTS), rng)
    if rng.random() < 0.3:
        return _replaced(_NUMBER, data, _choice(rng, _AMOUNTS)[:12], rng)
    width = int(rng.choice([4, 8]))
    size = _SIZES[int(rng.integers(len(_SIZES)))] % 2 ** (8 * width)
    place = int(rng.integers(min(len(data), 2000) // 4 + 1)) * 4
    return _put(data, place, size.to_bytes(width, "little"), over=width)


def nest(data: bytes, rng: np.random.Generator) -> bytes:
    depth = int(rng.choice([60, 2000, 20_000, 200_000]))
    opened, closed = ((b"[", b"]"), (b'{"a":', b"}"), (b"- ", b""), (b"(", b")"))[
        int(rng.integers(4))
    ]
    piece = opened * depth + b"1" + closed * (depth if rng.random() < 0.7 else 0)
    return _replaced(_VALUE, data, piece, rng)


def types(data: bytes, rng: np.random.Generator) -> bytes:
    return _replaced(_VALUE, data, _choice(rng, _OTHER), rng)


def encode(data: bytes, rng: np.random.Generator) -> bytes:
    if rng.random() < 0.4:
        name = _ENCODINGS[int(rng.integers(len(_ENCODINGS)))]
        return data.decode("latin-1").encode(name, "replace")
    return _put(data, _at(data, rng), _choice(rng, _ODD))


def escape(data: bytes, rng: np.random.Generator) -> bytes:
    piece = _choice(rng, _OBEYED)
    if rng.random() < 0.5:
        return _replaced(_VALUE, data, b'"' + piece + b'"', rng)
    return _put(data, _at(data, rng), piece)


def key(data: bytes, rng: np.random.Generator) -> bytes:
    return _replaced(_VALUE, data, f'"{KEY}"'.encode(), rng)


def many(data: bytes, rng: np.random.Generator) -> bytes:
    """Very many fields, columns, lines or anchors."""
    count, sort = int(rng.choice([2000, 100_000])), int(rng.integers(4))
    if sort == 0:
        fields = b",".join(b'"k%d":1' % (n % (count - 1)) for n in range(count))
        return _replaced(_VALUE, data, b"{" + fields + b"}", rng)
    if sort == 1:
        return b",".join(b"c%d" % n for n in range(count)) + b"\n" + data
    if sort == 2:
        levels = b"".join(
            b"a%d: &a%d [%s]\n" % (n, n, b",".join([b"*a%d" % (n - 1) if n else b"1"] * 10))
            for n in range(10)
        )
        return levels + data
    return data.replace(b"\n", b"\n" * min(count, 5000)) + b"\n{}" * count


def long(data: bytes, rng: np.random.Generator) -> bytes:
    size = int(rng.choice([5000, 1_500_000, 20_000_000]))
    return _replaced(_VALUE, data, b'"' + b"a" * size + b'"', rng)


MUTATORS: tuple[Mutator, ...] = (
    cut, flip, shuffle, sizes, nest, types, encode, escape, key, many, long,
)  # fmt: skip
# What stands where a file should.
NO_FILES = ("folder", "pipe", "endless", "loop", "gone", "dangling")


def spoil(file: Path, rng: np.random.Generator) -> str:
    """Spoil a file where it lies, and return how."""
    chosen = [MUTATORS[int(rng.integers(len(MUTATORS)))] for _ in range(int(rng.choice([1, 1, 2])))]
    data = file.read_bytes()
    for mutate in chosen:
        data = mutate(data, rng)
    file.write_bytes(data)
    return " and ".join(mutate.__name__ for mutate in chosen)


def spoiled_text(text: str, rng: np.random.Generator) -> tuple[str, str]:
    """Spoil a word of a command line, which holds no zero byte and is of a bounded length."""
    mutate = MUTATORS[int(rng.integers(len(MUTATORS)))]
    found = mutate(text.encode(), rng)[:100_000].replace(b"\0", b"")
    return found.decode("utf-8", "surrogateescape"), mutate.__name__


def put_no_file(file: Path, how: str) -> str:
    """Put something else in a file's place, and return what."""
    file.unlink()
    if how == "folder":
        file.mkdir()
    elif how == "pipe":
        os.mkfifo(file)
    elif how != "gone":
        file.symlink_to({"endless": "/dev/zero", "loop": file.name}.get(how, "nowhere"))
    return how
