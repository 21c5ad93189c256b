"""The page of a review on 127.0.0.1: nobody else gets in, and it loads nothing from outside.

Each start has a new address with a random token. A request without it, for another host (a name that was bound to
127.0.0.1) or from another page gets 403. What the teacher wrote reaches the page as JSON and is shown as text only.
"""

from __future__ import annotations

import hmac
import json
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from mpa_edge.errors import MpaError
from mpa_edge.evaluation.review import LONGEST_ANSWER, Ruling
from mpa_edge.images.decode import as_jpeg
from mpa_edge.images.folder import open_image
from mpa_edge.metrics.reading import no_character
from mpa_edge.runs.log import logger
from mpa_edge.stages.review.session import Session
from mpa_edge.types import Drop

HOST = "127.0.0.1"
HOSTS = (HOST, "localhost")
PAGE = Path(__file__).with_name("page.html")
LONGEST_SIDE = 4000
"""Of an image on the page, pixels."""
MOST_BODY = 16_384
SILENT_S = 30.0
POLICY = (
    "default-src 'none'; img-src 'self' data:; connect-src 'self'; style-src 'nonce-{nonce}'; "
    "script-src 'nonce-{nonce}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class ReviewServer(ThreadingHTTPServer):
    """Serves one session."""

    daemon_threads = True

    def __init__(self, session: Session, max_pixels: int) -> None:
        super().__init__((HOST, 0), Handler)
        self.session, self.max_pixels = session, max_pixels
        self.token, self.nonce = secrets.token_urlsafe(24), secrets.token_urlsafe(16)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that closes a connection early is no event for the terminal."""
        logger.debug("review: a request has ended early", exc_info=True)

    @property
    def url(self) -> str:
        """The address of the page."""
        return f"http://{HOST}:{self.server_port}/{self.token}/"


@contextmanager
def serve(session: Session, max_pixels: int) -> Iterator[str]:
    """Serve the page of a session; gives its address. Images larger than `max_pixels` are not opened."""
    with ReviewServer(session, max_pixels) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield server.url
        finally:
            server.shutdown()
            thread.join()


class RefusedError(Exception):
    """A request that is not answered."""

    def __init__(self, status: HTTPStatus, why: str) -> None:
        super().__init__(why)
        self.status = status


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: ReviewServer
    server_version, sys_version = "mpa-edge", ""
    timeout = SILENT_S

    def do_GET(self) -> None:
        """The page, the state, or an image."""
        self._answer(self._get)

    def do_POST(self) -> None:
        """A decision, or its undoing."""
        self._answer(self._post)

    def _answer(self, respond: Any) -> None:
        try:
            path = self._allowed()
            kind, data = respond(path)
            status = HTTPStatus.OK
        except RefusedError as error:
            status, kind, data = error.status, "text/plain", str(error).encode()
        except (MpaError, OSError) as error:  # shown on the page, and nothing is lost
            status, kind, data = HTTPStatus.INTERNAL_SERVER_ERROR, "text/plain", str(error).encode(errors="replace")
        self.send_response(status)
        headers = HEADERS | {"Content-Security-Policy": POLICY.format(nonce=self.server.nonce)}
        for name, value in (headers | {"Content-Type": f"{kind}; charset=utf-8", "Content-Length": len(data)}).items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(data)

    def _allowed(self) -> str:
        """The path behind the token; RefusedError for whoever has not got this page's address."""
        host = self.headers.get("Host", "")
        origin = self.headers.get("Origin")
        _, token, path = [*self.path.split("/", 2), "", ""][:3]
        if host.rpartition(":")[0] not in HOSTS or (origin is not None and origin != f"http://{host}"):
            raise RefusedError(HTTPStatus.FORBIDDEN, "this page is for this machine only")
        if not hmac.compare_digest(token.encode(errors="replace"), self.server.token.encode()):
            raise RefusedError(HTTPStatus.FORBIDDEN, "open the address that mpa-edge review has printed")
        return path

    def _get(self, path: str) -> tuple[str, bytes]:
        parts = urlsplit(path)
        if parts.path == "":
            return "text/html", PAGE.read_text(encoding="utf-8").replace("{{nonce}}", self.server.nonce).encode()
        if parts.path == "state":
            return "application/json", json.dumps(self.server.session.state()).encode()
        if parts.path == "image":
            return self._image(parse_qs(parts.query).get("id", [""])[0])
        raise RefusedError(HTTPStatus.NOT_FOUND, "there is nothing here")

    def _image(self, key: str) -> tuple[str, bytes]:
        session = self.server.session
        if key not in session.chosen:
            raise RefusedError(HTTPStatus.NOT_FOUND, "there is no such question")
        image = open_image(session.asked.folder / session.chosen[key].image, self.server.max_pixels)
        if isinstance(image, Drop):
            raise RefusedError(HTTPStatus.NOT_FOUND, f"this image cannot be opened: {image.reason}")
        return "image/jpeg", as_jpeg(image, LONGEST_SIDE, quality=92, subsampling=0)

    def _post(self, path: str) -> tuple[str, bytes]:
        session, body = self.server.session, self._body()
        key, verdict, answer = (body.get(name, "") for name in ("id", "verdict", "answer"))
        if key not in session.chosen:
            raise RefusedError(HTTPStatus.BAD_REQUEST, "there is no such question: reload the page")
        if path == "undo":
            return "application/json", json.dumps(session.undo(key)).encode()
        if path != "decide":
            raise RefusedError(HTTPStatus.NOT_FOUND, "there is nothing here")
        rulings: dict[str, Ruling] = {"right": "right", "wrong": "wrong", "unanswerable": "unanswerable"}
        if verdict not in rulings:
            raise RefusedError(HTTPStatus.BAD_REQUEST, f"a verdict is {', '.join(rulings)}")
        answer = " ".join(answer.split()) if verdict == "wrong" else ""
        if len(answer) > LONGEST_ANSWER or no_character(answer):
            raise RefusedError(
                HTTPStatus.BAD_REQUEST, f"the answer is longer than {LONGEST_ANSWER} characters: shorten it"
            )
        if verdict == "wrong" and (fault := session.fault(answer)):
            raise RefusedError(HTTPStatus.BAD_REQUEST, fault)
        return "application/json", json.dumps(session.decide(key, rulings[verdict], answer)).encode()

    def _body(self) -> dict[str, str]:
        """The JSON object of a request, whose values are all text."""
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > MOST_BODY:
            raise RefusedError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "the request is too long")
        try:
            body = json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError):
            body = None
        if not isinstance(body, dict) or not all(isinstance(value, str) for value in body.values()):
            raise RefusedError(HTTPStatus.BAD_REQUEST, "the request is no JSON object of texts")
        return body

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  as the base class names it
        """Say nothing: the address, and with it the token, would stand in the log."""
