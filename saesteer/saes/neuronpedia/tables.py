"""The tables of the cache file."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from sqlalchemy import MetaData, Table

VERSION = 1


class Tables(NamedTuple):
    """The tables of the cache file.

    Attributes:
        metadata: All of them.
        replies: Answers by the hash of what was asked.
        explanations: Imported labels; `place` orders those of one feature.
        facts: Imported features without their labels.
        files: Which bulk files are imported whole.
    """

    metadata: MetaData
    replies: Table
    explanations: Table
    facts: Table
    files: Table


@cache
def tables() -> Tables:
    """Return the tables; sqlalchemy is imported when they are first wanted."""
    from sqlalchemy import Column, Float, Integer, LargeBinary, MetaData, String, Table

    metadata = MetaData()
    replies = Table(
        "replies",
        metadata,
        Column("key", String, primary_key=True),
        Column("body", LargeBinary, nullable=False),
        Column("fetched", Float, nullable=False),
    )
    explanations = Table(
        "explanations",
        metadata,
        Column("source", String, primary_key=True),
        Column("feature", Integer, primary_key=True),
        Column("place", String, primary_key=True),
        Column("description", String, nullable=False),
        Column("explainer", String),
        Column("kind", String),
        sqlite_with_rowid=False,
    )
    facts = Table(
        "facts",
        metadata,
        Column("source", String, primary_key=True),
        Column("feature", Integer, primary_key=True),
        Column("body", LargeBinary, nullable=False),
        sqlite_with_rowid=False,
    )
    files = Table(
        "files",
        metadata,
        Column("source", String, primary_key=True),
        Column("name", String, primary_key=True),
        Column("digest", String, nullable=False),
        Column("lines", Integer, nullable=False),
    )
    return Tables(metadata, replies, explanations, facts, files)
