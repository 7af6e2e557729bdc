"""Stored episodes as an agent's transcripts, and what each of their decisions led to."""

from collections.abc import Mapping, Sequence

from lit_rft.agents.base import Act, Agent, Ask, Session
from lit_rft.episodes import Episode
from lit_rft.transcripts import ChatFormat, DecisionOutcome, Transcript


def replay(
    session: Session, episode: Episode, chat: ChatFormat, utterances: Mapping[str, Sequence[str]]
) -> list[Transcript]:
    """Let a session play a stored episode again: it reads what it read, and writes the given utterances.

    A policy is thereby trained on exactly what it reads when it plays.

    Args:
        session: of this episode, not started yet.
        episode: the record.
        chat: writes the utterances as token ids.
        utterances: texts of each level, in order.
    Returns: the transcript of each level of `utterances`; none for an episode without steps.
    Raises: ValueError if the session plays anything but the record's actions.
    """
    if not episode.steps:
        return []
    transcripts = {level: Transcript(level, chat.end_of_turn_id, episode.id) for level in utterances}
    texts = {level: iter(lines) for level, lines in utterances.items()}
    turn = session.start(episode.task_description, episode.initial_observation)
    for index, step in enumerate(episode.steps):
        if index:
            turn = session.observe(episode.steps[index - 1].observation)
        while isinstance(turn, Ask):
            text = next(texts[turn.level], None)
            if text is None:
                raise ValueError(f"episode {episode.id!r}: no {turn.level}-level utterance is left at step {index}")
            transcripts[turn.level].append_prompt(turn.ids)
            transcripts[turn.level].append_utterance(chat.utterance(text))
            turn = session.receive(text)
        if not isinstance(turn, Act) or turn.text != step.action:
            raise ValueError(f"episode {episode.id!r}, step {index}: expected the action {step.action!r}, got {turn}")
    return [transcript for transcript in transcripts.values() if transcript.num_decisions]


def add_outcomes(
    transcripts: Sequence[Transcript], episode: Episode, chat: ChatFormat, agent: Agent
) -> list[Transcript]:
    """Add what each decision led to.

    Args:
        transcripts: of this episode, from its record or as they were played; early turns may have been dropped.
        episode: the record.
        chat: writes the state after the last decision.
        agent: whose transcripts they are.
    Returns: copies that end with the state after the last decision, unless that decision terminated its level. A last
        utterance that produced no step (a subgoal without an action) is left out; so is a transcript without any
        decision.
    Raises: ValueError if the episode lacks what the agent needs, such as subgoals.
    """
    completed = []
    for transcript in transcripts:
        outcomes = agent.outcomes(episode, transcript.level)[transcript.dropped_turns :]
        ended = transcript.first_decisions(len(outcomes)) if transcript.num_decisions > len(outcomes) else transcript
        if not outcomes:
            continue
        extended = ended.copy()
        extended.outcomes = outcomes
        if not outcomes[-1].terminated and extended.utterance_ends[-1] == len(extended) - 1:
            observation = episode.steps[-1].observation
            extended.append_prompt(chat.turn(agent.update(transcript.level, observation)))
        completed.append(extended)
    return completed


def step_outcomes(episode: Episode) -> list[DecisionOutcome]:
    """Outcomes of a level that decides once per step: the environment's rewards.

    A time limit does not terminate: the value of the next state stands for what would have come.
    """
    last = len(episode.steps) - 1 if episode.outcome.terminated else -1
    return [DecisionOutcome(step.reward, 1, index == last) for index, step in enumerate(episode.steps)]
