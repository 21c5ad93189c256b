"""llama-server's command line over the server inside the xllamacpp wheel: the real HTTP end, without a compiler.

    python -m tests.bench.llama_server -m MODEL --mmproj FILE --host 127.0.0.1 --port 8080 -t 1 -c 1024 ...

Takes the options that mpa_edge.bench.phone gives and no other, ends with 1 where the port is taken or a file is no
model, and ends at TERM. Unlike the program it opens its port only when the model is loaded.
The wheel exists for x86-64 and aarch64.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import xllamacpp

FLASH = {
    "off": xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED,
    "auto": xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_AUTO,
    "on": xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_ENABLED,
}


def arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    for name in ("-m", "--mmproj", "--host", "--alias", "--cpu-mask"):
        parser.add_argument(name)
    for name in ("--port", "-t", "-c", "-np", "-b", "-ub", "--cache-ram", "--image-min-tokens", "--image-max-tokens"):
        parser.add_argument(name, type=int)
    parser.add_argument("--fit", choices=("on", "off"))
    parser.add_argument("-fa", choices=tuple(FLASH))
    parser.add_argument("--no-warmup", action="store_true")
    return parser.parse_args(words)


def params(asked: argparse.Namespace) -> xllamacpp.CommonParams:
    made = xllamacpp.CommonParams()
    made.model.path, made.mmproj.path = asked.m, asked.mmproj or ""
    made.hostnames, made.port, made.model_alias = [asked.host], asked.port, {asked.alias} if asked.alias else set()
    made.n_ctx, made.n_parallel, made.n_batch, made.n_ubatch = asked.c, asked.np, asked.b, asked.ub
    made.cache_ram_mib, made.fit_params, made.warmup = asked.cache_ram, asked.fit != "off", not asked.no_warmup
    made.flash_attn_type = FLASH[asked.fa]
    made.cpuparams.n_threads = made.cpuparams_batch.n_threads = asked.t
    if asked.image_max_tokens:
        made.image_min_tokens, made.image_max_tokens = asked.image_min_tokens, asked.image_max_tokens
    return made


def program(folder: Path) -> Path:
    """A file that starts it, as a `llama-server` that somebody has put on a device."""
    path = folder / "llama-server"
    root = Path(__file__).parents[2]
    path.write_text(f'#!/bin/sh\nPYTHONPATH="{root}" exec "{sys.executable}" -m tests.bench.llama_server "$@"\n')
    path.chmod(0o755)
    return path


if __name__ == "__main__":
    asked = arguments(sys.argv[1:])
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))
    try:
        server = xllamacpp.Server(params(asked))
    except RuntimeError as error:
        sys.exit(f"error: {error}")
    signal.sigwait((signal.SIGTERM, signal.SIGINT))
