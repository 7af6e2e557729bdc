"""Conversations whose utterances are the best of several samples, by a score such as a critic's Q."""

import contextlib
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from lit_rft.generation.choices import TokenTrie
from lit_rft.generation.full_histories import FullHistories
from lit_rft.generation.groups import sample_groups
from lit_rft.generation.sampling import Completion, SamplingSettings, as_ids

# contexts and utterances, as token ids -> a score of each, [N]
Score = Callable[[Sequence[tuple[Sequence[int], Sequence[int]]]], Tensor]


class BestOfConversations(FullHistories):
    """`ConversationGenerator` that samples several utterances and keeps the one with the highest score.

    Each turn prefills the full conversation once for all samples: no keys and values are kept between turns.

    Args:
        model, end_ids, sampling, num_slots, seed, decode, acting: see `ConversationGenerator`.
        number: samples per utterance, >= 1.
        score: of utterances in their contexts.

    Raises:
        ValueError: For a number below 1, or several greedy samples, which are identical.
    """

    def __init__(
        self,
        model: nn.Module,
        end_ids: int | Sequence[int],
        sampling: SamplingSettings,
        *,
        num_slots: int,
        number: int,
        score: Score,
        seed: int = 0,
        decode: Callable[[list[int]], str] | None = None,
        acting: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> None:
        if number < 1:
            raise ValueError(f"the number of samples must be >= 1, got {number}")
        if number > 1 and sampling.temperature == 0:
            raise ValueError(
                f"the best of {number} greedy samples, which are identical: set sampling.temperature above 0"
            )
        self._model, self._end_ids, self.sampling, self._seed = model, as_ids(end_ids), sampling, seed
        self._number, self._score, self._decode, self._acting = number, score, decode, acting
        super().__init__(num_slots)

    @torch.no_grad()
    def sample(
        self, prompts: Mapping[int, Sequence[int]], choices: Mapping[int, TokenTrie] | None = None
    ) -> dict[int, Completion]:
        """Read each slot's new prompt ids, sample its next utterance several times and keep the best.

        Args:
            prompts: slot -> new ids since its last utterance (at least one).
            choices: slot -> utterances among which it chooses; other slots are free.
        """
        states = self.append(prompts)
        self.tokens_read += sum(len(state.history) for state in states.values())
        groups = sample_groups(
            self._model, [(f"{state.name}/{state.turn}", state.history) for state in states.values()],
            [self._number] * len(states), self.sampling, self._end_ids, seed=self._seed, decode=self._decode,
            acting=self._acting, max_concurrent=self._number * len(states),
            choices={n: choices[slot] for n, slot in enumerate(states) if slot in choices} if choices else None,
        )  # fmt: skip
        best = {}
        for (slot, state), group in zip(states.items(), groups, strict=True):
            self.tokens_sampled += sum(len(completion.ids) for completion in group)
            best[slot] = self._best(state.history, group)
            state.history += best[slot].ids
            state.turn += 1
        return best

    def _best(self, history: Sequence[int], group: Sequence[Completion]) -> Completion:
        """Return the completion with the highest score, the first of equals."""
        different = list({tuple(completion.ids): completion for completion in reversed(group)}.values())[::-1]
        if len(different) == 1:
            return different[0]
        scores = self._score([(history, completion.ids) for completion in different])
        return different[int(scores.argmax())]
