"""Tokenizers and chat templates of the zoo: bytes and a few words, split the way llama.cpp can, too."""

from __future__ import annotations

from typing import Any

SMOL_SPECIALS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<unk>",
    "<fake_token_around_image>",
    "<image>",
    "<end_of_utterance>",
    "<global-img>",
    *(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)),
)
QWEN_SPECIALS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
LLAVA_SPECIALS = ("<unk>", "<s>", "</s>", "<pad>", "<image>")
# the first four with the ids that all of Gemma have
GEMMA_SPECIALS = (
    "<pad>",
    "<eos>",
    "<bos>",
    "<unk>",
    "<|turn>",
    "<turn|>",
    "<|channel>",
    "<channel|>",
    "<|image>",
    "<|image|>",
    "<image|>",
    "<|audio>",
    "<|audio|>",
    "<audio|>",
    "<|video|>",
)
INTERNVL_SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>", "<video>")
LFM2_SPECIALS = (
    "<|pad|>",
    "<|startoftext|>",
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<image>",
    "<|image_start|>",
    "<|image_end|>",
    "<|img_thumbnail|>",
    *(f"<|img_row_{row}_col_{column}|>" for row in range(1, 5) for column in range(1, 5)),
)

# as published
SMOL_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}"
    "{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
QWEN_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for line in message['content'] %}"
    "{% if line['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ line['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAVA_TEMPLATE = (
    "<s>{% for message in messages %}{{ message['role'] | upper }}: {% for line in message['content'] %}"
    "{% if line['type'] == 'image' %}{{ '<image>\n' }}{% else %}{{ line['text'] }}{% endif %}{% endfor %}"
    "{% if message['role'] == 'assistant' %}</s>{% else %}{{ ' ' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
INTERNVL_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for line in message['content'] %}"
    "{% if line['type'] == 'image' %}{{ '<IMG_CONTEXT>\n' }}{% else %}{{ line['text'] }}{% endif %}{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

LFM2_TEMPLATE = (
    "{{ '<|startoftext|>' }}{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for line in message['content'] %}{% if line['type'] == 'image' %}{{ '<image>' }}{% else %}{{ line['text'] }}"
    "{% endif %}{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# as published, without tools and thinking
GEMMA_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\n' }}"
    "{% for line in message['content'] %}{% if line['type'] == 'image' %}{{ '<|image|>' }}"
    "{% else %}{{ line['text'] | trim }}{% endif %}{% endfor %}{{ '<turn|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|turn>model\n' }}{% endif %}"
)

# pattern of the pre-tokenizer that llama.cpp calls qwen2
QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# that of Qwen3.5, which llama.cpp calls qwen35: accents belong to their letters
QWEN35_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLITS = {
    "qwen2": QWEN_SPLIT,
    "qwen35": QWEN35_SPLIT,
    "llama-bpe": QWEN_SPLIT.replace(r"|\p{N}|", r"|\p{N}{1,3}|"),
}
N_MERGES = 200
# of SmolVLM: tokens before the words, words with those, all
N_EARLY, N_WORDS, N_TOKENS = 4, 49152, 49280
CORPUS = """What is the value of the largest bar in this chart? Answer the question with a single word or phrase.
Which colour is the line? How many bars are there in the picture? Read the word on the sign.
What does the title say? The answer is a number. Is the red bar higher than the blue one? yes no
User: question about the image Assistant: answer user assistant ASSISTANT: USER: Question: Answer:
In which year was the percentage lowest? What is the difference between the two values?

The quick brown fox jumps over the lazy dog. green yellow orange purple black white left right top bottom
"""


def tokenizer(
    kind: str,
    specials: tuple[str, ...],
    *,
    eos: str,
    pad: str,
    bos: str | None = None,
    full_size: bool = False,
    **extra: Any,
) -> Any:
    """A byte-level BPE tokenizer, the same at every call; `kind` is `smollm` or one of `SPLITS`.

    `full_size` gives it SmolVLM's 49,280 tokens, those of images behind all words.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    if kind == "smollm":
        split = pre_tokenizers.Digits(individual_digits=True)
    else:
        split = pre_tokenizers.Split(Regex(SPLITS[kind]), "isolated")
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=kind == "smollm")
    made.pre_tokenizer = pre_tokenizers.Sequence([split, as_bytes])
    made.decoder = decoders.ByteLevel()
    early, late = (specials[:N_EARLY], specials[N_EARLY:]) if full_size else (specials, ())
    trainer = trainers.BpeTrainer(
        vocab_size=N_WORDS if full_size else len(specials) + 256 + N_MERGES,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in early],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    made.train_from_iterator([CORPUS, "\n\n", "a\n\n\nb"] * 3 + (invented_words() if full_size else []), trainer)
    if full_size:
        reserved = [f"<|reserved_special_token_{i}|>" for i in range(N_TOKENS - N_WORDS - len(late))]
        made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in (*late, *reserved)])
    ends = {"eos_token": eos, "pad_token": pad, **({"bos_token": bos} if bos else {})}
    return PreTrainedTokenizerFast(
        tokenizer_object=made, clean_up_tokenization_spaces=False, padding_side="left", **ends, **extra
    )


def gemma_tokenizer() -> Any:
    """A tokenizer of Gemma's kind: pieces with their blank before them, bytes for what is in no piece."""
    import json

    from tokenizers import (
        AddedToken,
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
        trainers,
    )
    from transformers import PreTrainedTokenizerFast

    blanks = normalizers.Replace(" ", "▁")
    trained = Tokenizer(models.BPE())
    trained.normalizer = blanks
    trained.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n|▁?[^▁\n]+|▁"), "isolated")
    trained.train_from_iterator([CORPUS] * 3, trainers.BpeTrainer(vocab_size=300, show_progress=False))
    learned = json.loads(trained.to_str())["model"]
    pieces = sorted(learned["vocab"], key=learned["vocab"].get)
    words = [*GEMMA_SPECIALS, *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    merges = [tuple(merge) for merge in learned["merges"]]
    vocabulary = {word: i for i, word in enumerate(words)}
    made = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.normalizer = blanks
    made.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    made.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in GEMMA_SPECIALS])
    named = {
        f"{name}_token": token
        for name, token in {
            "sot": "<|turn>",
            "eot": "<turn|>",
            "soc": "<|channel>",
            "eoc": "<channel|>",
            "image": "<|image|>",
            "boi": "<|image>",
            "eoi": "<image|>",
            "audio": "<|audio|>",
            "boa": "<|audio>",
            "eoa": "<audio|>",
        }.items()
    }
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        clean_up_tokenization_spaces=False,
        padding_side="left",
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        extra_special_tokens=named,
    )


def invented_words() -> list[str]:
    """Lines of words that nobody knows, as many as merges are needed."""
    import random

    syllables = [consonant + vowel for consonant in "bcdfghjklmnpqrstvwxz" for vowel in "aeiouy"]
    drawn = random.Random(0)
    return [" ".join("".join(drawn.choices(syllables, k=drawn.randint(2, 4))) for _ in range(100)) for _ in range(700)]
