"""A sentencepiece vocabulary (tokenizer.model) as a tokenizer that transformers loads without the authors' class.

Pieces, scores and normalization are those of the file; special tokens are those of tokenizer_config.json, which may
take the place of unused pieces. Between special tokens, text is split as sentencepiece splits it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpa_edge.errors import MpaError, missing_package
from mpa_edge.runs.files import read_json
from mpa_edge.vlm.transformers.files import AGAIN, read_object

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer

MODEL, CONFIG = "tokenizer.model", "tokenizer_config.json"
BPE, NORMAL, CONTROL, USER_DEFINED = 2, 1, 3, 4
"""Of sentencepiece_model.proto: a kind of model, and kinds of pieces."""
BLANK = "▁"


def sentencepiece_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a checkpoint folder with tokenizer.model and tokenizer_config.json.

    A vocabulary may put a blank before a text. With "legacy" there is one behind each special token; without, only
    before the whole, see `opening`. MpaError where a file is missing or is no such vocabulary.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers.tokenization_utils_base import generate_merges

    proto, config = _read(folder), read_object(folder / CONFIG)
    added = added_tokens(folder, config)
    words = [added[i].content if i in added else piece.piece for i, piece in enumerate(proto.pieces)]
    vocabulary = {word: i for i, word in enumerate(words)}
    scores = {
        piece.piece: piece.score
        for i, piece in enumerate(proto.pieces)
        if piece.type == NORMAL and i not in added and len(piece.piece) > 1
    }
    made = Tokenizer(
        models.BPE(
            vocabulary,
            generate_merges(vocabulary, scores),
            unk_token=proto.trainer_spec.unk_piece,
            fuse_unk=True,
            byte_fallback=proto.trainer_spec.byte_fallback,
        )
    )
    blank = proto.normalizer_spec.add_dummy_prefix and config.get("legacy", True) is not False
    made.pre_tokenizer = pre_tokenizers.Metaspace(BLANK, "always" if blank else "never", split=False)
    steps = [decoders.Replace(BLANK, " "), decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence([*steps, decoders.Strip(" ", left=1)] if blank else steps)
    kept = {i: piece for i, piece in enumerate(proto.pieces) if piece.type in (CONTROL, USER_DEFINED)}
    _add(made, {i: _added(piece.piece, special=piece.type == CONTROL) for i, piece in kept.items()} | added)
    bos = token_of(config, "bos_token") or "<s>"
    if config.get("add_bos_token", True):
        made.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, made.token_to_id(bos))]
        )
    return made


def opening(folder: Path, token: str) -> str:
    """What stands before a prompt that begins with a special token.

    Without "legacy", LlamaTokenizer writes a blank before each text, and drops it again only before a token that
    tokenizer_config.json names as special; being an added token is not enough.
    """
    config = read_object(folder / CONFIG)
    if config.get("legacy", True) is not False or not _read(folder).normalizer_spec.add_dummy_prefix:
        return ""
    named = [config.get(f"{key}_token") for key in ("bos", "eos", "unk", "pad")]
    named += config.get("additional_special_tokens") or []
    return "" if token in [one.get("content") if isinstance(one, dict) else one for one in named] else " "


def added_tokens(folder: Path, config: dict[str, Any]) -> dict[int, AddedToken]:
    """Id -> added token, of tokenizer_config.json and, in older checkpoints, of added_tokens.json."""
    older = {
        int(i): _added(token, special=True) for token, i in (read_json(folder / "added_tokens.json") or {}).items()
    }
    newer = {
        int(i): _added(str(token["content"]), special=bool(token.get("special")))
        for i, token in (config.get("added_tokens_decoder") or {}).items()
    }
    return dict(sorted((older | newer).items()))


def stripping_tokens(config: dict[str, Any]) -> set[str]:
    """Added tokens of tokenizer_config.json behind which the model's own tokenizer skips blanks. Ours never does."""
    return {token["content"] for token in (config.get("added_tokens_decoder") or {}).values() if token.get("rstrip")}


def token_of(config: dict[str, Any], key: str) -> str | None:
    """A token that tokenizer_config.json names, alone or with its properties."""
    found = config.get(key)
    return found.get("content") if isinstance(found, dict) else found


def _added(token: str, *, special: bool) -> AddedToken:
    from tokenizers import AddedToken

    return AddedToken(token, normalized=False, special=special)


def _add(made: Tokenizer, tokens: dict[int, AddedToken]) -> None:
    """Add tokens, each of which must get its own number."""
    for i, token in sorted(tokens.items()):
        made.add_special_tokens([token]) if token.special else made.add_tokens([token])
        if made.token_to_id(token.content) != i:
            raise MpaError(f"{CONFIG} gives '{token.content}' the number {i}, which is not free: {AGAIN}")


def _read(folder: Path) -> Any:
    """The vocabulary as sentencepiece describes it (sentencepiece_model.proto)."""
    try:
        from google.protobuf.message import DecodeError
        from sentencepiece import sentencepiece_model_pb2
    except ModuleNotFoundError as error:
        raise missing_package("sentencepiece", "align") from error
    proto, path = sentencepiece_model_pb2.ModelProto(), folder / MODEL
    if not path.is_file():
        raise MpaError(f"'{path}' is missing: {AGAIN}")
    try:
        proto.ParseFromString(path.read_bytes())
    except DecodeError as error:
        raise MpaError(f"'{path}' is no sentencepiece vocabulary: {AGAIN}") from error
    if proto.trainer_spec.model_type != BPE or proto.normalizer_spec.precompiled_charsmap:
        raise MpaError(
            f"'{path}' is a sentencepiece vocabulary without pairs, or changes characters: use another model"
        )
    return proto
