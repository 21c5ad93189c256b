"""`--client`: each program runs, and is a file of the export as every other."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from mpa_edge.artifact import read_artifact
from mpa_edge.config.library import load_scheme
from mpa_edge.exporters.pipeline import Order, inputs_of, run_export
from mpa_edge.exporters.publish.card import card
from mpa_edge.exporters.publish.clients import FILES, refusal, write_clients
from mpa_edge.exporters.publish.manifest import finished, is_exported, outputs_of
from mpa_edge.exporters.publish.snippets import TRANSFORMERS_JS
from mpa_edge.exporters.source import open_source
from mpa_edge.nursery.render import render
from mpa_edge.runs.files import write_json
from mpa_edge.runs.manifest import MANIFEST
from tests.bench.llama_server import program
from tests.bench.report.browser import Browser, Page
from tests.exporters import hand_made, ollama
from tests.exporters.javascript import client
from tests.families import zoo
from tests.vlm.exported import STUDENT, checkpoint, onnx_folder
from tests.vlm.llama_exported import gguf_folder

ROOT, QUESTION = Path(__file__).parents[3], "How many bars are there?"
WAIT_S = 120
KINDS = {"gguf": "gguf-f16", "onnx": "onnx-fp32"}


def placed(tmp_path: Path, made: Path, clients: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a real export of the built-in student, with the clients' files and an image."""
    monkeypatch.setattr("mpa_edge.exporters.publish.card.QUESTION", QUESTION)
    artifact = read_artifact(made)
    folder = Path(shutil.copytree(made, tmp_path / artifact.scheme))
    write_json(folder / MANIFEST, hand_made.manifest_of(load_scheme(KINDS[artifact.format]), folder))
    write_clients(open_source(str(checkpoint(STUDENT)), out=str(tmp_path / "exports")), folder, clients)
    render(tmp_path / "images", 1, 7, "target")
    shutil.copy(next((tmp_path / "images").rglob("*.png")), folder / "image.png")
    return folder


def said(folder: Path, *command: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, timeout=240)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().strip()


def test_node_and_python_run_what_the_card_shows(tmp_path: Path) -> None:
    """And the blocks of the card run, in test_card."""
    source, scheme = open_source("nursery:student", out=str(tmp_path)), load_scheme("onnx-int8")
    folder = hand_made.export(tmp_path / scheme.name, scheme)
    write_clients(source, folder, ("python", "transformers.js"))
    text = card(source, read_artifact(folder), finished(folder), folder)
    assert f"```python\n{(folder / 'run.py').read_text()}```" in text
    assert f"```js\n{(folder / 'run.mjs').read_text()}```" in text


@pytest.mark.peer
def test_the_server_starts_from_any_folder_and_says_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through its chat completions, with the template that is in the file, and as Ollama asks it with the Modelfile."""
    folder = placed(tmp_path, gguf_folder(STUDENT), ("llama-server", "ollama", "python"), monkeypatch)
    (tmp_path / "bin").mkdir()
    program(tmp_path / "bin")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # the wheel has no defaults of its own for these
    more = f"--port {port} -b 2048 -ub 512 -fa off -t 1 --cache-ram 0".split()
    environment = os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    server = subprocess.Popen(["sh", str(folder / "llama-server.sh"), *more], cwd=tmp_path, env=environment)
    try:
        url = "data:image/png;base64," + base64.b64encode((folder / "image.png").read_bytes()).decode()
        parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": QUESTION}]
        asked = {"messages": [{"role": "user", "content": parts}], "temperature": 0, "max_tokens": 16}
        reply = ask(server, f"http://127.0.0.1:{port}/v1/chat/completions", asked)
        answers = [reply["choices"][0]["message"]["content"]]
        marker = ask(server, f"http://127.0.0.1:{port}/props")["media_marker"]
        asked = by_ollama((folder / "Modelfile").read_text(), url.partition(",")[2], marker)
        answers.append(ask(server, f"http://127.0.0.1:{port}/completion", asked)["content"])
    finally:
        server.terminate()
        server.wait(WAIT_S)
    expected = said(folder, sys.executable, "run.py")
    assert [answer.strip() for answer in answers] == [expected] * 2
    assert expected


def by_ollama(modelfile: str, image: str, marker: str) -> dict[str, Any]:
    """What it sends to the server of llama.cpp (llm/llama_server.go, commit fb3076099)."""
    found = ollama.commands(modelfile)
    message = {"Role": "user", "Content": f"[img-0]{QUESTION}", "Images": [image]}
    [prompt] = ollama.filled([{"Template": dict(found)["template"], "Messages": [message]}])
    options = {"stop": [value for name, value in found if name == "stop"], "n_predict": 16, "cache_prompt": True}
    whole = {"prompt_string": prompt.replace("[img-0]", marker, 1), "multimodal_data": [image]}
    return {"prompt": whole, "temperature": float(dict(found)["temperature"]), "top_k": 40, "top_p": 0.9, **options}


def ask(server: subprocess.Popen[bytes], url: str, asked: dict[str, Any] | None = None) -> dict[str, Any]:
    """The reply, as soon as the server is up."""
    body = None if asked is None else json.dumps(asked).encode()
    deadline = time.monotonic() + WAIT_S
    while True:
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=WAIT_S) as reply:
                return json.load(reply)
        except (urllib.error.URLError, ConnectionError):
            assert server.poll() is None, "the server ended"
            assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_rerun_adds_a_client_and_exports_nothing_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mpa_edge.exporters.pipeline.build", None)  # would be called by an export
    source, scheme = open_source("nursery:student", out=str(tmp_path)), load_scheme("gguf-q8_0")
    folder = tmp_path / scheme.name
    hand_made.export(folder, scheme)
    manifest = hand_made.manifest_of(scheme, folder)
    inputs = inputs_of(Order(source, (scheme,)), scheme)
    write_json(folder / MANIFEST, manifest.model_copy(update={"inputs": inputs}))
    for clients in (("python",), ("llama-server",), ()):
        assert run_export(Order(source, (scheme,), clients=clients)) == [folder]
        assert is_exported(folder, inputs)
        assert finished(folder).outputs == outputs_of(folder)
    assert {*FILES["python"], *FILES["llama-server"]} < set(finished(folder).outputs)


@pytest.mark.peer
def test_the_page_answers_in_a_browser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is, from a plain web server; what it loads from a CDN comes from the installed packages."""
    folder = placed(tmp_path, onnx_folder(STUDENT), ("transformers.js", "python"), monkeypatch)
    asked = folder / "index.html"
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    browser = Browser(tmp_path / "profile")
    try:
        with browser.open("about:blank") as page:
            page.send("Fetch.enable", patterns=[{"urlPattern": f"{CDN}*"}])
            page.send("Page.navigate", url=f"http://127.0.0.1:{server.server_port}/")
            until(page, "document.querySelector('button')?.disabled === false")
            document = page.send("DOM.getDocument")["root"]["nodeId"]
            field = page.send("DOM.querySelector", nodeId=document, selector="[type=file]")["nodeId"]
            page.send("DOM.setFileInputFiles", nodeId=field, files=[str(folder / "image.png")])
            page.evaluate("document.querySelector('button').click()")
            until(page, "document.querySelector('button').disabled")
            until(page, "!document.querySelector('button').disabled")
            answer = page.evaluate("document.querySelector('output').textContent")
            assert page.evaluate("document.querySelector('[name=question]').value") == QUESTION
            outside = [url for url in page.requests() if "127.0.0.1" not in url and not url.startswith("blob:")]
            page.screenshot(tmp_path / "page.png")
    finally:
        browser.close()
        server.shutdown()
        server.server_close()
    assert answer == said(folder, sys.executable, "run.py") != ""
    assert outside
    assert all(url.startswith(CDN) for url in outside), outside
    assert f'"{TRANSFORMERS_JS}"' in asked.read_text()


CDN = "https://cdn.jsdelivr.net/npm/"


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


def until(page: Page, expression: str) -> None:
    """Wait for an expression to be true, and give the page what it wants from the CDN."""
    deadline, given = time.monotonic() + WAIT_S, set[str]()
    while not page.evaluate(expression):
        assert time.monotonic() < deadline, page.evaluate("document.body?.innerText")
        for event in list(page.events):
            if event["method"] == "Fetch.requestPaused" and (key := event["params"]["requestId"]) not in given:
                given.add(key)
                from_cdn(page, key, event["params"]["request"]["url"])
                page.events.remove(event)
        time.sleep(0.05)


def from_cdn(page: Page, request: str, url: str) -> None:
    """jsDelivr: PACKAGE@VERSION/FILE, or the file that the package names for it."""
    scope, name, version, file = re.fullmatch(r"(@[^/]+/)?([^@/]+)@([^/]+)/?(.*)", url.removeprefix(CDN)).groups()
    package = client() / "node_modules" / (scope or "") / name
    described = json.loads((package / "package.json").read_text())
    assert described["version"] == version
    path = package / (file or described["jsdelivr"])
    kind = "application/wasm" if path.suffix == ".wasm" else "text/javascript"
    headers = {"Content-Type": kind, "Access-Control-Allow-Origin": "*"}
    page.send(
        "Fetch.fulfillRequest",
        requestId=request,
        responseCode=200,
        responseHeaders=[{"name": name, "value": value} for name, value in headers.items()],
        body=base64.b64encode(path.read_bytes()).decode(),
    )


def test_ollama_is_refused_what_it_would_answer_in_another_way(tmp_path: Path) -> None:
    def why(which: Path, scheme: str = "gguf-q8_0") -> str | None:
        return refusal("ollama", load_scheme(scheme), open_source(str(which), out=str(tmp_path)))

    assert why(checkpoint(STUDENT)) is None
    assert why(checkpoint(STUDENT), "hybrid-int8-q8_0") == (
        "ollama does not read hybrid-int8-q8_0: name another scheme, such as --as gguf-q8_0"
    )
    assert "reads an image in both directions" in str(why(zoo.checkpoint("gemma4")))
    folder = Path(shutil.copytree(checkpoint(STUDENT), tmp_path / "model"))
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text().replace("capitalize", "capitalize ~ loop.index"))
    assert "chat template cannot be written for Ollama" in str(why(folder))
