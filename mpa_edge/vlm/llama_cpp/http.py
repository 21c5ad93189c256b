"""JSON over HTTP to a llama-server: the standard library alone, one kept connection, every failure one line."""

from __future__ import annotations

import http.client
import json
import socket
from typing import Any
from urllib.parse import urlsplit

from mpa_edge.errors import MpaError

# what a server says while it reads its model
LOADING = 503


class ServerGoneError(MpaError):
    """No answer came: the server ended, hangs, or the way to it is cut. Asking again may help."""


class ServerSlowError(ServerGoneError):
    """The server took longer than the time-out."""


class WrongServerError(MpaError):
    """Something else listens at the address."""


class RefusedError(MpaError):
    """The server answered that it will not do it."""

    def __init__(self, message: str, status: int, details: dict[str, Any]) -> None:
        """`details` is the `error` object of the server's reply."""
        super().__init__(message)
        self.status, self.details = status, details


class LlamaServer:
    """One llama-server. Its connection is opened at the first call and after each failure."""

    def __init__(self, url: str, *, timeout_s: float) -> None:
        """`url` as http://HOST:PORT; MpaError where it is something else."""
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname or parts.path.strip("/"):
            raise MpaError(f"'{url}' is no address of a llama-server: write http://HOST:PORT")
        self.url = url.rstrip("/")
        self.timeout_s = timeout_s
        self._link = http.client.HTTPConnection(parts.hostname, parts.port or 80, timeout=timeout_s)

    def call(self, path: str, body: dict[str, Any] | None = None, *, timeout_s: float | None = None) -> dict[str, Any]:
        """GET, or POST where there is a body. ServerGoneError: nothing came back; RefusedError: an error did."""
        status, raw = self._exchange(path, body, timeout_s or self.timeout_s)
        try:
            found = json.loads(raw)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise WrongServerError(
                f"what answers at {self.url} is no llama-server (status {status}): check the address"
            )
        if status >= http.client.BAD_REQUEST:
            details = found.get("error")
            raise self._refused(status, details if isinstance(details, dict) else {})
        return found

    def ready(self, *, timeout_s: float = 5.0) -> bool:
        """Whether the model is loaded. ServerGoneError where nobody listens."""
        try:
            self.call("/health", timeout_s=timeout_s)
        except RefusedError as error:
            if error.status == LOADING:
                return False
            raise
        return True

    def close(self) -> None:
        """Close the connection; safe to call twice, and a later call opens it again."""
        self._link.close()

    def _refused(self, status: int, details: dict[str, Any]) -> RefusedError:
        said = " ".join(str(details.get("message", "no reason given")).split())[:200]
        return RefusedError(f"llama-server refused (status {status}: {said}): look at its log", status, details)

    def _exchange(self, path: str, body: dict[str, Any] | None, timeout_s: float) -> tuple[int, bytes]:
        kept = self._link.sock is not None
        try:
            return self._once(path, body, timeout_s)
        except TimeoutError as error:
            self.close()
            raise ServerSlowError(
                f"llama-server at {self.url} gave no answer within {timeout_s:g} s: stop it and start it again"
            ) from error
        except (OSError, http.client.HTTPException) as error:
            self.close()
            if kept:  # a server closes a connection that was idle for seconds, or that served 100 calls
                return self._exchange(path, body, timeout_s)
            reason = getattr(error, "strerror", None) or type(error).__name__
            raise ServerGoneError(
                f"no llama-server answers at {self.url} ({reason}): start it, or check the address"
            ) from error

    def _once(self, path: str, body: dict[str, Any] | None, timeout_s: float) -> tuple[int, bytes]:
        self._link.timeout = timeout_s
        if isinstance(self._link.sock, socket.socket):
            self._link.sock.settimeout(timeout_s)
        data = None if body is None else json.dumps(body).encode()
        headers = {} if data is None else {"Content-Type": "application/json"}
        self._link.request("GET" if data is None else "POST", path, data, headers)
        reply = self._link.getresponse()
        return reply.status, reply.read()
