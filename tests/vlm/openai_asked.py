"""One way of asking the fault server, for all tests of the client."""

from __future__ import annotations

from typing import Any

from PIL import Image

from mpa_edge.config.recipe import TeacherServerConfig
from mpa_edge.types import Request
from mpa_edge.vlm.openai.client import OpenAIVLM
from tests.vlm import fault_server as faults
from tests.vlm.fault_server import FaultServer, serving

KEY = "sk-very-secret-0123456789"
# a busy machine may hold a reply back for a second: only what hangs on purpose gets a shorter time-out
SOON = TeacherServerConfig(timeout_s=5.0, deadline_s=8.0, wait_s=0.6, probe_s=0.05, concurrency=4, retries=3)


def request(n: int = 0, **changed: Any) -> Request:
    options = {"prompt": f"question {n}", "max_new_tokens": 16} | changed
    return Request(Image.new("RGB", (8, 8), (n % 256, 0, 0)), **options)


def vlm_of(server: FaultServer, **changed: Any) -> OpenAIVLM:
    return OpenAIVLM(server.url, "m", name="teacher", server=SOON.model_copy(update=changed))


def one_reply(*behaviours: faults.Behaviour, **changed: Any):
    """(what came back, the server) of one request."""
    with serving(*behaviours) as server:
        vlm = vlm_of(server, **changed)
        (reply,) = vlm.answer([request()])
        vlm.close()
        return reply, server
