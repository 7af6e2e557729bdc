"""What each decision led to: rewards, ends and the state after the last decision, at each level."""

import dataclasses

import pytest
import torch

from lit_rft.agents import (
    Agent,
    FlatAgent,
    HierarchicalAgent,
    HierarchyPrompts,
    SwiftAgent,
    add_outcomes,
    learnable_transcripts,
)
from lit_rft.datamodules.rendering import within_context
from lit_rft.episodes import Episode, Outcome, Subgoal
from lit_rft.episodes.subgoals import condition_text
from lit_rft.testing.tiny import make_episode, make_tokenizer
from lit_rft.transcripts import (
    ChatFormat,
    Transcript,
    collate_packed,
    collate_padded,
)

AGENT, FLAT = HierarchicalAgent(HierarchyPrompts(high="Plan.", low="Act.")), FlatAgent("Act.")


def make_chat() -> ChatFormat:
    return ChatFormat(make_tokenizer())


def cut(episode: Episode, completed: bool = False) -> Episode:
    """The same episode, ended by a time limit, in the middle of its last subgoal unless that is completed."""
    last = dataclasses.replace(episode.subgoals[-1], completed=completed)
    outcome = Outcome(episode.outcome.score, False, False, True, "step_limit")
    return dataclasses.replace(episode, outcome=outcome, subgoals=[*episode.subgoals[:-1], last])


def both_levels(episode: Episode) -> list[Transcript]:
    chat = make_chat()
    return add_outcomes(AGENT.transcripts(episode, chat), episode, chat, AGENT)


def test_high_level_earns_the_environments_reward_low_level_the_intrinsic_one() -> None:
    episode = make_episode(num_steps=5)
    high, low = both_levels(episode)
    spans = [(s.start, s.end) for s in episode.subgoals]
    assert [o.reward for o in high.outcomes] == pytest.approx(
        [sum(step.reward for step in episode.steps[a:b]) for a, b in spans]
    )
    assert [o.steps for o in high.outcomes] == [b - a for a, b in spans]
    assert [o.terminated for o in high.outcomes] == [False, True]
    assert [o.reward for o in low.outcomes] == [0, 1, 0, 0, 1]
    assert [o.terminated for o in low.outcomes] == [False, True, False, False, True]  # a subgoal's end is its own
    assert {o.steps for o in low.outcomes} == {1}
    before = AGENT.transcripts(episode, make_chat())
    assert [t.input_ids for t in (high, low)] == [t.input_ids for t in before]


@pytest.mark.parametrize("completed", [False, True])
def test_a_time_limit_is_not_an_end(completed: bool) -> None:
    """The state that the last decision led to stands at the end of the transcript."""
    chat, episode = make_chat(), cut(make_episode(num_steps=5), completed)
    before = AGENT.transcripts(episode, chat)
    high, low = add_outcomes(before, episode, chat, AGENT)
    assert [o.terminated for o in high.outcomes] == [False, False]
    assert high.input_ids == before[0].input_ids + chat.turn(episode.steps[-1].observation)
    assert high.next_state_ends == [high.state_ends[1], len(high) - 1]
    assert low.outcomes[-1].terminated is completed  # its own task was over, or was cut
    assert (len(low) > len(before[1])) is not completed


def test_a_completed_subgoal_is_over_for_the_low_level_though_it_goes_on() -> None:
    episode = make_episode(num_steps=5)  # enters rooms with its second and fourth step
    room = condition_text(episode.steps[1].achieved[0])
    whole = dataclasses.replace(episode, subgoals=[Subgoal(0, 5, room, False, "policy")])
    _, low = both_levels(whole)
    assert [(o.reward, o.terminated) for o in low.outcomes[:3]] == [(0.0, False), (1.0, True), (0.0, False)]
    assert low.outcomes[4].terminated


def test_flat_agents_earn_the_reward_of_each_step() -> None:
    chat, episode = make_chat(), make_episode(num_steps=3)
    (whole,) = add_outcomes(FLAT.transcripts(episode, chat), episode, chat, FLAT)
    assert [o.reward for o in whole.outcomes] == pytest.approx([step.reward for step in episode.steps])
    assert [o.terminated for o in whole.outcomes] == [False, False, True]
    (part,) = add_outcomes(FLAT.transcripts(cut(episode), chat), cut(episode), chat, FLAT)
    assert not any(o.terminated for o in part.outcomes)
    assert len(part) > len(whole)


def test_truncation_keeps_outcomes_with_their_decisions() -> None:
    _, low = both_levels(cut(make_episode(num_steps=8)))
    short = low.truncated(len(low) - 1)
    assert short.dropped_turns > 0
    assert short.outcomes == low.outcomes[short.dropped_turns :]
    chat, episode = make_chat(), cut(make_episode(num_steps=8))
    early = [t.truncated(len(t) - 1) for t in AGENT.transcripts(episode, chat)]
    late = add_outcomes(early, episode, chat, AGENT)[1]
    assert late.outcomes == low.outcomes[early[1].dropped_turns :]


def test_a_subgoal_that_nothing_came_of_is_left_out() -> None:
    chat, episode = make_chat(), cut(make_episode(num_steps=4))
    high = AGENT.transcripts(episode, chat)[0]
    longer = high.copy()
    longer.append_prompt(chat.turn(episode.steps[-1].observation))
    longer.append_utterance(chat.utterance("dance"))
    (found,) = add_outcomes([longer], episode, chat, AGENT)
    assert found.num_decisions == len(episode.subgoals) == len(found.outcomes)
    assert found.input_ids == high.input_ids + chat.turn(episode.steps[-1].observation)
    assert longer.num_decisions == high.num_decisions + 1  # what was given stays as it was


def test_an_episode_with_subgoals_of_one_step_only() -> None:
    episode = make_episode(num_steps=3)
    ones = [Subgoal(i, i + 1, f"part {i}", True, "someone") for i in range(3)]
    high, low = both_levels(dataclasses.replace(episode, subgoals=ones))
    assert [o.steps for o in high.outcomes] == [1, 1, 1]
    assert [tuple(o) for o in low.outcomes] == [(1.0, 1, True)] * 3


def test_without_subgoals_or_steps() -> None:
    chat, episode = make_chat(), make_episode(num_steps=2, subgoals=False)
    with pytest.raises(ValueError, match="no subgoals"):
        AGENT.transcripts(episode, chat)
    assert add_outcomes([], make_episode(num_steps=0), chat, AGENT) == []


def test_batches_hold_what_the_transcripts_say() -> None:
    """Positions of next states, rewards and ends, padded and packed: read at the ids they point to."""
    transcripts = both_levels(cut(make_episode(0, 5))) + both_levels(make_episode(1, 3))
    for batch in (collate_padded(transcripts, 0), collate_packed(transcripts, 0, 3000)):
        ids = batch.input_ids.flatten()
        position = batch.position_ids.flatten()
        at = 0
        for transcript in batch.transcripts:
            for k, outcome in enumerate(transcript.outcomes):
                assert float(batch.rewards[at]) == pytest.approx(outcome.reward)
                assert (int(batch.steps[at]), bool(batch.terminated[at])) == outcome[1:]
                places = {"state_ends": transcript.state_ends, "next_state_ends": transcript.next_state_ends}
                for field, place in places.items():
                    where = int(getattr(batch, field)[at])
                    assert int(position[where]) == place[k]
                    assert int(ids[where]) == transcript.input_ids[place[k]]
                at += 1
        assert at == len(batch.rewards)
        assert batch.rewards.dtype == torch.float32


def long_episode(words: int) -> Episode:
    """Ends by a time limit; its observations are long, and it has no subgoals."""
    episode = make_episode(num_steps=6, subgoals=False)
    steps = [dataclasses.replace(step, observation=f"room {n} " + "x " * words) for n, step in enumerate(episode.steps)]
    outcome = Outcome(episode.outcome.score, False, False, True, "step_limit")
    return dataclasses.replace(episode, steps=steps, outcome=outcome)


@pytest.mark.parametrize(
    "agent", [FlatAgent("Act.", 420, keep_thoughts=False), SwiftAgent("Act.", 560)], ids=["flat", "swift"]
)
def test_no_decision_with_its_own_transcript_is_lost_for_its_next_state(agent: Agent) -> None:
    chat, episode = make_chat(), long_episode(60)
    made = agent.transcripts(episode, chat)
    after = add_outcomes(made, episode, chat, agent)
    kept = within_context(after, agent.max_length)
    assert kept == after == learnable_transcripts(made, episode, chat, agent)
    assert [t.first_decision for t in kept] == list(range(6)) and max(map(len, kept)) <= agent.max_length
    for before, transcript in zip(made, kept, strict=True):
        assert transcript.input_ids[: len(before)] == before.input_ids
        step = episode.steps[transcript.first_decision]
        prompt = transcript.input_ids[len(before) :]
        fits = len(before) + len(chat.turn(step.observation.strip())) <= agent.max_length
        assert (prompt == chat.turn(step.observation.strip())) == fits
        shown = chat.tokenizer.decode(prompt)
        assert fits or not prompt or ("[...]" in shown and prompt[-4:] == chat.turn("x")[-4:])
    cut = [
        t for t, before in zip(kept, made, strict=True) if "[...]" in chat.tokenizer.decode(t.input_ids[len(before) :])
    ]
    assert cut and agent.max_length - 4 <= max(map(len, cut))


def test_without_room_the_value_of_the_next_state_is_read_at_the_utterance() -> None:
    chat, episode = make_chat(), long_episode(3)
    roomy = FlatAgent("Act.", keep_thoughts=False)
    last = roomy.transcripts(episode, chat)[-1]
    agent = FlatAgent("Act.", len(last) + 1, keep_thoughts=False)
    (completed,) = add_outcomes([last], episode, chat, agent)
    assert completed.input_ids == last.input_ids and completed.next_state_ends == completed.utterance_ends
    assert not completed.outcomes[-1].terminated


def test_one_transcript_keeps_its_last_decision_before_a_long_observation() -> None:
    """In one conversation the earliest turns are dropped first; the last decision stays, played or rendered."""
    chat, episode = make_chat(), long_episode(60)
    steps = [dataclasses.replace(step, observation="short") for step in episode.steps[:-1]]
    episode = dataclasses.replace(episode, steps=[*steps, episode.steps[-1]])
    (whole,) = FLAT.transcripts(episode, chat)
    agent = FlatAgent("Act.", whole.head_length + 100)
    played = whole.copy()
    played.append_prompt(chat.turn(episode.steps[-1].observation))  # a context that was full
    for transcript in (whole, played):
        (kept,) = learnable_transcripts([transcript], episode, chat, agent)
        assert kept.first_decision + kept.num_decisions == 6 and kept.num_decisions >= 1
        assert len(kept) <= agent.max_length and kept.next_state_ends[-1] > kept.utterance_ends[-1]
