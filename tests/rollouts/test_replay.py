"""The buffer of the newest episodes."""

import random

import pytest
import torch

from lit_rft.agents import HierarchicalAgent, HierarchyPrompts, add_outcomes
from lit_rft.rollouts.replay import EpisodeReplay
from lit_rft.testing.tiny import make_episode, make_tokenizer
from lit_rft.transcripts import ChatFormat, Transcript


def transcripts(seed: int) -> list[Transcript]:
    chat, agent = ChatFormat(make_tokenizer()), HierarchicalAgent(HierarchyPrompts("P.", "A."))
    episode = make_episode(seed, 4)
    return add_outcomes(agent.transcripts(episode, chat), episode, chat, agent)


def test_old_episodes_make_room() -> None:
    replay = EpisodeReplay(2)
    for seed in range(4):
        replay.add(transcripts(seed))
    replay.add([])
    assert [episode[0].episode_id for episode in replay.episodes] == ["find-plant/2", "find-plant/3"]
    assert len(replay.sample(5, random.Random(0))) == 2
    assert len(replay.sample(1, random.Random(0))) == 1


def test_it_survives_a_checkpoint_without_pickle(tmp_path: object) -> None:
    replay = EpisodeReplay(3)
    for seed in range(3):
        replay.add(transcripts(seed))
    torch.save(replay.state_dict(), f"{tmp_path}/state.pt")
    again = EpisodeReplay(2)
    again.load_state_dict(torch.load(f"{tmp_path}/state.pt", weights_only=True))
    assert again.episodes == replay.episodes[1:]


def test_an_empty_buffer_is_refused() -> None:
    with pytest.raises(ValueError, match="buffer_episodes must be >= 1, got 0"):
        EpisodeReplay(0)
