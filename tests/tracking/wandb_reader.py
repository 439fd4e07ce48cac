"""Reads back what an offline W&B run has written, and plays a W&B server."""

from __future__ import annotations

import http.server
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
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
        self.records = records(self.file)
        self.run = next(r.run for r in self.records if r.WhichOneof("record_type") == "run")
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


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: Any) -> None:
        """Say nothing."""

    def _answer(self) -> None:
        server: Any = self.server
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        server.asked.append((self.path, body))
        if server.mode == "hang":
            time.sleep(30)
            return
        answer = json.dumps(_graphql(body) if self.path == "/graphql" else {}).encode()
        self.send_response(500 if server.mode == "500" else 200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_POST = do_PUT = _answer


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


@contextmanager
def wandb_server(mode: str) -> Iterator[Any]:
    """Run a server that begins runs and then answers as its `mode` says: ok, 500 or hang."""
    server: Any = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    server.mode, server.asked = mode, []
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    server.handle_error = lambda *arguments: None
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
