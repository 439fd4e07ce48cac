"""Plays Neuronpedia: the documented answers, and faults on request."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

MODEL, SOURCE = "gpt2-small", "6-res-jb"
PLACE = f"{MODEL}/{SOURCE}"
N_FEATURES = 64
Answer = tuple[int, bytes, dict[str, str]]
BUSY = "Rate limit exceeded for this endpoint."


def as_json(value: Any, status: int = 200, **headers: str) -> Answer:
    """An answer of JSON."""
    kept = {name.replace("_", "-"): text for name, text in headers.items()}
    return status, json.dumps(value).encode(), {"Content-Type": "application/json", **kept}


def feature(index: int, *, n_texts: int = 5) -> dict[str, Any]:
    """A feature as the API gives it, with fields that nobody asked for."""
    texts = [
        {
            "tokens": ["\u0120the", "\u0120kind", f"\u0120no{index}", "\u010a"],
            "values": [0.0, 9.0 - n, 1.0, 0.0],
            "maxValue": 9.0 - n,
            "maxValueTokenIndex": 1,
            "dataIndex": None,
        }
        for n in range(n_texts)
    ]
    return {
        "modelId": MODEL,
        "layer": SOURCE,
        "index": str(index),
        "maxActApprox": 9.5 + index,
        "frac_nonzero": 0.01,
        "pos_str": [" good", " kind"],
        "pos_values": [1.5, 1.25],
        "neg_str": [" bad"],
        "neg_values": [-1.0],
        "creatorId": "somebody",
        "explanations": [
            {
                "description": f" words of kindness {index}",
                "explanationModelName": "gpt-4o-mini",
                "typeName": "oai_token-act-pair",
                "scores": [],
                "triggeredByUser": None,
            }
        ],
        "activations": texts,
    }


def label_line(index: int, description: str = "", **rest: Any) -> str:
    """A line of a bulk file of explanations."""
    return json.dumps(
        {
            "id": f"id{index}",
            "modelId": MODEL,
            "layer": SOURCE,
            "index": str(index),
            "description": description or f"label of {index}",
            "explanationModelName": "gpt-4o-mini",
            "typeName": "oai_token-act-pair",
            "embedding": [0.5, 0.25],
            **rest,
        }
    )


def drip() -> Iterator[bytes]:
    """An answer that never ends."""
    yield b'{"modelId": "gpt2'
    while True:
        time.sleep(0.05)
        yield b" "


class Player:
    """Answers as documented, on a server that `http_server` starts.

    `faults` come first, one a request, "" for none: an answer, or "hang", "drip" (never ends),
    "cut" (shorter than it says).
    """

    def __init__(self, http_server: Callable[..., Any]) -> None:
        self.faults: list[Answer | str] = []
        self.calls: list[tuple[str, str, Any]] = []
        self.objects: dict[str, bytes] = {}
        self.page = 1000
        self.server = http_server(self.answer)
        self.root: str = self.server.url
        self.api, self.bucket = f"{self.root}/api", f"{self.root}/bucket"

    @property
    def headers(self) -> list[dict[str, str]]:
        """The headers of every request."""
        return [asked.headers for asked in self.server.asked]

    @property
    def paths(self) -> list[str]:
        """The paths that were asked for."""
        return [path for _, path, _ in self.calls]

    def put(self, name: str, lines: list[str], kind: str = "explanations") -> None:
        """Put a gzipped file of lines into the bucket."""
        body = gzip.compress("\n".join(lines).encode())
        self.objects[f"v1/{PLACE}/{kind}/{name}.jsonl.gz"] = body

    def answer(self, asked: Any) -> Any:
        """What the server gives back."""
        payload = asked.json() if asked.body else None
        self.calls.append((asked.method, asked.path, payload))
        fault = self.faults.pop(0) if self.faults else ""
        cut = (200, b'{"modelId": "gpt2', {"Content-Length": "500", "Connection": "close"})
        broken = {"hang": None, "drip": (200, drip()), "cut": cut}
        if isinstance(fault, str) and fault:
            return broken[fault]
        return fault or self._answer(asked.method, urlsplit(asked.path), payload)

    def _answer(self, method: str, parts: Any, payload: Any) -> Answer:
        path = unquote(parts.path)
        if path.startswith("/bucket"):
            return self._object(path.removeprefix("/bucket/"), parse_qs(parts.query))
        known = path.removeprefix("/api")
        if method == "GET" and known.startswith(f"/feature/{PLACE}/"):
            index = int(known.rpartition("/")[2])
            if index >= N_FEATURES:
                return as_json({"error": "Feature Not Found"}, 404)
            return as_json(feature(index), x_limit_remaining="24999")
        answers = {
            "/features": self._features,
            "/explanation/search": self._search,
            "/search-all": self._by_text,
            "/cossim": self._similar,
            "/steer": self._steer,
            "/steer-chat": self._steer_chat,
            "/list/new-with-features": self._list,
            "/vector/new": self._vector,
        }
        if method == "POST" and known in answers:
            return answers[known](payload)
        return 404, b"<!DOCTYPE html><html>404</html>", {"Content-Type": "text/html"}

    def _features(self, payload: Any) -> Answer:
        # Sorted by index and without those that are not there, as the service does.
        found = [
            feature(one["index"], n_texts=one["maxActsToReturn"])
            for one in sorted(payload, key=lambda one: one["index"])
            if one["index"] < N_FEATURES
        ]
        return as_json(found)

    def _search(self, payload: Any) -> Answer:
        first, size = payload.get("offset") or 0, 20
        places = range(first, min(first + size, 45))
        results = [
            {
                "modelId": MODEL,
                "layer": payload["layers"][0],
                "index": str(i),
                "description": f"{payload['query']} {i}",
                "cosine_similarity": 0.9 - i / 100,
                "neuron": feature(i),
            }
            for i in places
        ]
        more = len(results) == size
        rest = {"nextOffset": first + size} if more else {}
        return as_json({"request": payload, "results": results, "hasMore": more, **rest})

    def _by_text(self, payload: Any) -> Answer:
        hit = {"modelId": MODEL, "layer": payload["selectedLayers"][0], "index": "7"}
        hit |= {"values": [0.0, 3.5], "maxValue": 3.5, "maxValueIndex": 1, "neuron": feature(7)}
        bare = {**hit, "index": "8", "maxValue": 1.0, "neuron": None}
        return as_json({"tokens": ["<bos>", payload["text"]], "result": [hit, bare], "counts": []})

    def _similar(self, payload: Any) -> Answer:
        places = [
            {
                "feature": {"model": MODEL, "source": payload["targetSourceId"], "index": i},
                "cosineSimilarity": c,
            }
            for i, c in ((payload["index"], 1.0), (9, 0.5))
        ]
        return as_json({"feature": {}, "topkDecoderCossimFeatures": places})

    def _steer(self, payload: Any) -> Answer:
        said = {"STEERED": f"{payload['prompt']} steered", "DEFAULT": f"{payload['prompt']} plain"}
        return as_json({**said, "id": "s1", "shareUrl": f"{self.root}/steer/s1", "limit": "239"})

    def _steer_chat(self, payload: Any) -> Answer:
        def turn(text: str) -> dict[str, Any]:
            chat = [*payload["steeredChatMessages"], {"role": "model", "content": text}]
            return {"raw": f"<chat>{text}", "chatTemplate": chat}

        return as_json({"STEERED": turn("glad"), "DEFAULT": turn("fine"), "id": "s2"})

    def _list(self, payload: Any) -> Answer:
        return as_json({"id": "l1", "name": payload["name"], "url": f"{self.root}/list/l1"})

    def _vector(self, payload: Any) -> Answer:
        layer = f"{payload['layerNumber']}-neuronpedia-resid-pre"
        made = {"modelId": payload["modelId"], "source": layer, "index": "90000001"}
        url = f"{self.root}/{payload['modelId']}/{layer}/90000001"
        return as_json({"message": "Success", "url": url, "vector": made})

    def _object(self, key: str, query: dict[str, list[str]]) -> Answer:
        if key:
            body = self.objects.get(key)
            return (404, b"<Error/>", {}) if body is None else (200, body, {})
        keys = sorted(k for k in self.objects if k.startswith(query["prefix"][0]))
        first = int(query.get("continuation-token", ["0"])[0])
        some, more = keys[first : first + self.page], first + self.page < len(keys)
        listed = "".join(
            f"<Contents><Key>{escape(k)}</Key><ETag>{len(self.objects[k])}-{hash(self.objects[k])}"
            f"</ETag><Size>{len(self.objects[k])}</Size></Contents>"
            for k in some
        )
        token = f"<NextContinuationToken>{first + self.page}</NextContinuationToken>"
        return (
            200,
            f'<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<IsTruncated>{'true' if more else 'false'}</IsTruncated>{token if more else ''}"
            f"{listed}</ListBucketResult>".encode(),
            {"Content-Type": "application/xml"},
        )
