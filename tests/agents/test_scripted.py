"""The scripted agent plays its actions on the player, without a model."""

from collections.abc import Sequence

import pytest

from lit_rft.agents import EpisodePlayer, PlayedEpisode, ScriptedAgent
from lit_rft.envs.pool import EnvPool
from lit_rft.envs.pool_settings import PoolSettings
from lit_rft.testing.corridor import CorridorSuite


def play(actions: Sequence[str], max_unfinished: int = 0) -> list[PlayedEpisode]:
    suite = CorridorSuite()
    with EnvPool(suite.make_env, 2, PoolSettings(threads=True)) as pool:
        player = EpisodePlayer(ScriptedAgent(lambda name: actions), pool, source={"kind": "gold"})
        player.submit(suite.episodes("train")[:4])
        played = list(player.run(max_unfinished))
        assert pool.outstanding <= max_unfinished
    return played


def test_scripted_actions_are_played_to_the_goal() -> None:
    played = play(["go left", "go right", "go right", "go right", "go right"])
    assert len(played) == 4
    for one in played:
        assert [step.action for step in one.episode.steps] == ["go left", "go right", "go right", "go right"]
        assert one.episode.outcome.success and one.episode.source == {"kind": "gold", "malformed": 0}
        assert one.transcripts == []
        one.episode.validate()


@pytest.mark.parametrize("number", [0, 2])
def test_an_episode_that_outlives_its_script_is_truncated(number: int) -> None:
    for one in play(["go right"] * number):
        assert len(one.episode.steps) == number
        outcome = one.episode.outcome
        assert (outcome.reason, outcome.truncated, outcome.terminated) == ("script_end", True, False)


def test_playing_stops_when_few_enough_are_left() -> None:
    assert 1 <= len(play(["go right"] * 3, max_unfinished=3)) <= 4
