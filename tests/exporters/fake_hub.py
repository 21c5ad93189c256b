"""The hub's upload endpoints on this machine: what `huggingface_hub` asks is answered, and checked, as the hub does.

Routes as `huggingface_hub` 2.4 calls them: repos/create, validate-yaml, preupload, LFS batch and upload, commit.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

LFS_SUFFIXES = (".onnx", ".onnx_data", ".gguf")
TOKEN = "hf_canary0000000000000000000000000001"
# repository name -> status that its creation is refused with
REFUSED = {"denied": 403, "missing": 404, "broken": 500, "full": 429}


@dataclass
class Hub:
    """What arrived."""

    repos: dict[str, bool] = field(default_factory=dict)
    """Repository -> whether it is private."""
    files: dict[str, bytes] = field(default_factory=dict)
    """Path in the committed repository -> content."""
    objects: dict[str, bytes] = field(default_factory=dict)
    """sha256 -> content of large files, before the commit names them."""
    asked: list[str] = field(default_factory=list)
    """Method and path of every request."""
    url: str = ""
    """Where it listens."""


class Handler(BaseHTTPRequestHandler):
    """One request."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Tests are quiet."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.partition("?")[0]
        self.hub.asked.append(f"POST {path}")
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.reply(401, {"error": f"Invalid credentials in {self.headers.get('Authorization')}"})
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        if path == "/api/validate-yaml":
            return self.reply(200, {"errors": [], "warnings": []})
        if path.endswith("/preupload/main"):
            return self.preupload(json.loads(body))
        if path.endswith("/info/lfs/objects/batch"):
            return self.batch(json.loads(body))
        if path.endswith("/commit/main"):
            return self.commit(path, body.decode())
        return self.reply(404, {"error": f"no route {path}"})

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.asked.append(f"PUT {self.path}")
        oid = self.path.rpartition("/")[2]
        if hashlib.sha256(body).hexdigest() != oid:
            return self.reply(400, {"error": "wrong hash"})
        self.hub.objects[oid] = body
        return self.reply(200, {})

    def create(self, asked: dict[str, Any]) -> None:
        owner = asked.get("organization") or "me"
        if asked["name"] in REFUSED:
            return self.reply(REFUSED[asked["name"]], {"error": f"refused, {self.headers['Authorization']}"})
        name = f"{owner}/{asked['name']}"
        self.hub.repos[name] = bool(asked.get("private") or asked.get("visibility") == "private")
        return self.reply(200, {"url": f"{self.hub.url}/{name}", "name": name, "id": name})

    def preupload(self, asked: dict[str, Any]) -> None:
        rows = [
            {
                "path": file["path"],
                "shouldIgnore": False,
                "uploadMode": "lfs" if file["path"].endswith(LFS_SUFFIXES) else "regular",
            }
            for file in asked["files"]
        ]
        self.reply(200, {"files": rows})

    def batch(self, asked: dict[str, Any]) -> None:
        def upload(oid: str) -> dict[str, Any]:
            return {"upload": {"href": f"{self.hub.url}/store/{oid}", "header": {}}}

        rows = [{**row, "actions": upload(row["oid"])} for row in asked["objects"]]
        self.reply(200, {"transfer": "basic", "objects": rows})

    def commit(self, path: str, body: str) -> None:
        for line in filter(None, body.splitlines()):
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                self.hub.files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                self.hub.files[value["path"]] = self.hub.objects[value["oid"]]
        name = path.removeprefix("/api/models/").removesuffix("/commit/main")
        self.reply(200, {"success": True, "commitOid": "0" * 40, "commitUrl": f"{self.hub.url}/{name}/commit/0"})

    def reply(self, status: int, document: dict[str, Any]) -> None:
        data = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def start() -> tuple[Hub, ThreadingHTTPServer]:
    """A hub that listens; shut its server down when done."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("OneHub", (Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return hub, server
