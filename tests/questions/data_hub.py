"""The hub's read routes for one data set, on this machine, as `huggingface_hub` asks them: revision, HEAD, GET."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "3f6e5db" + 33 * "0"


class Handler(BaseHTTPRequestHandler):
    """One request."""

    folder: Path
    asked: list[str]
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Tests are quiet."""

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        path = self.path.partition("?")[0]
        self.asked.append(f"{self.command} {path}")
        if path.startswith("/api/datasets/lmms-lab/textvqa/"):
            return self.reply(200, self.listing(path), {"Content-Type": "application/json"}, body)
        name = path.partition(f"/resolve/{COMMIT}/")[2]
        if not path.startswith("/datasets/lmms-lab/textvqa/") or not (self.folder / name).is_file():
            return self.reply(404, b"{}", {"X-Error-Code": "RepoNotFound"}, body)
        data = (self.folder / name).read_bytes()
        return self.reply(200, data, {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": COMMIT}, body)

    def listing(self, path: str) -> bytes:
        files = {path.relative_to(self.folder).as_posix(): path for path in self.folder.rglob("*") if path.is_file()}
        if "/tree/" in path:
            rows = [{"type": "file", "path": n, "size": f.stat().st_size, "oid": "0" * 40} for n, f in files.items()]
            return json.dumps(rows).encode()
        siblings = [{"rfilename": name} for name in files]
        return json.dumps({"id": "lmms-lab/textvqa", "sha": COMMIT, "siblings": siblings, "tags": []}).encode()

    def reply(self, status: int, data: bytes, headers: dict[str, str], body: bool) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data)


@contextmanager
def hub(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Address of a hub whose data set lmms-lab/textvqa is this folder, and the requests that it gets."""
    asked: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("OneHub", (Handler,), {"folder": folder, "asked": asked}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
