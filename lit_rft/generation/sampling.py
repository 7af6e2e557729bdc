"""How tokens are drawn, and when an utterance ends."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad


@dataclass(frozen=True)
class SamplingSettings:
    """How utterances are sampled.

    Args:
        max_new_tokens: at most so many tokens an utterance, its end-of-turn token included.
        temperature: > 0, or 0 for the most likely token.
        top_k: sample among the k most likely tokens only; 0 for all.
        top_p: sample among the most likely tokens that hold this much probability together, in (0, 1]; with `top_k`, of
            the probability that those k have.
        stop_token_ids: tokens that end an utterance as well.
        stop_strings: so do these texts, as soon as an utterance has one.
    """

    max_new_tokens: int = 32
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    stop_token_ids: tuple[int, ...] = ()
    stop_strings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be >= 1, got {self.max_new_tokens}")
        if self.temperature < 0:
            raise ValueError(f"temperature must be >= 0, got {self.temperature}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be >= 0, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}")
        if not all(self.stop_strings):
            raise ValueError(f"stop_strings must not be empty, got {self.stop_strings!r}")


_AT_ONCE = 64  # random numbers of a sequence


class Completion(NamedTuple):
    """One sampled utterance."""

    ids: list[int]  # with the end-of-turn token or what else ended it, if that came in time
    log_probs: list[float]  # of each id under the policy at the temperature (at 1 when greedy), before top-k and top-p
    finished: bool  # whether it came to its end


class RandomStream:
    """Random numbers of one sequence, whoever else draws beside it.

    Args:
        seed: of all sequences.
        name: of this one.
    """

    def __init__(self, seed: int, name: str) -> None:
        digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
        self._generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        self._drawn: list[float] = []  # the next ones, last first

    def uniform(self) -> float:
        """The next number, in [0, 1). They are drawn on the CPU, the same for all devices, and some at once: a call of
        a generator for each token of each sequence adds up."""
        if not self._drawn:
            self._drawn = torch.rand(_AT_ONCE, generator=self._generator, dtype=torch.float64).tolist()[::-1]
        return self._drawn.pop()


def sample_tokens(
    logits: Tensor, settings: SamplingSettings, randoms: Sequence[RandomStream]
) -> tuple[list[int], list[float]]:
    """A token for each row [B, V], with random numbers of its own, and its log-probability."""
    scaled = logits if settings.temperature in (0.0, 1.0) else logits / settings.temperature
    highest = scaled.amax(-1, keepdim=True)
    mass = (scaled - highest).exp_()  # not normalised: a pass over the whole vocabulary less
    total = mass.sum(-1, keepdim=True)
    if settings.temperature == 0:
        tokens = scaled.argmax(-1)
    else:
        if settings.top_k or settings.top_p < 1:
            mass = truncate_distribution(mass.div_(total), settings.top_k, settings.top_p)
        uniform = torch.tensor([stream.uniform() for stream in randoms], dtype=torch.float64, device=mass.device)
        tokens = inverse_cdf(mass, uniform)
    log_probs = (scaled.gather(-1, tokens[:, None]) - highest - total.log()).squeeze(-1)
    ids, values = torch.stack([tokens.double(), log_probs.double()]).tolist()  # both exact, and one wait for the device
    return list(map(int, ids)), values


def as_ids(end_ids: int | Iterable[int]) -> list[int]:
    """Return one id or several as a list.

    Raises: ValueError if there is none.
    """
    ids = [end_ids] if isinstance(end_ids, int) else list(end_ids)
    if not ids:
        raise ValueError("end_ids needs at least one token that ends an utterance, got none")
    return ids


class StopCriteria:
    """Knows when an utterance is over.

    Args:
        end_ids: each of them ends an utterance.
        settings: what else does, and after how many tokens it is cut off.
        decode: ids to text; needed for stop strings.
    Raises: ValueError for stop strings without `decode`.
    """

    def __init__(
        self, end_ids: Iterable[int], settings: SamplingSettings, decode: Callable[[list[int]], str] | None = None
    ) -> None:
        if settings.stop_strings and decode is None:
            raise ValueError("stop_strings need `decode`, which turns ids into text")
        self._ids = {*end_ids, *settings.stop_token_ids}
        self._strings, self._decode = settings.stop_strings, decode
        # a stop string is in the last tokens: each has a byte at least, but one may be a part of a letter
        self._window = max((len(text.encode()) for text in settings.stop_strings), default=0) + 4
        self._max_new_tokens = settings.max_new_tokens

    def append(self, sampled: dict[int, Completion], slot: int, token: int, log_prob: float) -> bool:
        """Add a token to what a slot has said; returns whether that was the last one."""
        ids, log_probs, _ = sampled[slot]
        ids.append(token)
        log_probs.append(log_prob)
        if token in self._ids or self._says_stop(ids):
            sampled[slot] = Completion(ids, log_probs, True)
            return True
        return len(ids) >= self._max_new_tokens

    def _says_stop(self, ids: list[int]) -> bool:
        if self._decode is None or not self._strings:
            return False
        text = self._decode(ids[-self._window :])
        return any(stop in text for stop in self._strings)


def swap_remove(active: list[int], slot: int) -> None:
    """Take a slot out; the last one takes its place: no other row of the cache has to move."""
    place, last = active.index(slot), active.pop()
    if last != slot:
        active[place] = last


# Enough for nearly every nucleus: sorting a whole vocabulary takes longer than the model itself.
_NUCLEUS = 1024
_BLOCK = 128


def truncate_distribution(probs: Tensor, top_k: int, top_p: float) -> Tensor:
    """Probabilities [B, V] with all but the top-k and the nucleus of mass top_p set to zero (not renormalised).

    The most likely token always stays; the nucleus is the smallest set of tokens whose mass reaches top_p, of the
    top-k's mass (as transformers and vLLM have it)."""
    if top_k == 0 and top_p == 1.0:
        return probs
    size = probs.shape[-1]
    wanted = min(top_k or _NUCLEUS, size)
    ordered, order = probs.topk(wanted, dim=-1)
    if not top_k and bool((ordered.sum(-1) < top_p).any()):
        ordered, order = probs.topk(size, dim=-1)
    whole = ordered.sum(-1, keepdim=True) if top_k else 1.0
    keep = ordered.cumsum(-1) - ordered < top_p * whole
    return torch.zeros_like(probs).scatter(-1, order, ordered * keep)


def inverse_cdf(probs: Tensor, uniform: Tensor) -> Tensor:
    """The token at which the cumulated mass [B, V] passes uniform * total, [B] in [0, 1); never one without mass.

    First the block of tokens is found, then the token in it: the mass of a whole vocabulary is summed, not cumulated.
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
    """Where the cumulated mass [B, N] passes the target [B, 1]; rounding may point behind the last place with mass."""
    places = torch.arange(mass.shape[-1], device=mass.device)
    last = torch.where(mass > 0, places, 0).amax(-1, keepdim=True)
    return torch.minimum(torch.searchsorted(cumulated, target, right=True), last)
