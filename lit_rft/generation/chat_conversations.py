"""Conversations sampled by an OpenAI-compatible server."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from lit_rft.generation.chat_server import ChatServer
from lit_rft.generation.choices import TokenTrie
from lit_rft.generation.sampling import Completion, SamplingSettings
from lit_rft.generation.slots import Slots, check_new_ids
from lit_rft.transcripts import MessageFormat


@dataclass
class _Conversation:
    """The state of a slot between turns."""

    name: str
    history: list[int] = field(default_factory=list)


class ChatConversations:
    """`ConversationGenerator` with an OpenAI-compatible server: each turn is a request with the full conversation.

    Log-probabilities are unknown: NaN in all completions, which cannot be trained on.

    Args:
        server: samples the utterances.
        chat: format of the ids.
        sampling: temperature, top-p, maximum number of tokens, and stop strings.
        num_slots: maximum number of conversations at the same time.
        seed: of the requests; a server may ignore it.

    Raises:
        ValueError: For settings that such a server does not have.
    """

    def __init__(
        self, server: ChatServer, chat: MessageFormat, sampling: SamplingSettings, *, num_slots: int, seed: int = 0
    ) -> None:
        if sampling.top_k or sampling.stop_token_ids:
            raise ValueError(
                "an OpenAI-compatible server has no top_k and stop_token_ids: set acting.sampling without them, or use "
                "acting.chat_server.body for a server's own fields"
            )
        self.server, self.chat, self.sampling, self.seed = server, chat, sampling, seed
        self._conversations: Slots[_Conversation] = Slots(num_slots)
        self.tokens_read = self.tokens_sampled = 0

    def open(self, name: str) -> int:
        """Start a conversation and return its slot.

        Raises:
            RuntimeError: All slots are taken.
        """
        return self._conversations.open(_Conversation(name))

    def close(self, slot: int) -> None:
        """End a conversation and free its slot."""
        self._conversations.close(slot)

    def forget(self, slot: int) -> None:
        """Clear a conversation's history."""
        self._conversations[slot].history = []

    def sample(
        self, prompts: Mapping[int, Sequence[int]], choices: Mapping[int, TokenTrie] | None = None
    ) -> dict[int, Completion]:
        """Read each slot's new prompt ids and sample its next utterance.

        Args:
            prompts: slot -> new ids since its last utterance (at least one).
            choices: not supported.

        Raises:
            ValueError: A slot has no new ids, or choices are given.
            ChatServerError: The server fails.
        """
        check_new_ids(prompts)
        if choices:
            raise ValueError("an OpenAI-compatible server does not sample among given choices: unset admissible.choose")
        conversations = [self._conversations[slot] for slot in prompts]
        for slot, conversation in zip(prompts, conversations, strict=True):
            conversation.history += prompts[slot]
            self.tokens_read += len(prompts[slot])
        with ThreadPoolExecutor(self.server.settings.parallel_requests) as threads:
            completions = list(threads.map(self._complete, conversations))
        for conversation, completion in zip(conversations, completions, strict=True):
            conversation.history += completion.ids
            self.tokens_sampled += len(completion.ids)
        return dict(zip(prompts, completions, strict=True))

    def _complete(self, conversation: _Conversation) -> Completion:
        sampling = self.sampling
        answer = self.server.complete(
            self.chat.messages(conversation.history),
            max_tokens=sampling.max_new_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            stop=list(sampling.stop_strings) or None,
            seed=self.seed,
        )
        ids = self.chat.utterance(answer.text)
        ids = ids if answer.finished or len(ids) == 1 else ids[:-1]
        return Completion(ids, [float("nan")] * len(ids), answer.finished)
