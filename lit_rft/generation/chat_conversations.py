"""Conversations sampled by an OpenAI-compatible server."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from lit_rft._seeds import derive_seed
from lit_rft.generation.chat_server import ChatServer
from lit_rft.generation.choices import TokenTrie
from lit_rft.generation.full_histories import Conversation, FullHistories
from lit_rft.generation.sampling import Completion, SamplingSettings
from lit_rft.transcripts import MessageFormat


class ChatConversations(FullHistories):
    """`ConversationGenerator` with an OpenAI-compatible server: each turn is a request with the full conversation.

    Log-probabilities are unknown: NaN in all completions, which cannot be trained on.

    Args:
        server: samples the utterances.
        chat: format of the ids.
        sampling: temperature, top-p, maximum number of tokens, and stop strings.
        num_slots: maximum number of conversations at the same time.
        seed: of all requests; each has its own, by the conversation's name and turn. A server may ignore it.

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
            ChatServerError: The server fails.
        """
        if choices:
            raise ValueError("an OpenAI-compatible server does not sample among given choices: unset admissible.choose")
        conversations = list(self.append(prompts).values())
        self.tokens_read += sum(map(len, prompts.values()))
        with ThreadPoolExecutor(self.server.settings.parallel_requests) as threads:
            completions = list(threads.map(self._complete, conversations))
        for conversation, completion in zip(conversations, completions, strict=True):
            conversation.history += completion.ids
            conversation.turn += 1
            self.tokens_sampled += len(completion.ids)
        return dict(zip(prompts, completions, strict=True))

    def _complete(self, conversation: Conversation) -> Completion:
        sampling = self.sampling
        answer = self.server.complete(
            self.chat.messages(conversation.history),
            max_tokens=sampling.max_new_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            stop=list(sampling.stop_strings) or None,
            # servers take 31 bits; one seed for all would make all samples of a prompt the same
            seed=derive_seed(self.seed, conversation.name, conversation.turn) % 2**31,
        )
        ids = self.chat.utterance(answer.text)
        ids = ids if answer.finished or len(ids) == 1 else ids[:-1]
        return Completion(ids, [float("nan")] * len(ids), answer.finished)
