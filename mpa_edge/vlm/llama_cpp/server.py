"""A GGUF pair behind llama.cpp's own server, as a VLM: for devices that have the binary `llama-server` and no Python.

The text around the question is the artifact's own, and the picture is scaled here as `vlm.llamacpp` does it, so that
the same files give the same tokens. The server's chat template is not used.
"""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from mpa_edge.artifact import Artifact
from mpa_edge.errors import MpaError
from mpa_edge.types import FinishReason, Reply, Request, Timing
from mpa_edge.vlm.llama_cpp.http import LlamaServer, RefusedError, WrongServerError
from mpa_edge.vlm.llama_cpp.model import internvl_tiles, stays_as_scaled
from mpa_edge.vlm.pixels import resized
from mpa_edge.vlm.prompts import prompt_text, without_special_tokens

if TYPE_CHECKING:
    from PIL.Image import Image

# what the runtime writes around a picture by itself, for models whose template writes it as well
WRITTEN_BY_RUNTIME = ("<|vision_start|>", "<|vision_end|>")
# servers that have no marker of their own at each start
OLD_MARKER = "<__media__>"
LOADING_PAUSE_S = 0.1
# too many tokens for the context
TOO_LONG = "exceed_context_size_error"


class LlamaServerVLM:
    """Answers through a llama-server that was started with `--mmproj`, one request at a time.

    Of its times the server tells two, both without the way there and back: from the picture's pixels to the first
    token (`Timing.ttft_s`, vision encoder and prefill together), and the tokens after it (`decode_s`). Decoding and
    scaling the picture are in neither.

    One thing is the server's own: an answer also ends at a token whose text llama.cpp takes for an end, such as
    <|endoftext|>, where the artifact does not name it. A trained model does not write one inside an answer.
    """

    def __init__(
        self, url: str, artifact: Artifact, *, name: str, timeout_s: float = 600.0, alias: str | None = None
    ) -> None:
        """Wait until it is ready, at most `timeout_s`, which also limits each answer.

        `alias`: the name that this very server was given at its start. MpaError where it is another server, holds
        another model, or takes no pictures.
        """
        self.name, self.artifact = name, artifact
        self.server = LlamaServer(url, timeout_s=timeout_s)
        self._wait(timeout_s)
        self.props = self.server.call("/props")
        self._check(alias)
        self._marker = str(self.props.get("media_marker", OLD_MARKER))
        parts = artifact.prompt.model_copy(update={"before": self._before()})
        self._own = artifact.model_copy(update={"prompt": parts})

    def answer(self, requests: Sequence[Request]) -> list[Reply]:
        """One reply for each request, in order. ServerGoneError where none came, so that one may try again."""
        return [self._answer(request) for request in requests]

    def close(self) -> None:
        """Close the connection; the server stays. Safe to call twice."""
        self.server.close()

    def _wait(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not self.server.ready():
            if time.monotonic() > deadline:
                raise MpaError(f"llama-server at {self.server.url} loads for {timeout_s:g} s: use a smaller model")
            time.sleep(LOADING_PAUSE_S)

    def _check(self, alias: str | None) -> None:
        """MpaError where this is not the server that was meant."""
        url, found = self.server.url, PurePosixPath(str(self.props.get("model_path"))).name
        if alias is not None and self.props.get("model_alias") != alias:
            raise WrongServerError(f"another llama-server answers at {url}: stop it, or use another port")
        expected = PurePosixPath(self.artifact.files["language"]).name
        if found != expected:
            raise MpaError(f"llama-server at {url} runs '{found}', not '{expected}': start it with -m {expected}")
        if not self.props.get("modalities", {}).get("vision"):
            raise MpaError(f"llama-server at {url} takes no pictures: start it with --mmproj FILE")

    def _before(self) -> str:
        """The artifact's text in front of the question, without what the server adds to it by itself."""
        parts = self.artifact.prompt
        before, (start, end) = parts.before, WRITTEN_BY_RUNTIME
        before = before.replace(f"{start}{parts.placeholder}{end}", parts.placeholder, 1)
        first = self._begin_token()
        if not before.startswith(first):
            raise MpaError(
                f"llama-server begins every prompt with '{first}', the model was exported without: export again"
            )
        return before.removeprefix(first)

    def _begin_token(self) -> str:
        """The text of the token that the server puts in front of every prompt; empty where it puts none."""
        bare, dressed = (
            self.server.call("/tokenize", {"content": "x", "add_special": special})["tokens"]
            for special in (False, True)
        )
        return str(self.props.get("bos_token", "")) if len(dressed) > len(bare) else ""

    def _answer(self, request: Request) -> Reply:
        try:
            return self._reply(self.server.call("/completion", self.body(request)))
        except RefusedError as error:
            if error.details.get("type") == TOO_LONG:
                raise self._too_long(error.details) from error
            raise

    def body(self, request: Request) -> dict[str, Any]:
        """What is sent to /completion."""
        picture = base64.b64encode(png(self._scaled(request.image))).decode()
        question = without_special_tokens(request.prompt, (self._marker,))
        prompt = prompt_text(self._own, question, self._marker)
        return {"prompt": {"prompt_string": prompt, "multimodal_data": [picture]}, **options(request)}

    def _too_long(self, details: dict[str, Any]) -> MpaError:
        room = f"{details.get('n_prompt_tokens', 'too many')} tokens, this export takes {details.get('n_ctx', 'fewer')}"
        return MpaError(f"the prompt has {room}: ask a shorter question, or export for a longer context")

    def _scaled(self, image: Image) -> Image:
        """As `vlm.llamacpp` hands it to llama.cpp. MpaError where that takes several pictures for one."""
        config = self.artifact.image
        if config["kind"] == "internvl":
            tiles = internvl_tiles(config, image)
            if len(tiles) > 1:
                raise MpaError("llama-server cannot take an InternVL picture in tiles: use a target with max_tiles: 1")
            return tiles[0]
        return resized(config, image) if stays_as_scaled(config) else image

    def _reply(self, found: dict[str, Any]) -> Reply:
        """The text up to the first of the artifact's end tokens, which need not be those of the server."""
        ends, tokens = self.artifact.tokens.ends, [int(token) for token in found["tokens"]]
        n = next((i + 1 for i, token in enumerate(tokens) if token in ends), len(tokens))
        text = str(found["content"])
        if n < len(tokens):
            text = str(self.server.call("/detokenize", {"tokens": tokens[: n - 1]})["content"])
        stopped = tokens[n - 1 :] and (tokens[n - 1] in ends or found.get("stop_type") == "eos")
        reason: FinishReason = "stop" if stopped else "length"
        text = without_special_tokens(text, self.artifact.tokens.special).strip()
        return Reply(text=text, finish_reason=reason, n_tokens=n, timing=timing(found["timings"], n))


def options(request: Request) -> dict[str, Any]:
    """What a /completion is asked beside its prompt: nothing kept from one answer to the next.

    >>> from PIL import Image
    >>> options(Request(Image.new("RGB", (1, 1)), "x", 4))["top_k"]
    1
    """
    chosen: dict[str, Any] = {"temperature": 0.0, "top_k": 1}
    if request.temperature > 0:
        chosen = {
            "temperature": request.temperature,
            "top_p": request.top_p,
            "seed": request.seed,
            "samplers": ["temperature", "top_p"],
        }
    fixed = {"n_predict": request.max_new_tokens, "cache_prompt": False, "return_tokens": True, "stream": False}
    return fixed | chosen


def timing(said: dict[str, Any], n_tokens: int) -> Timing:
    """The server's own clock: `prompt_ms` ends with the first token, `predicted_ms` are the tokens after it.

    Source: llama.cpp 0c1e57098, tools/server/server-common.h, `server_slot_stats`. The vision encoder is inside
    `prompt_ms`, so that neither its share nor that of the prefill is known.

    >>> timing({"prompt_ms": 200.0, "predicted_ms": 30.0, "predicted_n": 4}, 4)
    Timing(total_s=0.23, ttft_s=0.2, preprocess_s=None, vision_s=None, prefill_s=None, decode_s=0.03)
    """
    ttft_s, steps = said["prompt_ms"] / 1000, int(said["predicted_n"]) - 1
    # an answer that was cut at an end token of its own took only its share of the steps
    decode_s = said["predicted_ms"] / 1000 * (n_tokens - 1) / steps if steps > 0 else 0.0
    return Timing(total_s=ttft_s + decode_s, ttft_s=ttft_s, decode_s=decode_s)


def png(image: Image) -> bytes:
    """The picture without loss; little time is spent on making it small."""
    data = io.BytesIO()
    image.convert("RGB").save(data, "PNG", compress_level=1)
    return data.getvalue()
