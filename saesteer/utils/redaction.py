"""Secrets taken out of whatever is written or shown."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

HIDDEN = "***"
SHORTEST_SECRET = 8

_SECRET_WORDS = {
    "apikey", "password", "passwd", "passphrase", "secret", "credential", "credentials",
    "authorization", "cookie",
}  # fmt: skip
# Settings such as text_key and pad_token name fields of data and words of a vocabulary.
_OFTEN_SECRET = frozenset(("key", "token"))
_DATA_WORDS = {
    "text", "label", "group", "positive", "negative", "question", "answer", "prompt", "clean",
    "corrupted", "category", "sort", "name", "variable", "pad", "bos", "eos", "unk", "first",
    "last", "next", "new", "per", "target",
}  # fmt: skip
_KNOWN_FORMS = re.compile(
    r"\b(?:sk-(?=[A-Za-z_-]*[0-9])[A-Za-z0-9_-]{16,}|hf_[A-Za-z0-9]{16,}|gh[opsu]_[A-Za-z0-9]{20,}"
    r"|wandb_v1_[A-Za-z0-9_]{16,}|AKIA[A-Z0-9]{16}"
    # With a digit in it, which "bearer certificates" has not.
    r"|(?i:bearer) +(?=[A-Za-z._~+/-]*[0-9])[A-Za-z0-9._~+/-]{8,}=*)"
)
_LOGIN_IN_URL = re.compile(r"(?<=://)[^/\s:@\"'<>]*:[^/\s@\"'<>]+(?=@)")
_ARGUMENT = re.compile(r"^(-{0,2})([A-Za-z][\w.-]*)=(.+)$", re.DOTALL)


def redact(value: Any) -> Any:
    """Return a JSON value with every secret in it replaced by `***`.

    A secret is text under a name such as `api_key` or `password`, text that holds the value of a
    variable of the environment with such a name, a key in a well-known form, or the login in an
    address.
    """
    return _redact(value, _secrets())


def redact_text(text: str) -> str:
    """Return text with every secret in it replaced by `***`; see `redact`."""
    return _redact_text(text, _secrets())


def redact_file(path: Path) -> None:
    """Take every secret out of a file of text; any other bytes stay as they are."""
    text = path.read_bytes().decode("utf-8", "surrogateescape")
    kept = redact_text(text)
    if kept != text:
        path.write_bytes(kept.encode("utf-8", "surrogateescape"))


def check_no_secret(name: str) -> str:
    """Return a name of a folder; one that holds a secret is a ValueError."""
    if redact_text(name) != name:
        raise ValueError("it holds a key, which would stand in a folder's name; choose another")
    return name


def redact_command(arguments: Sequence[str]) -> list[str]:
    """Return a command's arguments without secrets: `--api-key X` and `a.api_key=X` lose theirs."""
    kept: list[str] = []
    hide_next = False
    for argument in arguments:
        found = _ARGUMENT.match(argument)
        if hide_next and not argument.startswith("-"):
            argument = HIDDEN
        elif found and names_a_secret(found[2]):
            argument = f"{found[1]}{found[2]}={HIDDEN}"
        hide_next = argument.startswith("--") and "=" not in argument and names_a_secret(argument)
        kept.append(redact_text(argument))
    return kept


def names_a_secret(name: str) -> bool:
    """Return whether a setting or variable of this name holds a secret."""
    last = name.rpartition(".")[2]
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", last).lower()
    parts = frozenset(re.split(r"[^a-z0-9]+", words))
    return bool(parts & _SECRET_WORDS or (parts & _OFTEN_SECRET and not parts & _DATA_WORDS))


def _secrets() -> list[str]:
    found = {
        value
        for name, value in os.environ.items()
        if len(value) >= SHORTEST_SECRET and names_a_secret(name)
    }
    # As JSON and pages write them.
    found |= {form for one in found for form in (json.dumps(one)[1:-1], escape(one))}
    # Longest first: one may be the beginning of another.
    return sorted(found, key=len, reverse=True)


def _redact(value: Any, secrets: Sequence[str]) -> Any:
    if isinstance(value, Mapping):
        return {
            key: HIDDEN
            if isinstance(inner, str) and inner and names_a_secret(str(key))
            else _redact(inner, secrets)
            for key, inner in value.items()
        }
    if isinstance(value, list | tuple):
        return [_redact(inner, secrets) for inner in value]
    return _redact_text(value, secrets) if isinstance(value, str) else value


def _redact_text(text: str, secrets: Sequence[str]) -> str:
    for secret in secrets:
        if secret.isdigit():
            # Not within a number.
            text = re.sub(rf"(?<![\d.]){secret}(?![\d.])", HIDDEN, text)
        else:
            text = text.replace(secret, HIDDEN)
    return _LOGIN_IN_URL.sub(HIDDEN, _KNOWN_FORMS.sub(HIDDEN, text))
