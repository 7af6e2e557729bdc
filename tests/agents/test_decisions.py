"""Decisions of episodes: states, subgoals and rewards, whatever turns a transcript has kept."""

import dataclasses

import pytest

from lit_rft.agents import FlatAgent, HierarchicalAgent, HierarchyPrompts, transcript_decisions
from lit_rft.episodes import Outcome
from lit_rft.testing.tiny import make_episode, make_tokenizer
from lit_rft.transcripts import ChatFormat, Transcript

AGENT, FLAT = HierarchicalAgent(HierarchyPrompts(high="Plan.", low="Act.")), FlatAgent("Act.")
CHAT = ChatFormat(make_tokenizer())


def test_each_decision_has_its_state_subgoal_and_rewards() -> None:
    episode = make_episode(num_steps=5)
    high, low = AGENT.transcripts(episode, CHAT)
    plans, actions = (transcript_decisions(t, episode, AGENT) for t in (high, low))
    seen = [episode.initial_observation, *[step.observation for step in episode.steps]]
    rewards = [step.reward for step in episode.steps]
    assert [(d.level, d.state, d.goal, d.segment, d.step) for d in plans] == [
        ("high", seen[0], "", 0, 0), ("high", seen[2], "", 1, 2),
    ]  # fmt: skip
    assert [d.rewards for d in plans] == [tuple(rewards[:2]), tuple(rewards[2:])]
    assert [d.state for d in actions] == seen[:-1] and [d.rewards for d in actions] == [(r,) for r in rewards]
    assert [(d.goal, d.segment) for d in actions] == [("go to the kitchen", 0)] * 2 + [("focus on a plant", 1)] * 3
    assert [d.terminated for d in plans] == [False, True]
    assert [d.terminated for d in actions] == [False] * 4 + [True]
    assert [d.completed for d in actions] == [False, True, False, False, True]
    (flat,) = FLAT.transcripts(episode, CHAT)
    decisions = transcript_decisions(flat, episode, FLAT)
    assert [d.state for d in decisions] == seen[:-1] and {(d.goal, d.level) for d in decisions} == {("", "flat")}
    plain = make_episode(num_steps=2, subgoals=False)
    assert {d.segment for t in FLAT.transcripts(plain, CHAT) for d in transcript_decisions(t, plain, FLAT)} == {-1}


def test_a_time_limit_does_not_terminate() -> None:
    episode = make_episode(num_steps=3)
    episode = dataclasses.replace(episode, outcome=Outcome(1.0, False, False, True, "step_limit"))
    for transcript in AGENT.transcripts(episode, CHAT):
        assert not any(d.terminated for d in transcript_decisions(transcript, episode, AGENT))


def test_dropped_turns_are_left_out_and_an_utterance_without_a_step_is_not() -> None:
    episode = make_episode(num_steps=5)
    (flat,) = FLAT.transcripts(episode, CHAT)
    every = transcript_decisions(flat, episode, FLAT)
    short = flat.truncated(len(flat) - 5)
    assert 0 < short.dropped_turns < 5
    assert transcript_decisions(short, episode, FLAT) == every[short.dropped_turns :]
    flat.append_prompt([7, 8])
    flat.append_utterance([9, 2])
    last = transcript_decisions(flat, episode, FLAT)[-1]
    assert (last.state, last.step, last.rewards, last.terminated) == (episode.steps[-1].observation, 5, (), False)


def test_an_agent_without_memory_of_its_thoughts_has_a_transcript_per_decision() -> None:
    episode = make_episode(num_steps=3)
    agent = dataclasses.replace(FLAT, keep_thoughts=False)
    transcripts: list[Transcript] = agent.transcripts(episode, CHAT)
    assert len(transcripts) == 3
    steps = [[d.step for d in transcript_decisions(t, episode, agent)] for t in transcripts]
    assert steps == [[0], [1], [2]]


@pytest.mark.parametrize("agent", [FLAT, AGENT], ids=["flat", "hierarchy"])
def test_rewards_of_a_level_add_up_to_the_return(agent: FlatAgent | HierarchicalAgent) -> None:
    episode = make_episode(num_steps=4)
    for transcript in agent.transcripts(episode, CHAT):
        total = sum(sum(d.rewards) for d in transcript_decisions(transcript, episode, agent))
        assert total == pytest.approx(episode.total_reward)
