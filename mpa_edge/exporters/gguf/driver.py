"""Runs llama.cpp's converter in this process, which must be one of its own: it is a program, and changes what it likes.

Four things are changed in it. Where it does not know a tokenizer's fingerprint, it takes the pre-tokenizer that was
derived from the tokenizer's rules. Tensors get the names that it knows. It says which activation Gemma 4's tower has,
and whether Phi-3's texts begin with a blank.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import runpy
import sys
from pathlib import Path
from typing import Any

from mpa_edge.errors import MpaError


def run_converter(
    converter: Path,
    pre_tokenizer: str,
    names: dict[str, str],
    arguments: list[str],
    program: str = "convert_hf_to_gguf.py",
) -> None:
    """Run a converter of llama.cpp without any access to the hub.

    Args:
        converter: Folder of llama.cpp's converter.
        pre_tokenizer: For a tokenizer whose fingerprint it does not know; "" leaves that an error.
        names: Tensor in the weight files -> the name that the converter knows; others are left out.
        arguments: Its command line.
        program: Its file.

    MpaError with its last line where it fails.
    """
    import huggingface_hub.constants

    huggingface_hub.constants.HF_HUB_OFFLINE = True
    sys.path[:0] = [str(converter), str(converter / "gguf-py")]
    script, said = str(converter / program), io.StringIO()
    sys.argv, sys.dont_write_bytecode = [script, *arguments], True
    logging.getLogger().handlers.clear()  # its messages go where it sends them
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            use_pre_tokenizer(pre_tokenizer)
            name_activation()
            name_blank()
            rename_tensors(names)
            runpy.run_path(script, run_name="__main__")
    except (OSError, MemoryError):
        raise
    except SystemExit as end:
        if end.code:
            raise failed(arguments, last_message(said.getvalue()) or f"exit code {end.code}") from end
    except Exception as error:
        raise failed(arguments, f"{type(error).__name__}: {error}") from error


def failed(arguments: list[str], reason: str) -> MpaError:
    """The converter's own reason in one line, 200 characters at most."""
    component, short = "mmproj" if "--mmproj" in arguments else "language", " ".join(reason.split())[:200]
    if "--base" in arguments:
        return MpaError(f"llama.cpp's converter failed on the adapter ({short}): use --as gguf-f16, or report it")
    return MpaError(f"llama.cpp's converter failed on the {component} ({short}): use an onnx scheme, or report it")


def last_message(said: str) -> str:
    """The last meaningful line that the converter printed.

    >>> last_message("INFO: loading\\nERROR:hf-to-gguf:no such model\\n\\n100%|####| 3/3\\n")
    'ERROR:hf-to-gguf:no such model'
    """
    noise = ("INFO:", "DEBUG:", "WARNING:")
    lines = [line.strip() for line in said.splitlines()]
    return next((line for line in reversed(lines) if line and "%|" not in line and not line.startswith(noise)), "")


def use_pre_tokenizer(name: str) -> None:
    """Take `name` for a tokenizer whose fingerprint the converter does not know; "" leaves that an error."""
    from conversion.base import TextModel  # type: ignore[import-not-found]

    by_fingerprint = TextModel.get_vocab_base_pre

    def get_vocab_base_pre(self: Any, tokenizer: Any) -> str:
        try:
            return str(by_fingerprint(self, tokenizer))
        except NotImplementedError:
            if not name:
                raise
            return name

    TextModel.get_vocab_base_pre = get_vocab_base_pre


def name_activation() -> None:
    """Have Gemma 4's vision encoder computed with gelu: llama.cpp takes quick_gelu where the file names none."""
    from conversion.gemma import Gemma4VisionAudioModel  # type: ignore[import-not-found]

    write = Gemma4VisionAudioModel.set_gguf_parameters

    def set_gguf_parameters(self: Any) -> None:
        write(self)
        self.gguf_writer.add_vision_use_gelu(True)

    Gemma4VisionAudioModel.set_gguf_parameters = set_gguf_parameters


def name_blank() -> None:
    """Have Phi-3's texts begin with a blank only where tokenizer_config.json says so, as for Llama."""
    from conversion.phi import Phi3MiniModel  # type: ignore[import-not-found]

    write = Phi3MiniModel.set_vocab

    def set_vocab(self: Any) -> None:
        write(self)
        words = json.loads((self.dir_model / "tokenizer_config.json").read_text(encoding="utf-8"))
        self.gguf_writer.add_add_space_prefix(words.get("add_prefix_space", True))

    Phi3MiniModel.set_vocab = set_vocab


def rename_tensors(names: dict[str, str]) -> None:
    """Give the tensors of every weight file the names that the converter knows."""
    from gguf.utility import SafetensorsLocal

    read = SafetensorsLocal.__init__

    def read_renamed(self: Any, filename: Path) -> None:
        read(self, filename)
        self.tensors = {names[key]: tensor for key, tensor in self.tensors.items() if key in names}

    SafetensorsLocal.__init__ = read_renamed
