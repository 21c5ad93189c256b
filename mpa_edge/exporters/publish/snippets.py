"""How to run an export: programs for its card, and for files beside it. A test runs every one of them."""

from __future__ import annotations

import html
import json
import shlex
import textwrap
from collections.abc import Iterator
from typing import NamedTuple

from mpa_edge.artifact import Artifact
from mpa_edge.vlm.llama_cpp.server import READ_BOTH_WAYS

IMAGE = "image.png"
TRANSFORMERS_JS = "https://cdn.jsdelivr.net/npm/@huggingface/transformers@4.3.1"
"""What a web page loads: the version that is tested."""
EXTRAS = {"onnx": "onnx", "gguf": "gguf", "hybrid": "onnx,gguf"}
# model types with positions of three numbers, and those that transformers.js has no class for
THREE_AXES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5")
OTHER_INPUTS = (*THREE_AXES, "gemma4")
"""Those whose graphs want more than a program of one screen gives them."""
NOT_IN_JAVASCRIPT = ("internvl",)
# their processor takes the image before the text
IMAGE_FIRST = ("llava", "lfm2_vl")


class Snippet(NamedTuple):
    """A program that reads image.png beside the files of an export."""

    title: str
    """What runs it."""
    install: str
    """What is to be installed before."""
    language: str
    """Of the code, as Markdown calls it."""
    code: str
    """The program."""

    @property
    def markdown(self) -> str:
        """A section of the card."""
        return f"### {self.title}\n\n{self.install}\n\n```{self.language}\n{self.code}```\n"


def snippets(artifact: Artifact, prompt: str, scheme: str) -> Iterator[str]:
    """Every way to run this export that is known to work, as sections of the card."""
    yield mpa_edge_snippet(artifact, prompt, scheme).markdown
    if artifact.format == "onnx" and artifact.model_type not in OTHER_INPUTS:
        yield onnxruntime_snippet(artifact, prompt).markdown
    if artifact.format == "onnx" and artifact.model_type not in NOT_IN_JAVASCRIPT and "qdq" not in str(artifact.files):
        yield javascript_snippet(artifact, prompt, scheme).markdown
    # llama-mtmd-cli forgets the prompt's tokens
    if artifact.format == "gguf" and artifact.repetition_penalty == 1.0 and artifact.model_type not in READ_BOTH_WAYS:
        yield llama_cpp_snippet(artifact, prompt).markdown


def mpa_edge_snippet(artifact: Artifact, prompt: str, scheme: str) -> Snippet:
    """Our own runtime: no torch, no transformers."""
    code = f"""
from PIL import Image

from mpa_edge.types import Request
from mpa_edge.vlm import load

model = load(".", name={json.dumps(scheme)})
image = Image.open("{IMAGE}").convert("RGB")
(reply,) = model.answer([Request(image, {json.dumps(prompt)}, max_new_tokens={artifact.max_new_tokens})])
print(reply.text)
"""
    return Snippet(
        "Python, mpa-edge", f"`pip install 'mpa-edge[{EXTRAS[artifact.format]}]'`", "python", code.lstrip("\n")
    )


def onnxruntime_snippet(artifact: Artifact, prompt: str) -> Snippet:
    """ONNX Runtime alone, with transformers' processor for the image."""
    words = " num2words" if artifact.model_type == "smolvlm" else ""
    penalty = '    scores = result["logits"][0, -1]\n'
    if artifact.repetition_penalty != 1.0:
        penalty += f"""    occurred, p = [*ids[0], *answer], {artifact.repetition_penalty}
    scores[occurred] = np.where(scores[occurred] < 0, scores[occurred] * p, scores[occurred] / p)
"""
    code = f"""
import numpy as np
import onnxruntime
from PIL import Image
from transformers import AutoProcessor

vision, embed, decoder = (
    onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for path in {json.dumps([artifact.files[part] for part in ("vision", "embed", "decoder")])}
)
processor = AutoProcessor.from_pretrained(".")
content = [{{"type": "image"}}, {{"type": "text", "text": {json.dumps(prompt)}}}]
text = processor.apply_chat_template([{{"role": "user", "content": content}}], add_generation_prompt=True)
inputs = processor(text=text, images=[Image.open("{IMAGE}").convert("RGB")], return_tensors="pt")
inputs = {{name: value.numpy() for name, value in inputs.items()}}
kinds = {{"tensor(bool)": bool, "tensor(float)": np.float32, "tensor(float16)": np.float16}}
pixels = {{i.name: inputs[i.name].astype(kinds[i.type]) for i in vision.get_inputs()}}
features = vision.run(None, pixels)[0]

ids, is_image = inputs["input_ids"], inputs["input_ids"] == {artifact.tokens.image_id}
vectors = embed.run(None, {{"input_ids": ids}})[0]
vectors[is_image] = features.reshape(-1, vectors.shape[-1])
past = [i for i in decoder.get_inputs() if i.name.startswith("past_key_values")]
cache = {{i.name: np.zeros((1, i.shape[1], 0, i.shape[3]), kinds[i.type]) for i in past}}
names = [output.name.replace("present", "past_key_values") for output in decoder.get_outputs()]
answer, n = [], 0
while len(answer) < {artifact.max_new_tokens} and not set(answer) & {{{", ".join(map(str, artifact.tokens.ends))}}}:
    new = np.arange(n, n + vectors.shape[1])[None]
    n += vectors.shape[1]
    feed = {{"inputs_embeds": vectors, "attention_mask": np.ones((1, n), np.int64), "position_ids": new, **cache}}
    feed |= {{i.name: np.array(1) for i in decoder.get_inputs() if i.name == "num_logits_to_keep"}}
    result = dict(zip(names, decoder.run(None, feed)))
    cache = {{i.name: result[i.name] for i in past}}
{penalty}    answer.append(int(scores.argmax()))
    vectors = embed.run(None, {{"input_ids": np.array([answer[-1:]])}})[0]
print(processor.tokenizer.decode(answer, skip_special_tokens=True).strip())
"""
    install = f"`pip install onnxruntime transformers torch torchvision pillow{words}`"
    return Snippet("Python, ONNX Runtime", install, "python", code.lstrip("\n"))


def javascript_snippet(artifact: Artifact, prompt: str, scheme: str) -> Snippet:
    """transformers.js, in node and browsers."""
    code = f"""
import {{ AutoModelForImageTextToText, AutoProcessor, RawImage, env }} from "@huggingface/transformers";

const id = {json.dumps(scheme)}; // this folder below localModelPath, or OWNER/NAME on the hub
env.localModelPath = "../";
env.allowRemoteModels = false;
const processor = await AutoProcessor.from_pretrained(id);
const model = await AutoModelForImageTextToText.from_pretrained(id);
const image = await RawImage.read("{IMAGE}");
{_asked_in_javascript(artifact, json.dumps(prompt))}console.log(answer);
"""
    return Snippet("JavaScript, transformers.js", "`npm install @huggingface/transformers`", "js", code.lstrip("\n"))


def _asked_in_javascript(artifact: Artifact, question: str) -> str:
    """From `image` and an expression for the question to `answer`."""
    order = "image, text" if artifact.model_type in IMAGE_FIRST else "text, [image]"
    inputs = f"const inputs = await processor({order});"
    if artifact.model_type == "gemma4":  # its processor would write line breaks around the image, and a second <bos>
        start, token, end = (artifact.image[f"{name}_token"] for name in ("boi", "image", "eoi"))
        inputs = f"""const {{ num_soft_tokens_per_image: [n], ...pixels }} = await processor.image_processor(image);
const whole = text.replace("{token}", "{start}" + "{token}".repeat(n) + "{end}");
const inputs = {{ ...processor.tokenizer(whole, {{ add_special_tokens: false }}), ...pixels }};"""
    return f"""const content = [{{ type: "image" }}, {{ type: "text", text: {question} }}];
const text = processor.apply_chat_template([{{ role: "user", content }}], {{ add_generation_prompt: true }});
{inputs}
const output = await model.generate({{ ...inputs, max_new_tokens: {artifact.max_new_tokens}, do_sample: false }});
const tokens = output.slice(null, [inputs.input_ids.dims.at(-1), null]);
const answer = processor.batch_decode(tokens, {{ skip_special_tokens: true }})[0].trim();
"""


def browser_page(artifact: Artifact, question: str) -> str:
    """A web page that asks the model beside it, with no build step: an image in, an answer out."""
    asked = _asked_in_javascript(artifact, f"form.question.value + {json.dumps(artifact.prompt_suffix)}")
    asked = textwrap.indent(asked.replace("</", "<\\/"), "  ")
    name, question = html.escape(artifact.name), html.escape(question)
    return f"""<!doctype html>
<!-- From inside this folder: python3 -m http.server 8000 --bind 127.0.0.1, then open http://127.0.0.1:8000 -->
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{name}</title>
<style>
body {{ font: 1rem/1.5 system-ui, sans-serif; max-width: 40rem; margin: 2rem auto; padding: 0 1rem }}
img {{ display: block; max-width: 100%; max-height: 50vh; margin: 1rem 0 }}
input, button {{ font: inherit; max-width: 100%; margin: 0.25rem 0 }}
output {{ white-space: pre-wrap; font-weight: bold }}
</style>
<script type="importmap">
{{ "imports": {{ "@huggingface/transformers": "{TRANSFORMERS_JS}" }} }}
</script>
<h1>{name}</h1>
<form>
<p><label>Image <input name="file" type="file" accept="image/*" required></label>
<p><label>Question <input name="question" size="40" value="{question}" required></label>
<button disabled>Ask</button>
</form>
<img alt="" hidden>
<output aria-live="polite">Loading the model</output>
<script type="module">
const [form, shown, said] = ["form", "img", "output"].map((name) => document.querySelector(name));
const tell = (what) => {{ said.textContent = what; }};
addEventListener("unhandledrejection", ({{ reason }}) => tell(reason));
const {{ AutoModelForImageTextToText, AutoProcessor, RawImage, env }} = await import("@huggingface/transformers");
env.allowLocalModels = true;
env.allowRemoteModels = false;
env.useBrowserCache = false; // another model may be at this address tomorrow
env.localModelPath = "./";
const processor = await AutoProcessor.from_pretrained(".");
const model = await AutoModelForImageTextToText.from_pretrained(".");
form.file.onchange = () => {{
  shown.src = URL.createObjectURL(form.file.files[0]);
  shown.hidden = false;
}};
form.onsubmit = async (event) => {{
  event.preventDefault();
  form.querySelector("button").disabled = true;
  tell("Thinking");
  const image = await RawImage.fromBlob(form.file.files[0]);
{asked}  tell(answer);
  form.querySelector("button").disabled = false;
}};
form.querySelector("button").disabled = false;
tell("");
</script>
</html>
"""


def llama_cpp_snippet(artifact: Artifact, prompt: str) -> Snippet:
    """llama.cpp's own program, which reads backslashes in a prompt as escapes."""
    question = prompt.replace("\\", r"\\").replace("\n", r"\n").replace("'", "'\\''")
    code = (
        f"\nllama-mtmd-cli -m {artifact.files['language']} --mmproj {artifact.files['mmproj']} \\\n"
        f"  --jinja --image {IMAGE} --temp 0 -c {artifact.context_tokens} -n {artifact.max_new_tokens}"
        f"{pixel_limits(artifact)} \\\n  -p '{question}'\n"
    )
    return Snippet("llama.cpp", "Any llama.cpp from this year:", "sh", code.lstrip("\n"))


def llama_server_snippet(artifact: Artifact) -> Snippet:
    """The start of llama.cpp's server; the script may be started from any folder, with more options after its name."""
    language, projector = (shlex.quote(artifact.files[name]) for name in ("language", "mmproj"))
    threads = f" -t {artifact.threads}" if artifact.threads else ""
    code = f"""#!/bin/sh
cd "$(dirname "$0")" || exit
exec llama-server -m {language} --mmproj {projector} --alias {shlex.quote(artifact.name)} \\
  --host 127.0.0.1 -c {artifact.context_tokens} -np 1{threads}{pixel_limits(artifact)} "$@"
"""
    return Snippet("llama-server", "Any llama.cpp from this year:", "sh", code)


def pixel_limits(artifact: Artifact) -> str:
    """Smallest and largest image of Qwen2-VL and LFM2-VL: GGUF files have no key for them."""
    if artifact.model_type == "lfm2_vl":
        low, high = artifact.image["min_image_tokens"], artifact.image["max_image_tokens"]
        return f" --image-min-tokens {low} --image-max-tokens {high}"
    size, merge = artifact.image.get("size"), artifact.image.get("merge_size")
    if artifact.model_type not in THREE_AXES or not merge or not isinstance(size, dict):
        return ""
    pixels = (int(artifact.image["patch_size"]) * int(merge)) ** 2
    low, high = (int(size.get(key, 0)) // pixels for key in ("shortest_edge", "longest_edge"))
    return f" --image-min-tokens {low} --image-max-tokens {high}" if high else ""
