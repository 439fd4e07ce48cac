"""A study's journal after a crash, under another's hand, and damaged for good."""

from __future__ import annotations

import threading
import time

import pytest
from optuna.storages.journal import JournalFileSymlinkLock

from saesteer.sweeps.storage import JOURNAL, plain_url
from saesteer.sweeps.study import create_study, open_study
from saesteer.utils.errors import OutputError


@pytest.fixture
def journal(spec_of):
    """The journal of a study whose trials wait."""
    study = create_study(spec_of())
    study.enqueue(study.spec.cells())
    return study.spec.folder / JOURNAL


def test_half_a_line_left_by_a_crash_is_taken_away(journal):
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"op_code": 4, "wor')
    assert len(open_study(str(journal.parent)).rows()) == 6
    assert journal.read_bytes() == whole


def test_half_a_line_that_another_worker_is_just_writing_is_left_to_it(journal):
    whole = journal.read_bytes()
    lock = JournalFileSymlinkLock(str(journal))
    lock.acquire()
    line = whole.splitlines(keepends=True)[-1]
    with journal.open("ab") as stream:
        stream.write(line[:10])
    opened: list[int] = []
    reader = threading.Thread(
        target=lambda: opened.append(len(open_study(str(journal.parent)).rows()))
    )
    reader.start()
    time.sleep(0.3)
    with journal.open("ab") as stream:
        stream.write(line[10:])
    lock.release()
    reader.join(30)
    assert journal.read_bytes() == whole + line
    assert opened == [6]


def test_a_journal_that_is_damaged_inside_is_one_sentence(journal):
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([lines[0], b"\x00\xff no JSON\n", *lines[1:]]))
    with pytest.raises(OutputError, match=rf"{JOURNAL} is damaged .*delete the line"):
        open_study(str(journal.parent))


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://me:pa@ss@host/db", "postgresql://me:***@host/db"),
        ("mysql+pymysql://me@host/db", "mysql+pymysql://me@host/db"),
        ("sqlite:///study.db", "sqlite:///study.db"),
    ],
)
def test_a_password_is_not_shown(url, shown):
    assert plain_url(url) == shown
