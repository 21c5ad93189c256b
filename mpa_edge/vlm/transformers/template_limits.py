"""Chat templates are programs of a checkpoint's author: each is rendered once within limits before it is used."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import subprocess
import sys

from mpa_edge.errors import MpaError

CPU_S = 5
MEMORY_BYTES = 2_000_000_000
MAX_CHARACTERS = 100_000
KNOWN = ("830005085ddd94cec605b6e21b885b28ffad6e3f82ee6a212c523533e8f04f01",)
"""SHA-256 of templates that need no trial: those of the built-in models."""
TRIED = "MPA_EDGE_TRIED_TEMPLATES"
"""Environment variable of this process and those that it starts: SHA-256 of templates that passed, with blanks."""
TEXT = [{"type": "text", "text": "What is shown?"}]
QUESTION = {"role": "user", "content": [{"type": "image"}, *TEXT]}
TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
CHATS = ([QUESTION], [QUESTION, {"role": "assistant", "content": TEXT}])


def require_bounded(template: str, label: str) -> None:
    """Raise MpaError for a chat template that takes too long, too much memory, or multiplies its messages.

    It is rendered in a process of its own, for the conversations that are used here: a question about an image, and the
    same with its answer. Other faults of a template are left to its first use. `label` begins the message.
    """
    digest = hashlib.sha256(template.encode(errors="surrogatepass")).hexdigest()
    if digest in KNOWN or digest in os.environ.get(TRIED, ""):
        return
    command = [sys.executable, "-m", __name__]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    made = subprocess.run(command, input=json.dumps(template), capture_output=True, text=True, env=one_thread)
    if made.returncode or int(made.stdout) > MAX_CHARACTERS:
        raise MpaError(
            f"the chat template of {label} takes more than {CPU_S} s, {MEMORY_BYTES // 10**9} GB or {MAX_CHARACTERS} "
            "characters for one question: put the template of the original model into the folder"
        )
    os.environ[TRIED] = f"{os.environ.get(TRIED, '')} {digest}".strip()


def _characters(template: str) -> int:
    """Characters of the longest conversation; 0 where the template raises an error of its own."""
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        chats = [
            render_jinja_template([chat], chat_template=template, add_generation_prompt=True, **TOKENS)
            for chat in CHATS
        ]
    except MemoryError:
        raise
    except Exception:  # a template may raise anything, also for tokens that only its tokenizer knows
        return 0
    return max(len(rendered) for (rendered, *_), _ in chats)


def _main() -> None:
    template = json.load(sys.stdin)
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.stdout.write(str(_characters(template)))


if __name__ == "__main__":
    _main()
