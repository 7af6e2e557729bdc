"""Conversations sampled by a completion backend."""

from collections.abc import Mapping, Sequence

from lit_rft.generation.backends import CompletionBackend, ServedAdapter
from lit_rft.generation.choices import TokenTrie
from lit_rft.generation.full_histories import FullHistories
from lit_rft.generation.sampling import Completion, SamplingSettings, as_ids


class ServedConversations(FullHistories):
    """`ConversationGenerator` with vLLM: each turn is a request with the full conversation.

    It keeps keys and values of the beginning (vLLM's prefix cache).

    Args:
        backend: samples the utterances.
        adapter: of the policy.
        end_ids: all tokens that end an utterance, including the model's own (`ChatFormat.end_ids`).
        sampling: temperature, limits and stop criteria.
        num_slots: maximum number of conversations at the same time.
        seed: of all random numbers.
    """

    def __init__(
        self,
        backend: CompletionBackend,
        adapter: ServedAdapter,
        end_ids: int | Sequence[int],
        sampling: SamplingSettings,
        *,
        num_slots: int,
        seed: int = 0,
    ) -> None:
        self.backend, self.adapter, self.sampling, self.seed = backend, adapter, sampling, seed
        self._end_ids = as_ids(end_ids)
        super().__init__(num_slots)

    def sample(
        self, prompts: Mapping[int, Sequence[int]], choices: Mapping[int, TokenTrie] | None = None
    ) -> dict[int, Completion]:
        """Read each slot's new prompt ids and sample its next utterance.

        Args:
            prompts: slot -> new ids since its last utterance (at least one).
            choices: not supported.

        Raises:
            ValueError: A slot has no new ids, or choices are given.
            RuntimeError: The backend fails.
        """
        if choices:
            raise ValueError(
                "a generation server does not sample among given choices: unset acting.server, or the agent's "
                "admissible.choose"
            )
        conversations = self.append(prompts)
        self.tokens_read += sum(map(len, prompts.values()))
        named = [(f"{state.name}/{state.turn}", state.history) for state in conversations.values()]
        groups = self.backend.sample_groups(
            self.adapter, named, [1] * len(named), self.sampling, self._end_ids, seed=self.seed
        )
        completions = {slot: sampled for slot, (sampled,) in zip(conversations, groups, strict=True)}
        for slot, sampled in completions.items():
            conversations[slot].history += sampled.ids
            conversations[slot].turn += 1
            self.tokens_sampled += len(sampled.ids)
        return completions
