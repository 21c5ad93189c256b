"""A program of its own, started by test_independent_client.py: the llama.cpp server of the xllamacpp wheel.

    python independent_client.py JOB.json

The job names a language model, an mmproj, and what to ask; one JSON document of replies goes to stdout.
"""

from __future__ import annotations

import base64
import json
import sys
import urllib.request
from pathlib import Path
from typing import Any

import xllamacpp

MARKER = "<__media__>"


def serve(job: dict[str, Any]) -> xllamacpp.Server:
    params = xllamacpp.CommonParams()
    params.model.path, params.mmproj.path = job["language"], job["mmproj"]
    params.n_ctx, params.n_parallel, params.warmup, params.fit_params = 1024, 1, False, False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    if job["any_size"]:
        params.image_min_tokens, params.image_max_tokens = 1, 65536
    return xllamacpp.Server(params)


def call(server: xllamacpp.Server, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(server.listening_address + path, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as reply:
        found: dict[str, Any] = json.load(reply)
    return found


def ask(server: xllamacpp.Server, one: dict[str, Any]) -> dict[str, Any]:
    # the server has a marker of its own at each start, so that no text can be taken for an image
    marker = call(server, "/props")["media_marker"]
    image = base64.b64encode(Path(one["image"]).read_bytes()).decode()
    prompt = {"prompt_string": one["prompt"].replace(MARKER, marker, 1), "multimodal_data": [image]}
    options = {"temperature": 0, "top_k": 1, "return_tokens": True, "cache_prompt": False, "n_probs": 1}
    reply = call(server, "/completion", {"prompt": prompt, "n_predict": one["n"], **options})
    logprobs = [step["logprob"] for step in reply["completion_probabilities"]]
    return {"tokens": reply["tokens"], "n_prompt": reply["tokens_evaluated"], "logprobs": logprobs}


if __name__ == "__main__":
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    server = serve(job)
    print(json.dumps([ask(server, one) for one in job["asked"]]))
