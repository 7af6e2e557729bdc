"""Conversations sampled by an OpenAI-compatible server."""

import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lit_rft.generation.chat_server import ChatServer
from lit_rft.generation.choices import TokenTrie
from lit_rft.generation.completions_api import prompt_seed
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
        seed: of the requests, each of which gets its own by its conversation and turn; a server may ignore it.

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
        completions = _in_threads(self._complete, conversations, self.server.settings.parallel_requests)
        for conversation, completion in zip(conversations, completions, strict=True):
            conversation.history += completion.ids
            conversation.turn += 1
            self.tokens_sampled += len(completion.ids)
        return dict(zip(prompts, completions, strict=True))

    def _complete(self, conversation: Conversation, stop: threading.Event) -> Completion:
        sampling = self.sampling
        answer = self.server.complete(
            self.chat.messages(conversation.history),
            stopped=stop.is_set,
            max_tokens=sampling.max_new_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            stop=list(sampling.stop_strings) or None,
            seed=prompt_seed(self.seed, f"{conversation.name}/{conversation.turn}"),
        )
        ids = self.chat.utterance(answer.text)
        ids = ids if answer.finished or len(ids) == 1 else ids[:-1]
        return Completion(ids, [float("nan")] * len(ids), answer.finished)


def _in_threads(
    function: Callable[[Any, threading.Event], Completion], items: Sequence[Any], number: int
) -> list[Completion]:
    """Apply a function to all items; an error or Ctrl-C ends this at once, without waiting for requests in progress.

    The threads of a `ThreadPoolExecutor` would be waited for, also at the end of the process.

    Args:
        function: of an item, and of an event that is set at the end.
        items: its arguments.
        number: maximum number of threads.
    """
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[int, Completion | Exception]] = queue.SimpleQueue()
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            try:
                index = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                done.put((index, function(items[index], stop)))
            except Exception as error:  # raised below
                done.put((index, error))

    for index in range(len(items)):
        waiting.put(index)
    results: dict[int, Completion] = {}
    try:
        for _ in range(min(number, len(items))):
            threading.Thread(target=work, daemon=True).start()
        while len(results) < len(items):
            index, result = done.get()
            if isinstance(result, Exception):
                raise result
            results[index] = result
    finally:
        stop.set()
    return [results[index] for index in range(len(items))]
