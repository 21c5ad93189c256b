"""A transformers checkpoint as a VLM: an image is encoded once, however many questions are asked about it."""

from __future__ import annotations

import copy
import gc
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import LogitsProcessorList

from mpa_edge.errors import MpaError
from mpa_edge.progress import say
from mpa_edge.types import FinishReason, Reply, Request
from mpa_edge.vlm.shared.prompts import THOUGHT, without_special_tokens, without_thought
from mpa_edge.vlm.transformers import checkpoint, prefix_cache
from mpa_edge.vlm.transformers.batching import BatchSize, Query, free_bytes, in_order, length_of
from mpa_edge.vlm.transformers.decoding import Row, decode
from mpa_edge.vlm.transformers.files import local_folder
from mpa_edge.vlm.transformers.prefetch import Prefetch
from mpa_edge.vlm.transformers.prefix_cache import NoPrefixError, Prefix, PrefixStore, Prepared
from mpa_edge.vlm.transformers.sampling import Choice, Repetition, SeededSampling, decodes_plainly

# shares of the memory that is free once the weights are loaded
FOR_PREFIXES, FOR_VISION = 0.25, 0.25
VISION_BYTES_PER_VALUE = {"cpu": 80, "cuda": 40}  # a tower's activations per input value, fp32 and bf16
MAX_VALUES = {"cpu": 8_000_000, "cuda": 400_000_000}  # more pixels at once no longer make a tower faster
PREFETCHED_VALUES = 128_000_000


class TransformersVLM:
    """Answers in batches. Keys and values of an image are kept while the image is in memory and they fit."""

    def __init__(
        self, path: str, *, name: str, device: str = "auto", threads: int | None = None, batch_size: int = 256
    ) -> None:
        """`batch_size` is the largest batch. MpaError where the checkpoint cannot be loaded."""
        self.name = name
        self.device = checkpoint.pick_device(device)
        self.threads = checkpoint.set_threads(threads)
        self.folder = local_folder(path)
        self.processor = checkpoint.load_processor(path)
        self.model: Any = checkpoint.load_model(path, self.device)
        self.has_answered = False
        self.batch = BatchSize(batch_size)
        looks_back = self.model.config.model_type in prefix_cache.LOOKS_BACK
        self.shares = looks_back and decodes_plainly(self.model.generation_config)
        # a copy, because a tokenizer must not be used in two threads at once; only where a core would be idle
        idle = self.device == "cuda" or self.threads < len(os.sched_getaffinity(0))
        self.second_processor = copy.deepcopy(self.processor) if idle else None
        self.store = PrefixStore(int(FOR_PREFIXES * free_bytes(self.device)))

    def answer(self, requests: Sequence[Request]) -> list[Reply]:
        """One reply for each request, in order; batches are halved when memory runs out.

        MpaError where the files of a checkpoint, each sound in itself, do not fit together: nothing was ever answered.
        """
        if self.has_answered:
            return self._answer(requests)
        with checkpoint.library_errors(self.folder, self.processor):
            replies = self._answer(requests)
        self.has_answered = True
        return replies

    def _answer(self, requests: Sequence[Request]) -> list[Reply]:
        self.store.sweep()
        prompts = {text: checkpoint.chat_prompt(self.processor, text) for text in {one.prompt for one in requests}}
        parts = {}
        for text, prompt in prompts.items() if self.shares else ():
            if halves := prefix_cache.split(self.processor, prompt):
                parts[text] = halves
        if self.shares and len(parts) == len(prompts):
            try:
                return self._answer_shared([Query(i, one, *parts[one.prompt]) for i, one in enumerate(requests)])
            except NoPrefixError:
                self.shares = False
        whole = [Query(i, request, prompts[request.prompt], ()) for i, request in enumerate(requests)]
        return self._in_batches(sorted(whole, key=lambda query: query.request.max_new_tokens), self._generate)

    def close(self) -> None:
        """Free the weights."""
        self.model = None
        self.store.clear()
        self._free_memory()

    def _answer_shared(self, queries: Sequence[Query]) -> list[Reply]:
        """Replies that share the prefix of each image; a second thread prepares the next images meanwhile."""

        def is_stored(query: Query) -> bool:
            return self.store.get(query.request.image, query.head) is not None

        queries = in_order(queries, length_of(self.processor.image_processor), is_stored)
        new = {query.key: query for query in queries if not is_stored(query)}
        with Prefetch(
            lambda query: prefix_cache.prepare(self.second_processor, query.head, query.request.image),
            new.items() if self.second_processor and len(new) > 1 else (),
            PREFETCHED_VALUES,
            prefix_cache.n_values,
        ) as prefetched:
            return self._in_batches(queries, lambda batch: self._decode(batch, prefetched))

    def _in_batches(self, queries: Sequence[Query], work: Callable[[Sequence[Query]], list[Reply]]) -> list[Reply]:
        """Replies in the order of the requests, computed as many at once as memory allows."""
        replies: dict[int, Reply] = {}
        while len(replies) < len(queries):
            batch = queries[len(replies) : len(replies) + self.batch.size]
            try:
                replies |= {query.place: reply for query, reply in zip(batch, work(batch), strict=True)}
                continue
            except (MemoryError, RuntimeError) as error:
                if not checkpoint.is_out_of_memory(error):
                    raise
                if len(batch) == 1:
                    raise MpaError(
                        "out of memory with one image at a time: use a smaller model or a larger machine"
                    ) from error
            # not inside the handler: its traceback holds the memory of the batch
            self.batch.halve(len(batch))
            self.store.clear()
            self._free_memory()
            say(f"out of memory: batch of {self.name} halved to {self.batch.size}")
        return [replies[place] for place in range(len(queries))]

    def _decode(self, batch: Sequence[Query], prefetched: Prefetch) -> list[Reply]:
        """One batch that continues from the prefixes of its images."""
        prefixes = self._prefixes(batch, prefetched)
        rows = [Row(prefixes[query.key], query.tail, query.request.max_new_tokens) for query in batch]
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        requests, repetition = [query.request for query in batch], None
        penalty = self.model.generation_config.repetition_penalty
        if penalty not in (None, 1.0):
            prompts = [[*row.prefix.ids, *row.tail] for row in rows]
            vocabulary = self.model.get_output_embeddings().weight.shape[0]
            repetition = Repetition(penalty, prompts, vocabulary, self.device)
        tokens = decode(self.model, rows, Choice(requests, repetition), self._end_ids())
        # memory of the batch: as the GPU counted it, else an estimate: keys and values twice, and the prompts' tails
        if self.device == "cuda":
            weights_bytes = self.model.get_memory_footprint()
            used_bytes = torch.cuda.max_memory_allocated() - weights_bytes - self.store.held_bytes
        else:
            text, n_tail = self.model.config.get_text_config(), max(len(row.tail) for row in rows)
            token_bytes = max(row.prefix.cache.nbytes / len(row.prefix.ids) for row in rows)
            length = max(len(row.prefix.ids) for row in rows) + n_tail + rows[0].limit
            tail_bytes = n_tail * 4 * (8 * text.hidden_size + 3 * text.intermediate_size)
            used_bytes = len(rows) * (2 * token_bytes * length + tail_bytes + 16 * text.vocab_size)
        self.batch.worked(len(rows), int(used_bytes), free_bytes(self.device))
        return [self._reply(row, request) for row, request in zip(tokens, requests, strict=True)]

    def _prefixes(self, batch: Sequence[Query], prefetched: Prefetch) -> dict[tuple[int, str], Prefix]:
        """The prefix of every image of a batch, computed where it is not stored."""
        free = FOR_VISION * free_bytes(self.device)
        limit = min(MAX_VALUES[self.device], free / VISION_BYTES_PER_VALUE[self.device])
        pad_id = self.processor.tokenizer.pad_token_id or 0
        found: dict[tuple[int, str], Prefix] = {}
        waiting: dict[tuple[int, str], Prepared] = {}

        def encode() -> None:
            found.update(zip(waiting, prefix_cache.see(self.model, list(waiting.values()), pad_id), strict=True))
            waiting.clear()

        images = {query.key: query.request.image for query in batch}
        for key, image in images.items():
            if (kept := self.store.get(image, key[1])) is not None:
                found[key] = kept
                continue
            prepared = prefetched.take(key) or prefix_cache.prepare(self.processor, key[1], image)
            if waiting and sum(map(prefix_cache.n_values, [*waiting.values(), prepared])) > limit:
                encode()
            waiting[key] = prepared
        if waiting:
            encode()
        for key, image in images.items():
            self.store.put(image, key[1], found[key])
        return found

    def _free_memory(self) -> None:
        gc.collect()
        if self.device == "cuda":
            torch.cuda.empty_cache()

    @torch.inference_mode()
    def _generate(self, batch: Sequence[Query]) -> list[Reply]:
        """One batch with whole prompts, by the library's `generate`: for models and templates without a prefix."""
        requests = [query.request for query in batch]
        inputs = self.processor(
            text=[query.head for query in batch],
            images=[[request.image] for request in requests],
            padding=True,
            padding_side="left",
            add_special_tokens=False,
            return_tensors="pt",
        ).to(self.device, dtype=self.model.dtype)
        sampled = any(request.temperature > 0 for request in requests)
        output = self.model.generate(
            **inputs,
            max_new_tokens=max(request.max_new_tokens for request in requests),
            do_sample=False,
            logits_processor=LogitsProcessorList([SeededSampling(requests)] if sampled else []),
        )
        new = output[:, inputs["input_ids"].shape[1] :].tolist()
        return [self._reply(tokens, request) for tokens, request in zip(new, requests, strict=True)]

    def _reply(self, tokens: Sequence[int], request: Request) -> Reply:
        """Cut a row at the end token or at the request's own limit."""
        ends, kept = self._end_ids(), list(tokens[: request.max_new_tokens])
        stop = next((i for i, token in enumerate(kept) if token in ends), None)
        reason: FinishReason = "length" if stop is None else "stop"
        kept = kept if stop is None else kept[: stop + 1]
        known = self.processor.tokenizer.get_added_vocab()
        spoken = without_thought(kept, [known.get(token) for token in THOUGHT])
        text = self.processor.tokenizer.decode(spoken, skip_special_tokens=True)
        text = without_special_tokens(text, checkpoint.special_tokens(self.processor)).strip()
        return Reply(text=text, finish_reason=reason, n_tokens=len(kept))

    def _end_ids(self) -> set[int]:
        ends = self.model.generation_config.eos_token_id
        return set(ends) if isinstance(ends, list) else {ends}
