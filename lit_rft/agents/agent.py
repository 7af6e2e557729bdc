"""Agents: who acts in an episode. An agent is settings; a session is one episode in progress.

A session never calls the model. It says what is to be read next (`unread`), takes what was sampled (`receive`), and
answers with an action, or with None if it needs another utterance first: a loop over many sessions samples for all of
them in one forward pass.
"""

from dataclasses import dataclass, replace
from typing import Protocol

from lit_rft.agents.conversation import Conversation
from lit_rft.episodes import Subgoal
from lit_rft.generation import Completion, Conversations
from lit_rft.transcripts import (
    ChatFormat,
    HierarchyPrompts,
    Transcript,
    parse_low_level_answer,
    parse_single_line,
)


class Session(Protocol):
    """One episode in progress; `malformed` counts answers without the agreed form, `generator` is the one that has to
    sample the next utterance."""

    malformed: int

    def start(self, task_description: str, observation: str) -> None: ...
    def unread(self) -> tuple[int, list[int]]: ...
    def receive(self, sampled: Completion) -> str | None: ...
    def observe(self, observation: str) -> None: ...
    def finish(self) -> None: ...
    def subgoals(self, num_steps: int) -> list[Subgoal]: ...
    def conversations(self) -> list[Conversation]: ...
    @property
    def generator(self) -> Conversations: ...


class Agent(Protocol):
    """Makes sessions; `conversations` is how many slots of the generator one session takes.

    The low level, where there is one, may have a generator of its own (with other weights, say).
    """

    conversations: int

    def session(
        self,
        episode_id: str,
        generator: Conversations,
        low_generator: Conversations | None = None,
    ) -> Session: ...


@dataclass(frozen=True)
class HierarchicalAgent:
    """Two levels: the high level writes subgoals, the low level acts until its flag says that the subgoal
    is done, or until `subgoal_steps` are spent (GLIDER).

    Args:
        chat: how the model's tokenizer writes conversations.
        prompts: what each level reads.
        max_length: context length of each level in tokens.
        subgoal_steps: steps after which a subgoal ends by itself.
    """

    chat: ChatFormat
    prompts: HierarchyPrompts
    max_length: int = 2048
    subgoal_steps: int = 16
    conversations = 2

    def session(
        self,
        episode_id: str,
        generator: Conversations,
        low_generator: Conversations | None = None,
    ) -> "HierarchicalSession":
        return HierarchicalSession(self, episode_id, generator, low_generator or generator)


class HierarchicalSession:
    """One episode of a `HierarchicalAgent`: each level has one conversation over the whole episode."""

    def __init__(
        self,
        agent: HierarchicalAgent,
        episode_id: str,
        high_generator: Conversations,
        low_generator: Conversations,
    ) -> None:
        self.agent = agent
        end = agent.chat.end_of_turn_id
        self.high = Conversation(high_generator, Transcript("high", end, episode_id), agent.max_length)
        self.low = Conversation(low_generator, Transcript("low", end, episode_id), agent.max_length)
        self.malformed = 0
        self._steps = 0
        self._spans: list[Subgoal] = []
        self._deciding = self.high
        self._subgoal_over = False

    @property
    def generator(self) -> Conversations:
        return self._deciding.generator

    def start(self, task_description: str, observation: str) -> None:
        prompts = self.agent.prompts
        self._task, self._observation = task_description, observation
        self.high.read(self.agent.chat.head(prompts.high, prompts.high_opening(task_description, observation)))

    def unread(self) -> tuple[int, list[int]]:
        return self._deciding.slot, self._deciding.unread()

    def receive(self, sampled: Completion) -> str | None:
        self._deciding.write(sampled)
        text = self.agent.chat.text(sampled.ids)
        if self._deciding is self.low:
            return self._act(text)
        self._begin_subgoal(text)
        return None

    def observe(self, observation: str) -> None:
        """Take what the environment answered to the last action; the level that must decide next reads it."""
        chat, prompts = self.agent.chat, self.agent.prompts
        self._observation = observation
        if self._subgoal_over:
            self._deciding = self.high
            self.high.read(chat.turn(prompts.high_update(observation)))
        else:
            self.low.read(chat.turn(prompts.low_update(observation)))

    def finish(self) -> None:
        """Free the generator's slots."""
        for conversation in self.conversations():
            conversation.close()

    def subgoals(self, num_steps: int) -> list[Subgoal]:
        """Subgoals over the first `num_steps` steps; one that got no step is left out."""
        spans = [replace(span, end=min(span.end, num_steps)) for span in self._spans]
        return [span for span in spans if span.end > span.start]

    def conversations(self) -> list[Conversation]:
        return [self.high, self.low]

    def _begin_subgoal(self, text: str) -> None:
        goal, malformed = parse_single_line(text)
        self.malformed += malformed
        chat, prompts = self.agent.chat, self.agent.prompts
        if self._spans:
            self.low.read(chat.turn(prompts.low_update(self._observation, goal)))
        else:
            opening = prompts.low_opening(self._task, self._observation, goal)
            self.low.read(chat.head(prompts.low, opening))
        self._spans.append(Subgoal(self._steps, self._steps, goal or "(none)", completed=False, annotator="policy"))
        self._deciding, self._subgoal_over = self.low, False

    def _act(self, text: str) -> str:
        answer = parse_low_level_answer(text)
        self.malformed += answer.malformed
        self._steps += 1
        span = self._spans[-1]
        span.end, span.completed = self._steps, answer.subgoal_done
        self._subgoal_over = answer.subgoal_done or span.end - span.start >= self.agent.subgoal_steps
        return answer.action


@dataclass(frozen=True)
class FlatAgent:
    """No hierarchy: one conversation of observations and actions (the baseline of GLIDER's ablations).

    Args: see `HierarchicalAgent`.
    """

    chat: ChatFormat
    prompts: HierarchyPrompts
    max_length: int = 2048
    conversations = 1

    def session(
        self,
        episode_id: str,
        generator: Conversations,
        low_generator: Conversations | None = None,
    ) -> "FlatSession":
        return FlatSession(self, episode_id, generator)


class FlatSession:
    """One episode of a `FlatAgent`."""

    def __init__(self, agent: FlatAgent, episode_id: str, generator: Conversations) -> None:
        self.agent = agent
        transcript = Transcript("flat", agent.chat.end_of_turn_id, episode_id)
        self.conversation = Conversation(generator, transcript, agent.max_length)
        self.malformed = 0

    @property
    def generator(self) -> Conversations:
        return self.conversation.generator

    def start(self, task_description: str, observation: str) -> None:
        prompts = self.agent.prompts
        self.conversation.read(self.agent.chat.head(prompts.flat, prompts.flat_opening(task_description, observation)))

    def unread(self) -> tuple[int, list[int]]:
        return self.conversation.slot, self.conversation.unread()

    def receive(self, sampled: Completion) -> str:
        self.conversation.write(sampled)
        action, malformed = parse_single_line(self.agent.chat.text(sampled.ids))
        self.malformed += malformed
        return action

    def observe(self, observation: str) -> None:
        self.conversation.read(self.agent.chat.turn(self.agent.prompts.update("flat", observation)))

    def finish(self) -> None:
        self.conversation.close()

    def subgoals(self, num_steps: int) -> list[Subgoal]:
        return []

    def conversations(self) -> list[Conversation]:
        return [self.conversation]
