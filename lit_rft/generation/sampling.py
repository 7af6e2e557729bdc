"""Sampling of tokens, and the end of utterances."""

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad


@dataclass(frozen=True)
class SamplingSettings:
    """Settings of sampling and the end of utterances.

    Args:
        max_new_tokens: maximum tokens per utterance, including its end-of-turn token.
        temperature: > 0 and finite, or 0 for greedy decoding.
        top_k: sample among the k most likely tokens only; 0 for all.
        top_p: sample from the smallest set of most likely tokens with this total probability, in (0, 1]; relative to
            the top k with `top_k`.
        stop_token_ids: further tokens that end an utterance.
        stop_strings: texts that end an utterance as soon as they appear.
    """

    max_new_tokens: int = 32
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    stop_token_ids: tuple[int, ...] = ()
    stop_strings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("stop_token_ids", "stop_strings"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # hashable, also if given as lists
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be >= 1, got {self.max_new_tokens}")
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature must be >= 0 and finite, got {self.temperature}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be >= 0, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}")
        if not all(self.stop_strings):
            raise ValueError(f"stop_strings must not be empty, got {self.stop_strings!r}")


_AT_ONCE = 64  # random numbers drawn in advance per sequence


class Completion(NamedTuple):
    """One sampled utterance."""

    ids: list[int]  # including the tokens that ended it
    log_probs: list[float]  # of each id at the temperature (1 if greedy), before top-k and top-p
    finished: bool  # whether it finished (EOS or stop)


class RandomStream:
    """The random numbers of one sequence, independent of all others.

    Args:
        seed: of all sequences.
        name: of this one.
    """

    def __init__(self, seed: int, name: str) -> None:
        digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
        self._generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        self._drawn: list[float] = []  # next numbers, in reverse order

    def uniform(self) -> float:
        """Return the next number, in [0, 1).

        Numbers are drawn on the CPU, equal for all devices, and several at once, to save calls.
        """
        if not self._drawn:
            self._drawn = torch.rand(_AT_ONCE, generator=self._generator, dtype=torch.float64).tolist()[::-1]
        return self._drawn.pop()


def sample_tokens(
    logits: Tensor, settings: SamplingSettings, randoms: Sequence[RandomStream]
) -> tuple[list[int], list[float]]:
    """Sample a token for each row [B, V].

    Args:
        logits: [B, V].
        settings: temperature, top-k and top-p.
        randoms: random stream of each row.

    Returns:
        The tokens and their log-probabilities.
    """
    scaled = logits if settings.temperature in (0.0, 1.0) else logits / settings.temperature
    highest = scaled.amax(-1, keepdim=True)
    mass = (scaled - highest).exp_()  # unnormalised: saves a pass over the vocabulary
    total = mass.sum(-1, keepdim=True)
    if settings.temperature == 0:
        tokens = scaled.argmax(-1)
    else:
        if settings.top_k or settings.top_p < 1:
            mass = truncate_distribution(mass.div_(total), settings.top_k, settings.top_p)
        uniform = torch.tensor([stream.uniform() for stream in randoms], dtype=torch.float64, device=mass.device)
        tokens = inverse_cdf(mass, uniform)
    log_probs = (scaled.gather(-1, tokens[:, None]) - highest - total.log()).squeeze(-1)
    ids, values = torch.stack([tokens.double(), log_probs.double()]).tolist()  # exact, with one synchronisation
    return list(map(int, ids)), values


def as_ids(end_ids: int | Iterable[int]) -> list[int]:
    """Return one or several ids as a list.

    Raises:
        ValueError: There is none.
    """
    ids = [end_ids] if isinstance(end_ids, int) else list(end_ids)
    if not ids:
        raise ValueError("end_ids must have at least one token that ends an utterance, got none")
    return ids


class StopCriteria:
    """The end of utterances: end tokens, stop strings and the maximum length.

    Args:
        end_ids: tokens that end an utterance.
        settings: further stop criteria.
        decode: token ids to text; required for stop strings.

    Raises:
        ValueError: For stop strings without `decode`.
    """

    def __init__(
        self, end_ids: Iterable[int], settings: SamplingSettings, decode: Callable[[list[int]], str] | None = None
    ) -> None:
        if settings.stop_strings and decode is None:
            raise ValueError("stop_strings need `decode` to convert token ids to text, got None")
        self._ids = {*end_ids, *settings.stop_token_ids}
        self._strings, self._decode = settings.stop_strings, decode
        # number of tokens to decode: each has at least one byte, and the first may be part of a character
        self._window = max((len(text.encode()) for text in settings.stop_strings), default=0) + 4
        self._max_new_tokens = settings.max_new_tokens

    def append(self, sampled: dict[int, Completion], slot: int, token: int, log_prob: float) -> bool:
        """Append a token to the completion in a slot; return whether the completion has ended."""
        ids, log_probs, _ = sampled[slot]
        ids.append(token)
        log_probs.append(log_prob)
        if token in self._ids or self._has_stop_string(ids):
            sampled[slot] = Completion(ids, log_probs, True)
            return True
        return len(ids) >= self._max_new_tokens

    def _has_stop_string(self, ids: list[int]) -> bool:
        if self._decode is None or not self._strings:
            return False
        text = self._decode(ids[-self._window :])
        return any(stop in text for stop in self._strings)


def swap_remove(active: list[int], slot: int) -> None:
    """Remove a slot and put the last one in its place, so that no other row of the cache moves."""
    place, last = active.index(slot), active.pop()
    if last != slot:
        active[place] = last


# Enough for nearly every nucleus: sorting a full vocabulary takes longer than the model.
_NUCLEUS = 1024
_BLOCK = 128


def truncate_distribution(probs: Tensor, top_k: int, top_p: float) -> Tensor:
    """Set all probabilities [B, V] but the top-k and the nucleus of mass top_p to zero (without renormalising).

    The most likely token always stays; the nucleus is the smallest set of tokens whose mass reaches top_p of the mass
    of the top k (as in transformers and vLLM).
    """
    if top_k == 0 and top_p == 1.0:
        return probs
    size = probs.shape[-1]
    wanted = min(top_k or _NUCLEUS, size)
    ordered, order = probs.topk(wanted, dim=-1)
    if not top_k and bool((ordered.sum(-1) < top_p).any()):
        ordered, order = probs.topk(size, dim=-1)
    total = ordered.sum(-1, keepdim=True) if top_k else 1.0
    keep = ordered.cumsum(-1) - ordered < top_p * total
    return torch.zeros_like(probs).scatter(-1, order, ordered * keep)


def inverse_cdf(probs: Tensor, uniform: Tensor) -> Tensor:
    """Return the token at which the cumulative mass [B, V] exceeds uniform * total, [B] in [0, 1).

    Tokens without mass are never returned. The search is over blocks first, then within one: the mass of the vocabulary
    is summed, not cumulated.
    """
    missing = -probs.shape[-1] % _BLOCK
    blocks = (pad(probs, (0, missing)) if missing else probs).unflatten(-1, (-1, _BLOCK))
    mass = blocks.sum(-1).double()
    cumulated = mass.cumsum(-1)
    target = uniform[:, None] * cumulated[:, -1:]
    block = _passing(cumulated, target, mass)
    before = (cumulated - mass).gather(-1, block)
    inside = blocks.gather(1, block[:, :, None].expand(-1, -1, _BLOCK)).squeeze(1).double()
    return (block * _BLOCK + _passing(inside.cumsum(-1), target - before, inside)).squeeze(-1)


def _passing(cumulated: Tensor, target: Tensor, mass: Tensor) -> Tensor:
    """Return the index at which the cumulative mass [B, N] exceeds the target [B, 1], despite rounding at the end."""
    places = torch.arange(mass.shape[-1], device=mass.device)
    last = torch.where(mass > 0, places, 0).amax(-1, keepdim=True)
    return torch.minimum(torch.searchsorted(cumulated, target, right=True), last)
