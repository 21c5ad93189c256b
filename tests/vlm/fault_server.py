"""A server of the OpenAI protocol that fails as servers do: on a real socket, each chat request as a script says."""

from __future__ import annotations

import json
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

Handler = BaseHTTPRequestHandler
Behaviour = Callable[[Handler], None]


def document(text: Any = "7", finish: Any = "stop", tokens: tuple[int, int] | None = (100, 2), **message: Any) -> dict:
    """A chat completion as servers write it."""
    made: dict[str, Any] = {
        "id": "x",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text} | message}],
    }
    if tokens is not None:
        made["usage"] = {"prompt_tokens": tokens[0], "completion_tokens": tokens[1], "total_tokens": sum(tokens)}
    return made


def send(
    handler: Handler,
    body: bytes,
    status: int = 200,
    kind: str = "application/json",
    length: int | None = None,
    **headers: str,
) -> None:
    handler.send_response(status)
    handler.send_header("Content-Type", kind)
    handler.send_header("Content-Length", str(len(body) if length is None else length))
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)
    handler.wfile.flush()


def says(*given: Any, **options: Any) -> Behaviour:
    return lambda handler: send(handler, json.dumps(document(*given, **options)).encode())


def body(raw: bytes, kind: str = "application/json", **options: Any) -> Behaviour:
    return lambda handler: send(handler, raw, kind=kind, **options)


def status(code: int, message: str = "no", **headers: str) -> Behaviour:
    raw = json.dumps({"error": {"message": message, "code": code}}).encode()
    return lambda handler: send(handler, raw, code, **headers)


def html(handler: Handler) -> None:
    send(handler, b"<html><body>Welcome to nginx</body></html>", kind="text/html")


def disconnect(handler: Handler) -> None:
    handler.close_connection = True
    handler.connection.close()


def half_body(handler: Handler) -> None:
    """Half of the document, and the connection ends before the length that was promised."""
    raw = json.dumps(document()).encode()
    send(handler, raw[: len(raw) // 2], length=len(raw))
    disconnect(handler)


def half_chunk(handler: Handler) -> None:
    """A chunked reply that ends within its first chunk."""
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    handler.wfile.write(b"ff\r\n" + json.dumps(document()).encode()[:40])
    handler.wfile.flush()
    disconnect(handler)


def wrong_length(handler: Handler) -> None:
    """A whole document whose stated length cuts it."""
    send(handler, json.dumps(document()).encode(), length=40)
    handler.close_connection = True


def truncated(handler: Handler) -> None:
    """Half of the document as if it were all."""
    raw = json.dumps(document()).encode()
    send(handler, raw[: len(raw) // 2])


def endless(handler: Handler) -> None:
    """More than anybody wants to keep in memory."""
    handler.send_response(200)
    handler.end_headers()
    for _ in range(1_000):
        handler.wfile.write(b" " * 1_000_000)


def hang(seconds: float) -> Behaviour:
    def wait(handler: Handler) -> None:
        handler.server.closing.wait(seconds)  # type: ignore[attr-defined]
        disconnect(handler)

    return wait


def drip(every_s: float) -> Behaviour:
    """A byte now and then, so that no pause is as long as a time-out."""

    def trickle(handler: Handler) -> None:
        raw = json.dumps(document()).encode()
        send(handler, b"", length=len(raw))
        for i in range(len(raw)):
            if handler.server.closing.wait(every_s):  # type: ignore[attr-defined]
                return
            handler.wfile.write(raw[i : i + 1])
            handler.wfile.flush()

    return trickle


def echo_key(code: int) -> Behaviour:
    """An error that repeats the key, as some servers do."""
    return lambda handler: status(code, f"wrong key: {handler.headers['Authorization']}")(handler)


LISTED = body(b'{"object": "list", "data": [{"id": "m", "root": "/m", "created": 1}]}')


@dataclass
class FaultServer:
    """What was asked, and what it says next."""

    url: str
    script: Callable[[int, dict[str, Any]], Behaviour]
    """Number of the chat request and its body -> how it is answered."""
    models: Behaviour = LISTED
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    asked_s: list[float] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0

    @property
    def reference(self) -> str:
        return f"openai:{self.url}#m"

    def prompts(self) -> list[str]:
        return [asked["messages"][0]["content"][1]["text"] for asked in self.bodies]


def in_turn(behaviours: Iterable[Behaviour]) -> Callable[[int, dict[str, Any]], Behaviour]:
    """The first ones as listed, then the last one for ever."""
    listed = list(behaviours)
    return lambda number, _: listed[min(number, len(listed) - 1)]


@contextmanager
def serving(
    *behaviours: Behaviour, script: Any = None, port: int = 0, tls: tuple[Path, Path] | None = None
) -> Iterator[FaultServer]:
    """A server on a port of its own, answering in turn or by a script; everything that hangs ends with it."""
    lock = threading.Lock()

    class Fault(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # head and body go out one by one: they would wait 40 ms for each other

        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            fault.headers.append({name.lower(): value for name, value in self.headers.items()})
            fault.models(self)

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if server.closing.is_set():  # type: ignore[attr-defined]  # a connection that outlived its server
                return disconnect(self)
            with lock:
                number = len(fault.bodies)
                fault.bodies.append(asked)
                fault.headers.append({name.lower(): value for name, value in self.headers.items()})
                fault.asked_s.append(time.monotonic())
                fault.at_once += 1
                fault.most_at_once = max(fault.most_at_once, fault.at_once)
            try:
                fault.script(number, asked)(self)
            except OSError:  # the client has gone
                self.close_connection = True
            finally:
                with lock:
                    fault.at_once -= 1
            return None

    server = ThreadingHTTPServer(("127.0.0.1", port), Fault)
    server.daemon_threads = True
    server.closing = threading.Event()  # type: ignore[attr-defined]
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*tls)
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    fault = FaultServer(
        f"http{'s' if tls else ''}://127.0.0.1:{server.server_port}/v1", script or in_turn(behaviours or [says()])
    )
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield fault
    finally:
        server.closing.set()  # type: ignore[attr-defined]
        server.shutdown()
        server.server_close()
        thread.join(5)
