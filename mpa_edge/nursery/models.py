"""The built-in pair, its tokenizer and its processor: stock Idefics3, like SmolVLM, but tiny.

The shapes are chosen so that the student can be exported without changes: image splitting is on and the longest edge
(128 px) is above the tile (64 px), rows of the language model are multiples of 256, and the tokenizer's pre-tokenizer
is SmolLM's (single digits, then byte-level). An image of 128 x 64 becomes two tiles and one overview, 16 tokens each.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpa_edge.nursery.draw import HEIGHT_PX, WIDTH_PX

if TYPE_CHECKING:
    from transformers import Idefics3ForConditionalGeneration, PreTrainedTokenizerFast

TOKENIZER_FILE = Path(__file__).parent / "tokenizer.json"
VOCABULARY = 512
TILE_PX, PATCH_PX, SCALE = HEIGHT_PX, 8, 2
TOKENS_PER_TILE = (TILE_PX // PATCH_PX // SCALE) ** 2
END = "<end_of_utterance>"
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<unk>",
    "<fake_token_around_image>",
    "<image>",
    END,
    "<global-img>",
    *(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)),
)
# The wording of SmolVLM's template: https://huggingface.co/HuggingFaceTB/SmolVLM-256M-Instruct (chat_template.json)
CHAT_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}"
    "{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


@dataclass(frozen=True)
class Shape:
    """Sizes of the vision tower and of the language model; every attention head has 64 dimensions."""

    vision_width: int
    vision_mlp: int
    vision_layers: int
    text_width: int
    text_mlp: int
    text_layers: int


SHAPES = {
    "teacher": Shape(256, 512, 4, 256, 512, 5),
    "student": Shape(128, 256, 4, 256, 512, 3),
}


def load_tokenizer() -> PreTrainedTokenizerFast:
    """The frozen tokenizer of both models (512 entries)."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_file=str(TOKENIZER_FILE),
        bos_token="<|im_start|>",
        eos_token=END,
        pad_token="<|im_end|>",
        unk_token="<unk>",
        padding_side="left",
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )


def build_processor() -> Any:
    """Tokenizer, image processor and chat template as one `Idefics3Processor`."""
    from transformers import Idefics3Processor
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    image_processor = Idefics3ImageProcessorPil(
        size={"longest_edge": WIDTH_PX},
        max_image_size={"longest_edge": TILE_PX},
        do_image_splitting=True,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    tokenizer = load_tokenizer()
    return Idefics3Processor(image_processor, tokenizer, image_seq_len=TOKENS_PER_TILE, chat_template=CHAT_TEMPLATE)


def build_model(name: str, seed: int = 0) -> Idefics3ForConditionalGeneration:
    """A randomly initialised model of SHAPES[name], fp32."""
    import torch
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration

    shape, tokenizer = SHAPES[name], load_tokenizer()
    ids = {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    text = {
        "model_type": "llama",
        "vocab_size": VOCABULARY,
        "hidden_size": shape.text_width,
        "intermediate_size": shape.text_mlp,
        "num_hidden_layers": shape.text_layers,
        "num_attention_heads": shape.text_width // 64,
        "num_key_value_heads": shape.text_width // 64,
        "head_dim": 64,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        **ids,
    }
    vision = {
        "image_size": TILE_PX,
        "patch_size": PATCH_PX,
        "num_channels": 3,
        "hidden_size": shape.vision_width,
        "intermediate_size": shape.vision_mlp,
        "num_hidden_layers": shape.vision_layers,
        "num_attention_heads": shape.vision_width // 64,
    }
    torch.manual_seed(seed)
    model = Idefics3ForConditionalGeneration(
        Idefics3Config(
            vision_config=vision,
            text_config=text,
            scale_factor=SCALE,
            tie_word_embeddings=True,
            image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    for key, value in ids.items():
        setattr(model.generation_config, key, value)
    return model
