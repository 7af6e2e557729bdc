"""Stored episodes as an agent's transcripts, and the outcomes of their decisions."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lit_rft.agents.admissible import recorded_actions
from lit_rft.agents.base import Act, Agent, Ask, Session
from lit_rft.agents.contexts import make_context
from lit_rft.agents.lines import shortened
from lit_rft.agents.optional import acting_levels, admissible_actions, admit, notice, prepare
from lit_rft.episodes import Episode
from lit_rft.generation import TokenTrie
from lit_rft.transcripts import ChatFormat, DecisionOutcome, Transcript

UTTERANCES = "utterances"  # key of a record's `extra`: level -> the policy's utterances as text
NOTES = "notes"  # key of a record's `extra`: `EpisodeSpec.notes`
TOKENS = "tokens"  # key of a record's `extra`: `read` and `sampled`, numbers of tokens of a played episode
THOUGHTS = "thoughts"  # key of a record's `extra`: a thought before each step, in annotated episodes


def replay(
    session: Session,
    episode: Episode,
    chat: ChatFormat,
    utterances: Mapping[str, Sequence[str]],
    *,
    keep_thoughts: bool = True,
    keep_turns: bool = True,
    max_length: int | None = None,
) -> list[Transcript]:
    """Replay a stored episode with a session: the same prompts, with the given utterances.

    A policy is thereby trained on exactly the tokens of its play.

    Args:
        session: of this episode, not started yet.
        episode: the record.
        chat: writes the utterances as token ids.
        utterances: texts of each level, in order.
        keep_thoughts: whether levels read their earlier thoughts again; see `Agent`.
        keep_turns: whether levels read their earlier turns again; see `Agent`.
        max_length: context length of levels that do not; None for any.

    Returns:
        The transcripts of each level of `utterances`; none for an episode without steps.

    Raises:
        ValueError: If the session's actions differ from the record's.
    """
    if not episode.steps:
        return []
    contexts = {
        level: make_context(Transcript(level, chat.end_of_turn_id, episode.id), chat, keep_thoughts, keep_turns)
        for level in utterances
    }
    texts = {level: iter(lines) for level, lines in utterances.items()}
    prepare(session, episode.task, texts_of(episode, NOTES))
    _admit(session, episode, 0)
    turn = session.start(episode.task_description, episode.initial_observation)
    for index, step in enumerate(episode.steps):
        if index:
            notice(session, episode.steps[index - 1])
            _admit(session, episode, index)
            turn = session.observe(episode.steps[index - 1].observation)
        while isinstance(turn, Ask):
            text = next(texts[turn.level], None)
            if text is None:
                raise ValueError(f"episode {episode.id!r}: no {turn.level}-level utterance is left at step {index}")
            context, ids = contexts[turn.level], chat.utterance(text)
            context.read(turn.ids)
            if max_length is not None and not context.append_only:
                if len(ids) >= max_length:
                    raise ValueError(
                        f"episode {episode.id!r}: an utterance of {len(ids)} tokens does not fit into "
                        f"max_length={max_length}; raise it, or leave the episode out"
                    )
                context.shorten(max_length - len(ids))
            context.write(ids, TokenTrie(turn.choices).allowed_along(ids) if ids in turn.choices else None)
            turn = session.receive(text)
        if not isinstance(turn, Act) or turn.text != step.action:
            raise ValueError(f"episode {episode.id!r}, step {index}: expected the action {step.action!r}, got {turn}")
    return [made for context in contexts.values() for made in context.transcripts if made.num_decisions]


def _admit(session: Session, episode: Episode, index: int) -> None:
    admit(session, recorded_actions(episode, index))


def _observation(agent: Agent, episode: Episode, index: int, level: str) -> str:
    """Return the observation after `index` steps, as a level reads it."""
    text, settings = episode.steps[index - 1].observation, admissible_actions(agent)
    if settings is None or level not in acting_levels(agent):
        return text
    return settings.text(text, settings.within_limits(recorded_actions(episode, index)))


def recorded_utterances(
    episode: Episode, level: str, rendered: Sequence[str], means: Callable[[str, int], bool]
) -> list[str]:
    """Return the utterances of a level: those in the record, word for word, and `rendered` for the others.

    Args:
        episode: the record.
        level: of the agent.
        rendered: text of each utterance, from the record's actions and subgoals.
        means: whether a text, parsed as the utterance of an index, has the record's action or subgoal: a record of
            another agent or format has other texts.
    """
    recorded = texts_of(episode, UTTERANCES, level)
    return [
        recorded[index] if index < len(recorded) and means(recorded[index], index) else text
        for index, text in enumerate(rendered)
    ]


def recorded_thoughts(episode: Episode) -> list[str]:
    """Return a thought for each step; empty texts if the record has none."""
    thoughts = texts_of(episode, THOUGHTS)
    return [*thoughts, *[""] * (len(episode.steps) - len(thoughts))]


def texts_of(episode: Episode, *keys: str) -> list[str]:
    """Return a list of texts in a record's `extra`; empty if there is none.

    Raises:
        ValueError: If something else is there.
    """
    value: Any = episode.extra
    for key in keys:
        value = value.get(key, {}) if isinstance(value, dict) else value
    value = value or []
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise ValueError(f"episode {episode.id!r}: expected a list of texts as extra.{'.'.join(keys)}, got {value!r}")
    return list(value)


def add_outcomes(
    transcripts: Sequence[Transcript], episode: Episode, chat: ChatFormat, agent: Agent
) -> list[Transcript]:
    """Add the outcomes of decisions.

    The state after the last decision is appended only as far as the agent's context has room for it behind that
    decision, whose own context must not change. Where it is too long, its observation is cut at the end (`[...]`), and
    the value is that of the cut state; without room for any of it, V(s') is read at the end of the utterance. So no
    decision that was played is lost for its next state.

    Args:
        transcripts: of this episode, from its record or from play; early turns may have been dropped.
        episode: the record.
        chat: writes the state after the last decision.
        agent: the agent of the transcripts.

    Returns:
        Copies that end with the state after the last decision, unless that decision terminated its level or fills the
        context. A last utterance that produced no step (a subgoal without an action) is left out; so is a transcript
        without any decision.

    Raises:
        ValueError: If the episode lacks required parts, such as subgoals.
    """
    completed = []
    for transcript in transcripts:
        known = agent.outcomes(episode, transcript.level)
        outcomes = known[transcript.first_decision :][: transcript.num_decisions]
        if not outcomes:
            continue
        extended = transcript.first_decisions(len(outcomes))
        extended.outcomes = outcomes
        steps = sum(outcome.steps for outcome in known[: transcript.first_decision + len(outcomes)])
        completed.append(_with_next_state(extended, episode, steps, chat, agent))
    return completed


def _with_next_state(
    transcript: Transcript, episode: Episode, steps: int, chat: ChatFormat, agent: Agent
) -> Transcript:
    """Return a transcript with the prompt after its last decision, of `steps` steps, as far as the context permits."""
    room = transcript.room_after_last_decision(agent.max_length)
    present = len(transcript) - 1 - transcript.utterance_ends[-1]  # as it was played
    if 0 < present <= room or (not present and transcript.outcomes[-1].terminated):
        return transcript
    decided = transcript.without_last_prompt()
    if not transcript.outcomes[-1].terminated:

        def prompt(observation: str) -> list[int]:
            return chat.turn(agent.update(transcript.level, observation))

        observation = _observation(agent, episode, steps, transcript.level)
        fitting = shortened(observation, lambda text: len(prompt(text)) <= room)
        if fitting is not None:
            decided.append_prompt(prompt(fitting))
    return decided


def step_outcomes(episode: Episode) -> list[DecisionOutcome]:
    """Return the outcomes of a level that decides once per step: the environment's rewards.

    A time limit does not terminate: the value of the next state is bootstrapped.
    """
    last = len(episode.steps) - 1 if episode.outcome.terminated else -1
    return [DecisionOutcome(step.reward, 1, index == last) for index, step in enumerate(episode.steps)]


def learnable_transcripts(
    played: list[Transcript], episode: Episode, chat: ChatFormat, agent: Agent
) -> list[Transcript]:
    """Return played transcripts with their outcomes, as far as the agent's context permits; none without a decision.

    Args:
        played: of some or all levels, token for token as they were played.
        episode: its record.
        chat: chat format of the tokenizer.
        agent: the agent that played.
    """
    transcripts = []
    for transcript in add_outcomes(played, episode, chat, agent):
        with contextlib.suppress(ValueError):  # a decision and its state alone are longer than the context
            transcripts.append(transcript.truncated(agent.max_length))
    return [transcript for transcript in transcripts if transcript.num_decisions]
