"""Groups of completions to prompts."""

import contextlib
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lit_rft.generation.choices import Constraints, TokenTrie
from lit_rft.generation.decoder import Decoder
from lit_rft.generation.recompute import make_decoder
from lit_rft.generation.sampling import (
    Completion,
    RandomStream,
    SamplingSettings,
    StopCriteria,
    as_ids,
    sample_tokens,
    swap_remove,
)
from lit_rft.models.backbone import model_end_ids

# Prefill new prompts together: wait until this share of the slots is free.
_FREE_SHARE = 1 / 8


@torch.no_grad()
def sample_groups(
    model: nn.Module,
    prompts: Sequence[tuple[str, list[int]]],
    sizes: Sequence[int],
    sampling: SamplingSettings,
    end_ids: int | Sequence[int],
    *,
    seed: int = 0,
    max_concurrent: int = 64,
    decode: Callable[[list[int]], str] | None = None,
    acting: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
    choices: Mapping[int, TokenTrie] | None = None,
    report: Callable[[int, int], None] | None = None,
) -> list[list[Completion]]:
    """Sample groups of completions; whenever one finishes, the next starts in its place.

    Prompts are prefilled once for all completions of a group that run at the same time. A completion depends only on
    the seed, the name of its prompt and its number within the group (up to rounding).

    Args:
        prompts: name and token ids of each prompt.
        sizes: number of completions of each prompt, >= 0.
        sampling: temperature, limits and stop criteria.
        end_ids: tokens that end a completion, the template's first (`ChatFormat.end_ids`); the model's own
            (`generation_config.eos_token_id`) are added.
        seed: of the sampling.
        max_concurrent: maximum number of completions sampled at the same time.
        decode: token ids to text, for stop strings.
        acting: context around each forward pass, see `Decoder`.
        choices: index of a prompt -> the completions to choose among; other prompts are free.
        report: called with the number of finished completions, and of all.

    Returns:
        The completions of each prompt, in order.

    Raises:
        ValueError: For another number of sizes than prompts, or `max_concurrent` below 1.
    """
    if len(prompts) != len(sizes):
        raise ValueError(f"expected one size per prompt, got {len(prompts)} prompts and {len(sizes)} sizes")
    if max_concurrent < 1:
        raise ValueError(f"max_concurrent must be >= 1, got {max_concurrent}")
    end_ids = as_ids(end_ids)
    training = model.training
    model.eval()
    try:
        number = max(1, min(max_concurrent, sum(sizes)))
        decoder = make_decoder(model, number, end_ids[0], acting=acting)
        stop_criteria = StopCriteria([*end_ids, *model_end_ids(model)], sampling, decode)
        return _GroupSampler(decoder, prompts, sizes, sampling, stop_criteria, seed, choices or {}, report).run()
    finally:
        model.train(training)


@dataclass
class _Prompt:
    """A prompt with completions in progress."""

    slots: set[int] = field(default_factory=set)  # slots with its tokens in the cache
    logits: Tensor | None = None  # after its last token


class _GroupSampler:
    """The state of `sample_groups`."""

    def __init__(
        self,
        decoder: Decoder,
        prompts: Sequence[tuple[str, list[int]]],
        sizes: Sequence[int],
        sampling: SamplingSettings,
        stop_criteria: StopCriteria,
        seed: int,
        choices: Mapping[int, TokenTrie],
        report: Callable[[int, int], None] | None = None,
    ) -> None:
        self.decoder, self.prompts, self.sampling, self.seed = decoder, prompts, sampling, seed
        self.stop_criteria = stop_criteria
        self.choices, self.constraints = choices, Constraints({}, sampling.max_new_tokens)
        # prompts of similar length are prefilled together; samples depend on names, not on this order
        order = sorted(range(len(prompts)), key=lambda p: len(prompts[p][1]), reverse=True)
        self.waiting = deque((p, n) for p in order for n in range(sizes[p]))
        self.num_slots = decoder.num_slots
        self.free = list(range(self.num_slots))
        self.active: list[int] = []  # slots, in the order of the cache's rows
        self.place: dict[int, tuple[int, int]] = {}  # slot -> prompt, number
        self.randoms: dict[int, RandomStream] = {}
        self.begun: dict[int, _Prompt] = {}
        self.sampled: dict[int, Completion] = {}  # slot -> its unfinished completion
        self.report, self.done, self.total = report, 0, sum(sizes)
        self.groups: list[list[Completion]] = [[Completion([], [], False)] * size for size in sizes]

    def run(self) -> list[list[Completion]]:
        with self.decoder.ready():
            while self.waiting or self.active:
                if not self.active or len(self.free) >= self.num_slots * _FREE_SHARE:
                    self._begin()
                if self.active:
                    tokens = [self.sampled[slot].ids[-1] for slot in self.active]
                    self._sample_next(self.active, self.decoder.step(self.active, tokens))
        return self.groups

    def _begin(self) -> None:
        """Move waiting completions into free slots, and sample their first tokens."""
        fresh: dict[int, list[int]] = {}  # a prompt's first slot
        copies: dict[int, list[int]] = {}
        new: list[int] = []
        while self.waiting and self.free:
            p, n = self.waiting.popleft()
            slot = self.free.pop()
            prompt = self.begun.setdefault(p, _Prompt())
            if prompt.slots:
                copies.setdefault(p, []).append(slot)
            else:
                fresh[slot] = self.prompts[p][1]
                prompt.slots.add(slot)
            self.place[slot], self.sampled[slot] = (p, n), Completion([], [], False)
            self.randoms[slot] = RandomStream(self.seed, f"{self.prompts[p][0]}/{n}")
            new.append(slot)
            if p in self.choices:
                self.constraints.begin(slot, self.choices[p])
        if fresh:
            for slot, logits in self.decoder.read(fresh).items():
                self.begun[self.place[slot][0]].logits = logits
        for p, slots in copies.items():
            prompt = self.begun[p]
            self.decoder.cache.copy_prefix(min(prompt.slots), slots, len(self.prompts[p][1]))
            prompt.slots.update(slots)
        if new:
            first = [self.begun[self.place[slot][0]].logits for slot in new]
            self.active += new
            self._sample_next(new, torch.stack([logits for logits in first if logits is not None]))

    def _sample_next(self, slots: Sequence[int], logits: Tensor) -> None:
        """Sample a token for each slot; finished completions free their slots."""
        logits = self.constraints.mask(logits, slots)
        tokens, log_probs = sample_tokens(logits, self.sampling, [self.randoms[slot] for slot in slots])
        for slot, token, log_prob in zip(list(slots), tokens, log_probs, strict=True):
            self.constraints.advance(slot, token)
            if self.stop_criteria.append(self.sampled, slot, token, log_prob):
                self._end(slot)

    def _end(self, slot: int) -> None:
        p, n = self.place.pop(slot)
        self.groups[p][n] = self.sampled.pop(slot)
        swap_remove(self.active, slot)
        self.constraints.end(slot)  # the slot's next prompt has its own, or none
        self.decoder.cache.clear(slot)
        self.begun[p].slots.discard(slot)
        if not self.begun[p].slots:
            del self.begun[p]  # prefilled again if more completions of it are waiting
        self.free.append(slot)
        self.done += 1
        if self.report is not None:
            self.report(self.done, self.total)
