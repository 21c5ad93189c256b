"""A GGUF pair behind llama.cpp's own server, as a VLM: for devices that have the binary `llama-server` and no Python.

The text around the question is the artifact's own, and the image is scaled here as for `vlm.llama_cpp.model`, so that
the same files give the same tokens. The server's chat template is not used.
"""

from __future__ import annotations

import base64
import http.client
import io
import json
import socket
import time
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any, TypeVar
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mpa_edge.artifact import Artifact
from mpa_edge.errors import MpaError
from mpa_edge.types import Reply, Request, Timing
from mpa_edge.vlm.llama_cpp.vision import images_for_mtmd
from mpa_edge.vlm.shared.prompts import prompt_text, prompt_too_long, without_special_tokens

LOADING_STATUS, LOADING_PAUSE_S = 503, 0.1
# what the runtime itself writes around an image, for models whose template has it too
WRITTEN_BY_RUNTIME = ("<|vision_start|>", "<|vision_end|>")
# of servers that do not choose a random marker at each start
OLD_MARKER = "<__media__>"
TOO_LONG = "exceed_context_size_error"
MOST_BYTES = 16 << 20
Document = TypeVar("Document", bound=BaseModel)


class ServerGoneError(MpaError):
    """No answer came: the server ended, hangs, or the connection broke. A retry may help."""


class ServerSlowError(ServerGoneError):
    """The server took longer than the time-out."""


class RefusedError(MpaError):
    """The server answered with an error status."""

    def __init__(self, message: str, status: int, details: dict[str, Any]) -> None:
        """`details` is the `error` object of the server's reply."""
        super().__init__(message)
        self.status, self.details = status, details


class Modalities(BaseModel):
    """What a server takes besides text."""

    vision: bool = False
    """Images."""


class Props(BaseModel):
    """What counts of /props."""

    model_config = ConfigDict(protected_namespaces=())  # of pydantic before 2.10

    model_path: str = ""
    """Of the language model."""
    model_alias: str | None = None
    """The server's own name."""
    modalities: Modalities = Modalities()
    """What it takes."""
    media_marker: str = OLD_MARKER
    """What stands for an image in a prompt."""
    bos_token: str = ""
    """What it may begin prompts with."""
    build_info: str = "(of an unknown build)"
    """Its version."""


class Tokenized(BaseModel):
    """A reply to /tokenize."""

    tokens: list[Any]
    """Ids, or what a server says about each."""


class Detokenized(BaseModel):
    """A reply to /detokenize."""

    content: str
    """The text."""


class Timings(BaseModel):
    """The server's own clock."""

    prompt_ms: float = Field(ge=0, le=1e12)
    """Up to the first token."""
    predicted_ms: float = Field(ge=0, le=1e12)
    """The tokens after it."""
    predicted_n: int = Field(ge=0, le=10**6)
    """All tokens."""


class Completion(BaseModel):
    """What counts of a reply to /completion."""

    content: str
    """The text."""
    tokens: list[int]
    """Its tokens, with the one that ended it."""
    stop_type: str | None = None
    """Why it ended: eos, limit, word."""
    timings: Timings
    """How long it took."""


class LlamaServer:
    """JSON over HTTP to one llama-server. The connection is opened at the first call and after each failure."""

    def __init__(self, url: str, *, timeout_s: float) -> None:
        """`url` as http://HOST:PORT; MpaError where it is something else."""
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname or parts.path.strip("/"):
            raise MpaError(f"'{url}' is no address of a llama-server: write http://HOST:PORT")
        self.url, self.timeout_s = url.rstrip("/"), timeout_s
        self._connection = http.client.HTTPConnection(parts.hostname, parts.port or 80, timeout=timeout_s)

    def call(self, path: str, body: dict[str, Any] | None = None, *, timeout_s: float | None = None) -> dict[str, Any]:
        """GET, or POST where there is a body. ServerGoneError: nothing came back; RefusedError: an error did."""
        status, raw = self._exchange(path, body, timeout_s or self.timeout_s)
        try:
            found = json.loads(raw)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise MpaError(f"{self.url} is not a llama-server (status {status}): check the address")
        if status >= http.client.BAD_REQUEST:
            error = found.get("error")
            details = error if isinstance(error, dict) else {}
            reason = " ".join(str(details.get("message", "no reason given")).split())[:200]
            raise RefusedError(f"llama-server refused (status {status}: {reason}): look at its log", status, details)
        return found

    def ask(self, kind: type[Document], path: str, body: dict[str, Any] | None = None) -> Document:
        """As `call`, the reply as a record. MpaError where it is another one than llama-server's."""
        try:
            return kind.model_validate(self.call(path, body))
        except ValidationError as error:
            wrong = error.errors()[0]
            where = ".".join(map(str, wrong["loc"]))
            raise MpaError(
                f"{self.url}{path} gives no '{where}' as llama-server does ({wrong['msg']}): use another build of it"
            ) from error

    def ready(self, *, timeout_s: float = 5.0) -> bool:
        """Whether the model is loaded. ServerGoneError where nobody listens."""
        try:
            self.call("/health", timeout_s=timeout_s)
        except RefusedError as error:
            if error.status == LOADING_STATUS:
                return False
            raise
        return True

    def close(self) -> None:
        """Close the connection; safe to call twice, and a later call opens it again."""
        self._connection.close()

    def _exchange(self, path: str, body: dict[str, Any] | None, timeout_s: float) -> tuple[int, bytes]:
        """(status, body) of a reply."""
        connection, was_open = self._connection, self._connection.sock is not None
        connection.timeout = timeout_s
        if isinstance(connection.sock, socket.socket):
            connection.sock.settimeout(timeout_s)
        try:
            data = None if body is None else json.dumps(body).encode()
            connection.request("GET" if data is None else "POST", path, data, {"Content-Type": "application/json"})
            reply = connection.getresponse()
            return reply.status, reply.read(MOST_BYTES)
        except TimeoutError as error:
            self.close()
            raise ServerSlowError(
                f"llama-server at {self.url} gave no answer within {timeout_s:g} s: restart it"
            ) from error
        except (OSError, http.client.HTTPException) as error:
            self.close()
            if was_open:  # a server closes a connection that was idle for seconds, or that served 100 calls
                return self._exchange(path, body, timeout_s)
            reason = getattr(error, "strerror", None) or type(error).__name__
            raise ServerGoneError(
                f"no llama-server answers at {self.url} ({reason}): start it, or check the address"
            ) from error


READ_BOTH_WAYS = ("gemma4",)
"""Model types where llama.cpp's programs let the tokens of an image attend to each other, and the model does not.

They do so for every Gemma 4; of those only the models larger than E4B were made like that.
"""


class LlamaServerVLM:
    """Answers through a llama-server that was started with `--mmproj`, one request at a time.

    The server reports two times, both without the network: from the image's pixels to the first token
    (`Timing.ttft_s`, vision encoder and prefill together), and the tokens after it (`decode_s`). Decoding and scaling
    the image are in neither.

    An answer also ends at a token that llama.cpp itself takes for an end, such as <|endoftext|>, even where the
    artifact does not name it. A trained model does not write one inside an answer.
    """

    def __init__(
        self, url: str, artifact: Artifact, *, name: str, timeout_s: float = 600.0, alias: str | None = None
    ) -> None:
        """Wait until it is ready, at most `timeout_s`, which also limits each answer.

        `alias`: the name that the server was started with. MpaError where it is another server, holds another model, or
        takes no images.
        """
        if artifact.model_type in READ_BOTH_WAYS:
            raise MpaError(
                f"llama-server reads an image of {artifact.model_type} in both directions, the model reads it in one: "
                "use an onnx scheme, or run the files with mpa-edge"
            )
        self.name, self.artifact = name, artifact
        self.server = LlamaServer(url, timeout_s=timeout_s)
        deadline = time.monotonic() + timeout_s
        while not self.server.ready():
            if time.monotonic() > deadline:
                raise MpaError(f"llama-server at {self.server.url} loads for {timeout_s:g} s: use a smaller model")
            time.sleep(LOADING_PAUSE_S)
        self.props = self.server.ask(Props, "/props")
        url, found = self.server.url, PurePosixPath(self.props.model_path).name
        if alias is not None and self.props.model_alias != alias:
            raise MpaError(f"another llama-server answers at {url}: stop it, or use another port")
        expected = PurePosixPath(artifact.files["language"]).name
        if found != expected:
            raise MpaError(f"llama-server at {url} runs '{found}', not '{expected}': start it with -m {expected}")
        if not self.props.modalities.vision:
            raise MpaError(f"llama-server at {url} takes no images: start it with --mmproj FILE")
        self._marker = self.props.media_marker
        # the artifact's text in front of the question, without what the server adds to it
        (start, end), parts = WRITTEN_BY_RUNTIME, artifact.prompt
        before = parts.before.replace(f"{start}{parts.placeholder}{end}", parts.placeholder, 1)
        bare, dressed = (
            self.server.ask(Tokenized, "/tokenize", {"content": "x", "add_special": special}).tokens
            for special in (False, True)
        )
        first = self.props.bos_token if len(dressed) > len(bare) else ""
        if not before.startswith(first):
            raise MpaError(
                f"llama-server begins every prompt with '{first}', this export's does not: rerun mpa-edge export"
            )
        parts = parts.model_copy(update={"before": before.removeprefix(first)})
        self._own = artifact.model_copy(update={"prompt": parts})

    def answer(self, requests: Sequence[Request]) -> list[Reply]:
        """One reply for each request, in order. ServerGoneError where none came: a retry may help."""
        replies, ends = [], self.artifact.tokens.ends
        for request in requests:
            try:
                found = self.server.ask(Completion, "/completion", self.body(request))
            except RefusedError as error:
                if error.details.get("type") != TOO_LONG:
                    raise
                n_prompt, limit = error.details.get("n_prompt_tokens", "too many"), error.details.get("n_ctx", "fewer")
                raise prompt_too_long(n_prompt, limit) from error
            # the text up to the first of the artifact's end tokens, which need not be those of the server
            tokens = found.tokens
            n = next((i + 1 for i, token in enumerate(tokens) if token in ends), len(tokens))
            text = found.content
            if n < len(tokens):
                text = self.server.ask(Detokenized, "/detokenize", {"tokens": tokens[: n - 1]}).content
            stopped = tokens[n - 1 :] and (tokens[n - 1] in ends or found.stop_type == "eos")
            text = without_special_tokens(text, self.artifact.tokens.special).strip()
            replies.append(Reply(text, "stop" if stopped else "length", n, timing(found.timings, n)))
        return replies

    def close(self) -> None:
        """Close the connection; the server keeps running. Safe to call twice."""
        self.server.close()

    def body(self, request: Request) -> dict[str, Any]:
        """What is sent to /completion. MpaError where the image takes several tiles that the server would cut anew."""
        images = images_for_mtmd(self.artifact.image, request.image)
        if len(images) > 1:
            raise MpaError("llama-server cannot take an InternVL image in tiles: use a target with max_tiles: 1")
        question = without_special_tokens(request.prompt, (self._marker,))
        prompt = prompt_text(self._own, question, self._marker)
        file = io.BytesIO()
        images[0].convert("RGB").save(file, "PNG", compress_level=1)  # lightly, for speed
        image = base64.b64encode(file.getvalue()).decode()
        body = {
            "prompt": {"prompt_string": prompt, "multimodal_data": [image]},
            "n_predict": request.max_new_tokens,
            "cache_prompt": False,  # no state is kept from one answer to the next
            "return_tokens": True,
            "stream": False,
        }
        if (penalty := self.artifact.repetition_penalty) != 1.0:
            body |= {"repeat_penalty": penalty, "repeat_last_n": self.artifact.context_tokens}
        if request.temperature <= 0:
            return body | {"temperature": 0.0, "top_k": 1, "samplers": ["penalties", "top_k"]}
        chosen = {"temperature": request.temperature, "top_p": request.top_p, "seed": request.seed}
        return body | chosen | {"samplers": ["penalties", "temperature", "top_p"]}


def timing(reported: Timings, n_tokens: int) -> Timing:
    """The server's own clock: `prompt_ms` ends with the first token, `predicted_ms` are the tokens after it.

    Source: llama.cpp 0c1e57098, tools/server/server-common.h, `server_slot_stats`. The vision encoder is inside
    `prompt_ms`, so neither its share nor that of the prefill is known.

    >>> timing(Timings(prompt_ms=200.0, predicted_ms=30.0, predicted_n=4), 4)
    Timing(total_s=0.23, ttft_s=0.2, preprocess_s=None, vision_s=None, prefill_s=None, decode_s=0.03)
    """
    ttft_s, steps = reported.prompt_ms / 1000, reported.predicted_n - 1
    # an answer that was cut at an end token of the artifact took only its share of the steps
    decode_s = reported.predicted_ms / 1000 * (n_tokens - 1) / steps if steps > 0 else 0.0
    return Timing(total_s=ttft_s + decode_s, ttft_s=ttft_s, decode_s=decode_s)
