"""llama_server.py with two faults: a question with `(boom)` kills it, one with `(hang)` is never answered.

A front takes the port and hands everything on to the real server behind it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
from urllib.parse import urlsplit

from tests.bench.llama_server import start, until_told


def pump(source: socket.socket, target: socket.socket, watched: bool) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 20):
            if watched and b"(boom)" in data:
                os.kill(os.getpid(), signal.SIGKILL)
            if watched and b"(hang)" in data:
                return
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


def serve_front(front: socket.socket, port: int) -> None:
    while True:
        client, _ = front.accept()
        behind = socket.create_connection(("127.0.0.1", port))
        for pair in ((client, behind, True), (behind, client, False)):
            threading.Thread(target=pump, args=pair, daemon=True).start()


if __name__ == "__main__":
    asked, serve = start(sys.argv[1:])
    server = serve(0)
    with socket.create_server((asked.host, asked.port)) as front:
        address = (front, urlsplit(server.listening_address).port)
        threading.Thread(target=serve_front, args=address, daemon=True).start()
        until_told()
