"""A transformers checkpoint as a VLM: a picture is seen once, however often it is asked about."""

from __future__ import annotations

import copy
import gc
import os
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import TYPE_CHECKING, Any, TypeVar

import click
import torch
from transformers import LogitsProcessorList

from mpa_edge.errors import MpaError
from mpa_edge.types import FinishReason, Reply, Request
from mpa_edge.vlm.transformers import checkpoint, prefix_cache
from mpa_edge.vlm.transformers.batch_size import BatchSize, free_bytes
from mpa_edge.vlm.transformers.batching import Query, in_order, length_of
from mpa_edge.vlm.transformers.decoding import Row, decode
from mpa_edge.vlm.transformers.prefetch import Ahead
from mpa_edge.vlm.transformers.sampling import Choice, Repetition, SeededSampling, decodes_plainly

if TYPE_CHECKING:
    from PIL.Image import Image

    Pictures = Ahead[tuple[str, Image], prefix_cache.Prepared]

Item = TypeVar("Item")
# shares of the memory that is free once the weights are there
FOR_PREFIXES, FOR_VISION = 0.25, 0.25
VISION_BYTES_A_VALUE = {"cpu": 80, "cuda": 40}  # a tower's activations over the numbers it is given, fp32 and bf16
MOST_VALUES = {"cpu": 8_000_000, "cuda": 400_000_000}  # more pixels at once no longer make a tower faster
AHEAD_VALUES = 128_000_000


class TransformersVLM:
    """Answers in batches. What the language model keeps of a picture stays as long as the picture and the room do."""

    def __init__(
        self,
        path: str,
        *,
        name: str,
        device: str = "auto",
        threads: int | None = None,
        batch_size: int = 256,
        share_prefixes: bool = True,
    ) -> None:
        """`batch_size` is the largest batch. `share_prefixes` False: `generate` on whole prompts."""
        self.name = name
        self.device = checkpoint.pick_device(device)
        self.threads = checkpoint.set_threads(threads)
        self.processor = checkpoint.load_processor(path)
        self.model: Any = checkpoint.load_model(path, self.device)
        self.batch = BatchSize(batch_size)
        knows_how = self.model.config.model_type in prefix_cache.LOOKS_BACK
        self.shares = share_prefixes and knows_how and decodes_plainly(self.model.generation_config)
        # a copy, because a tokenizer must not be used in two threads at once; only where a core has nothing else to do
        idle = self.device == "cuda" or self.threads < len(os.sched_getaffinity(0))
        self.second_processor = copy.deepcopy(self.processor) if idle else None
        self.store = prefix_cache.PrefixStore(int(FOR_PREFIXES * free_bytes(self.device)))

    def answer(self, requests: Sequence[Request]) -> list[Reply]:
        """One reply for each request, in order; batches are halved when memory runs out."""
        self.store.sweep()
        prompts = {text: checkpoint.chat_prompt(self.processor, text) for text in {one.prompt for one in requests}}
        asked = self._split(requests, prompts) if self.shares else None
        if asked is None:
            return self._all_whole(requests, prompts)
        try:
            return self._all_shared(requests, asked)
        except prefix_cache.NoPrefixError:
            self.shares = False
            return self._all_whole(requests, prompts)

    def close(self) -> None:
        """Free the weights."""
        self.model = None
        self.store.clear()
        self._give_back()

    def _split(self, requests: Sequence[Request], prompts: dict[str, str]) -> list[Query] | None:
        """Every request with its prompt in two parts, or None where the template does not put one picture first."""
        token = getattr(self.processor, "image_token", None)
        parts = {text: prefix_cache.split(whole, token) if token else None for text, whole in prompts.items()}
        tails: dict[str, list[int]] = {}
        for text, part in parts.items():
            if part is None:
                return None
            tails[text] = prefix_cache.tail_ids(self.processor.tokenizer, str(token), part[1])
            if not tails[text]:
                return None
        heads = {text: part[0] for text, part in parts.items() if part}
        return [Query(i, one, heads[one.prompt], tails[one.prompt]) for i, one in enumerate(requests)]

    def _all_shared(self, requests: Sequence[Request], asked: Sequence[Query]) -> list[Reply]:
        """Every batch behind prefixes; the pictures to come are prepared by a second thread meanwhile."""
        length = length_of(self.processor.image_processor)
        todo = in_order(asked, length, lambda one: self.store.get(one.request.image, one.head) is not None)
        shown = {one.key: (one.head, one.request.image) for one in todo}
        new = [(key, seen) for key, seen in shown.items() if self.store.get(seen[1], seen[0]) is None]
        second = self.second_processor
        new = new if second and len(new) > 1 else []
        with Ahead(
            lambda seen: prefix_cache.prepare(second, *seen), new, AHEAD_VALUES, prefix_cache.n_values
        ) as pictures:
            made = self._in_batches(todo, lambda chosen: self._shared(chosen, pictures))
        return [reply for _, reply in sorted(zip((one.place for one in todo), made, strict=True), key=itemgetter(0))]

    def _in_batches(self, todo: Sequence[Item], work: Callable[[Sequence[Item]], list[Reply]]) -> list[Reply]:
        """Replies in the order of `todo`, as many at once as memory allows."""
        replies: list[Reply] = []
        while len(replies) < len(todo):
            replies += self._tried(todo[len(replies) : len(replies) + self.batch.size], work)
        return replies

    def _tried(self, chosen: Sequence[Item], work: Callable[[Sequence[Item]], list[Reply]]) -> list[Reply]:
        """One batch's replies; none after memory ran out, and the next batch is smaller. Other errors go up."""
        try:
            return work(chosen)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            if len(chosen) == 1:
                raise MpaError(
                    "out of memory with one image at a time: use a smaller model or a larger machine"
                ) from error
        # not inside the handler: its traceback holds the memory of the batch
        self.batch.halve(len(chosen))
        self.store.clear()
        self._give_back()
        click.echo(f"out of memory: batch of {self.name} halved to {self.batch.size}", err=True)
        return []

    def _shared(self, asked: Sequence[Query], pictures: Pictures) -> list[Reply]:
        """One batch behind prefixes."""
        found = self._prefixes(asked, pictures)
        rows = [Row(found[one.key], one.tail, one.request.max_new_tokens) for one in asked]
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        said = decode(self.model, rows, self._choice(asked, rows), self._end_ids())
        self.batch.worked(len(rows), self._used_bytes(rows), free_bytes(self.device))
        return [self._reply(tokens, one.request) for tokens, one in zip(said, asked, strict=True)]

    def _prefixes(self, asked: Sequence[Query], pictures: Pictures) -> dict[tuple[int, str], prefix_cache.Prefix]:
        """The prefix of every picture of a batch, computed where it is not there yet."""
        found: dict[tuple[int, str], prefix_cache.Prefix] = {}
        waiting: dict[tuple[int, str], prefix_cache.Prepared] = {}
        limit = min(MOST_VALUES[self.device], FOR_VISION * free_bytes(self.device) / VISION_BYTES_A_VALUE[self.device])
        images = {one.key: one.request.image for one in asked}
        for key, image in images.items():
            kept = self.store.get(image, key[1])
            if kept is not None:
                found[key] = kept
                continue
            taken = pictures.take(key) or prefix_cache.prepare(self.processor, key[1], image)
            if waiting and sum(map(prefix_cache.n_values, [*waiting.values(), taken])) > limit:
                found |= self._see(waiting)
                waiting = {}
            waiting[key] = taken
        found |= self._see(waiting) if waiting else {}
        for key, image in images.items():
            self.store.put(image, key[1], found[key])
        return found

    def _see(
        self, prepared: dict[tuple[int, str], prefix_cache.Prepared]
    ) -> dict[tuple[int, str], prefix_cache.Prefix]:
        seen = prefix_cache.see(self.model, list(prepared.values()), self._pad_id())
        return dict(zip(prepared, seen, strict=True))

    def _choice(self, asked: Sequence[Query], rows: Sequence[Row]) -> Choice:
        penalty = self.model.generation_config.repetition_penalty
        requests = [one.request for one in asked]
        if penalty in (None, 1.0):
            return Choice(requests)
        prompts = [[*row.prefix.ids, *row.tail] for row in rows]
        vocabulary = self.model.get_output_embeddings().weight.shape[0]
        return Choice(requests, Repetition(penalty, prompts, vocabulary, self.device))

    def _used_bytes(self, rows: Sequence[Row]) -> int:
        """What a batch took: as the GPU counted it, else keys and values twice and the numbers of the prompts' rest."""
        if self.device == "cuda":
            return int(torch.cuda.max_memory_allocated() - self.model.get_memory_footprint() - self.store.held_bytes)
        text = self.model.config.get_text_config()
        a_token = max(row.prefix.n_bytes / len(row.prefix.ids) for row in rows)
        length = max(len(row.prefix.ids) for row in rows) + max(len(row.tail) for row in rows) + rows[0].limit
        tail = max(len(row.tail) for row in rows) * 4 * (8 * text.hidden_size + 3 * text.intermediate_size)
        return int(len(rows) * (2 * a_token * length + tail + 16 * text.vocab_size))

    def _give_back(self) -> None:
        gc.collect()
        if self.device == "cuda":
            torch.cuda.empty_cache()

    def _all_whole(self, requests: Sequence[Request], prompts: dict[str, str]) -> list[Reply]:
        """Every batch with whole prompts, as the library does it: for models and templates without a prefix."""
        order = sorted(range(len(requests)), key=lambda i: requests[i].max_new_tokens)
        made = self._in_batches(
            order, lambda some: self._whole([requests[i] for i in some], [prompts[requests[i].prompt] for i in some])
        )
        return [reply for _, reply in sorted(zip(order, made, strict=True), key=itemgetter(0))]

    @torch.inference_mode()
    def _whole(self, requests: Sequence[Request], texts: Sequence[str]) -> list[Reply]:
        inputs = self.processor(
            text=list(texts),
            images=[[request.image] for request in requests],
            padding=True,
            padding_side="left",
            add_special_tokens=False,
            return_tensors="pt",
        ).to(self.device, dtype=self.model.dtype)
        sampling = SeededSampling(requests) if any(request.temperature > 0 for request in requests) else None
        output = self.model.generate(
            **inputs,
            max_new_tokens=max(request.max_new_tokens for request in requests),
            do_sample=False,
            logits_processor=LogitsProcessorList(filter(None, [sampling])),
        )
        new = output[:, inputs["input_ids"].shape[1] :].tolist()
        return [self._reply(tokens, request) for tokens, request in zip(new, requests, strict=True)]

    def _reply(self, tokens: Sequence[int], request: Request) -> Reply:
        """Cut a row at the end token or at the request's own limit."""
        kept = list(tokens[: request.max_new_tokens])
        ends = self._end_ids()
        stops = [i for i, token in enumerate(kept) if token in ends]
        reason: FinishReason = "stop" if stops else "length"
        kept = kept[: stops[0] + 1] if stops else kept
        text = self.processor.tokenizer.decode(kept, skip_special_tokens=True)
        text = checkpoint.without_special_tokens(self.processor, text).strip()
        return Reply(text=text, finish_reason=reason, n_tokens=len(kept))

    def _end_ids(self) -> set[int]:
        ends = self.model.generation_config.eos_token_id
        return set(ends) if isinstance(ends, list) else {ends}

    def _pad_id(self) -> int:
        found = self.processor.tokenizer.pad_token_id
        return 0 if found is None else int(found)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or on the host.

    >>> is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes"))
    True
    """
    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(
        phrase in str(error) for phrase in ("can't allocate memory", "out of memory", "Cannot allocate memory")
    )
