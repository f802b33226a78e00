"""Qdrant's REST paths in front of its local mode: shows that what is sent over HTTP can be sent, and what comes back read."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from qdrant_client import QdrantClient, models

KEY = "secret"
M = models


def _points(found: Any) -> dict[str, Any]:
    return {"points": found[0], "next_page_offset": found[1]}


# (method, path below /collections/NAME) -> what the local mode answers to the body
ROUTES: dict[tuple[str, str], Callable[[QdrantClient, str, Any], Any]] = {
    ("GET", "/exists"): lambda client, name, _: {"exists": client.collection_exists(name)},
    ("GET", ""): lambda client, name, _: client.get_collection(name),
    ("DELETE", ""): lambda client, name, _: client.delete_collection(name),
    ("PUT", ""): lambda client, name, body: client.create_collection(
        name, M.VectorParams(**body["vectors"]), metadata=body["metadata"]
    ),
    ("PATCH", ""): lambda client, name, body: client.update_collection(name, metadata=body["metadata"]),
    ("PUT", "/index"): lambda *_: {"operation_id": 1, "status": "completed"},
    ("PUT", "/points"): lambda client, name, body: client.upsert(
        name, [M.PointStruct(**point) for point in body["points"]]
    ),
    ("POST", "/points"): lambda client, name, body: client.retrieve(
        name, body["ids"], with_payload=body["with_payload"], with_vectors=body["with_vector"]
    ),
    ("POST", "/points/delete"): lambda client, name, body: client.delete(
        name, M.PointIdsList(**body) if "points" in body else M.FilterSelector(**body)
    ),
    ("POST", "/points/count"): lambda client, name, body: client.count(name),
    ("POST", "/points/scroll"): lambda client, name, body: _points(
        client.scroll(
            name, M.Filter(**body["filter"]) if body.get("filter") else None, limit=body["limit"],
            offset=body.get("offset"), with_vectors=body["with_vector"],
        )
    ),
    ("POST", "/points/query/batch"): lambda client, name, body: client.query_batch_points(
        name, [M.QueryRequest(**{**one, "params": None}) for one in body["searches"]]
    ),
}  # fmt: skip


@contextmanager
def serve() -> Iterator[tuple[str, list[tuple[str, str, Any]]]]:
    """An address, and the (method, path, body) of each request so far."""
    local, asked, lock = QdrantClient(":memory:"), list[tuple[str, str, Any]](), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            match = re.fullmatch(r"/collections/(\w+)([\w/]*)(?:\?.*)?", self.path)
            body = json.loads(raw) if raw else None
            if self.headers.get("api-key") != KEY:
                return self._send(401, {"status": {"error": "Must provide an API key"}})
            assert match
            with lock:
                asked.append((self.command, match[2], body))
                result = ROUTES[self.command, match[2]](local, match[1], body)
            return self._send(200, {"result": _plain(result), "status": "ok", "time": 0.0})

        do_GET = do_PUT = do_POST = do_PATCH = do_DELETE = _answer

        def _send(self, status: int, answer: Any) -> None:
            data = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            """Nothing on stderr."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()


def _plain(value: Any) -> Any:
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json", exclude_none=True)
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, (list, tuple)) else value
