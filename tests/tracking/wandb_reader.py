"""Reads back what an offline W&B run has written, and plays a W&B server."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

BLOCK, HEAD = 32_768, 7


def records(file: Path) -> list[Any]:
    """Return the records of a `.wandb` file: protobuf messages in LevelDB's log format."""
    from importlib import import_module

    # Its names are made at run time.
    new_record = import_module("wandb.proto.wandb_internal_pb2").Record

    data, place, found, part = file.read_bytes(), HEAD, [], b""
    while place + HEAD <= len(data):
        left = BLOCK - place % BLOCK
        if left < HEAD:
            place += left
            continue
        size = int.from_bytes(data[place + 4 : place + 6], "little")
        kind = data[place + 6]
        part += data[place + HEAD : place + HEAD + size]
        place += HEAD + size
        # 1 is a whole record, 4 the last part of one.
        if kind in (1, 4):
            record = new_record()
            record.ParseFromString(part)
            found.append(record)
            part = b""
    return found


class OfflineRun:
    """What one offline run holds.

    Args:
        folder: The run's folder; W&B's is in its `wandb`.
    """

    def __init__(self, folder: Path) -> None:
        (self.file,) = (folder / "wandb").glob("offline-run-*/*.wandb")
        # On a busy machine W&B's service writes a moment after the run has ended.
        until = time.monotonic() + 10
        while not any(r.HasField("run") for r in records(self.file)) and time.monotonic() < until:
            time.sleep(0.1)
        self.records = records(self.file)
        self.run = next(r.run for r in self.records if r.HasField("run"))
        self.config = {item.key: json.loads(item.value_json) for item in self.run.config.update}
        self.metrics = [r.metric for r in self.records if r.HasField("metric")]
        self.history = [
            {_key(item): json.loads(item.value_json) for item in r.history.item}
            for r in self.records
            if r.HasField("history")
        ]
        self.artifacts = [r for r in self.records if "artifact" in str(r.WhichOneof("record_type"))]

    def summary(self) -> dict[str, Any]:
        """Return the summary as its updates leave it."""
        found: dict[str, Any] = {}
        for record in self.records:
            if record.HasField("summary"):
                found |= {_key(item): json.loads(item.value_json) for item in record.summary.update}
        return found

    def media(self, pattern: str) -> Path:
        """Return a media file of the run."""
        (found,) = (self.file.parent / "files" / "media").rglob(pattern)
        return found


def _key(item: Any) -> str:
    return item.key or ".".join(item.nested_key)


class WandbService:
    """Answers as W&B's server, for as long as its `mode` is ok; else with 500, or not at all."""

    def __init__(self, mode: str = "ok") -> None:
        self.mode = mode

    def __call__(self, asked: Any) -> Any:
        if self.mode == "hang":
            return None
        found = _graphql(asked.body) if asked.path == "/graphql" else {}
        return (500 if self.mode == "500" else 200), found, {"Content-Type": "application/json"}


def _graphql(body: bytes) -> dict[str, Any]:
    asked = json.loads(body)
    name = re.search(r"(?:query|mutation)\s+(\w+)", asked["query"])
    if name and name[1] == "UpsertBucket":
        place = {"id": "p", "name": "saesteer", "entity": {"id": "e", "name": "someone"}}
        bucket = {"id": "b", "name": asked["variables"]["name"], "displayName": "n"}
        bucket |= {"config": "{}", "historyLineCount": 0, "sweepName": None, "project": place}
        return {"data": {"upsertBucket": {"bucket": bucket, "inserted": True}}}
    if name and name[1] == "CreateRunFiles":
        return {"data": {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": []}}}
    return {"data": {"model": None}}
