"""llama-server's command line over the server inside the xllamacpp wheel: the real HTTP end, without a compiler.

    python -m tests.bench.llama_server -m MODEL --mmproj FILE --host 127.0.0.1 --port 8080 -t 1 -c 1024 ...

Takes the options that mpa_edge.bench.host.llama_server_run gives and no other, ends with 1 where the port
is taken or a file is no model, and ends at TERM. Unlike the program it opens its port only when the model is loaded.
The wheel exists for x86-64 and aarch64.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import xllamacpp

FLASH = {
    "off": xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED,
    "auto": xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_AUTO,
    "on": xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_ENABLED,
}


def arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    for name in ("-m", "--mmproj", "--host", "--alias", "--cpu-mask", "-ctk", "-ctv"):
        parser.add_argument(name)
    for name in ("--port", "-t", "-c", "-np", "-b", "-ub", "-ngl", "-lv", "--cache-ram"):
        parser.add_argument(name, type=int)
    for name in ("--image-min-tokens", "--image-max-tokens"):
        parser.add_argument(name, type=int)
    parser.add_argument("--device", choices=("none",))  # the wheel has no other
    parser.add_argument("--fit", choices=("on", "off"))
    parser.add_argument("-fa", choices=tuple(FLASH))
    for name in ("--no-warmup", "--no-mmproj-offload", "--list-devices", "--version"):
        parser.add_argument(name, action="store_true")
    return parser.parse_args(words)


def params(asked: argparse.Namespace) -> xllamacpp.CommonParams:
    made = xllamacpp.CommonParams()
    made.model.path, made.mmproj.path = asked.m, asked.mmproj or ""
    made.hostnames, made.port, made.model_alias = [asked.host], asked.port, {asked.alias or "x"}
    made.n_ctx, made.n_parallel, made.n_batch, made.n_ubatch = asked.c, asked.np, asked.b, asked.ub
    made.cache_ram_mib, made.fit_params, made.warmup = asked.cache_ram, asked.fit != "off", not asked.no_warmup
    made.flash_attn_type, made.verbosity = FLASH[asked.fa], asked.lv or 3
    made.n_gpu_layers, made.mmproj_use_gpu = asked.ngl or 0, not asked.no_mmproj_offload
    made.cpuparams.n_threads = made.cpuparams_batch.n_threads = asked.t
    if asked.image_max_tokens:
        made.image_min_tokens, made.image_max_tokens = asked.image_min_tokens, asked.image_max_tokens
    return made


def program(folder: Path, module: str = "tests.bench.llama_server") -> Path:
    """A file that starts it, as a `llama-server` that somebody has put on a device."""
    path = folder / "llama-server"
    root = Path(__file__).parents[2]
    path.write_text(f'#!/bin/sh\nPYTHONPATH="{root}" exec "{sys.executable}" -m {module} "$@"\n')
    path.chmod(0o755)
    return path


def devices() -> str:
    kind = xllamacpp.ggml_backend_dev_type.GGML_BACKEND_DEVICE_TYPE_CPU
    found = [
        f"  {one['name']}: {one['description']} (0 MiB, 0 MiB free)\n"
        for one in xllamacpp.get_device_info()
        if one["type"] != kind
    ]
    return "Available devices:\n" + ("".join(found) or "  (none)\n")


def until_told() -> None:
    signal.sigwait((signal.SIGTERM, signal.SIGINT))


def start(words: Sequence[str]) -> tuple[argparse.Namespace, Callable[[int], xllamacpp.Server]]:
    """What was asked, and how to start the server on a port."""
    asked = arguments(words)
    if asked.list_devices or asked.version:
        print(devices() if asked.list_devices else "version: xllamacpp", end="")
        sys.exit()
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))

    def serve(port: int) -> xllamacpp.Server:
        made = params(asked)
        made.port = port
        try:
            return xllamacpp.Server(made)
        except RuntimeError as error:
            sys.exit(f"error: {error}")

    return asked, serve


if __name__ == "__main__":
    asked, serve = start(sys.argv[1:])
    server = serve(asked.port)
    until_told()
