"""Steps are the same whoever shares them, and a loader goes on where its state says."""

from collections import Counter
from typing import Any

import pytest

from lit_rft.agents import HierarchicalAgent, HierarchyPrompts
from lit_rft.batches import StepTranscripts
from lit_rft.datamodules import JobLoader, StepLoader
from lit_rft.testing.corridor import CorridorSuite
from lit_rft.testing.tiny import make_episode, make_tokenizer
from lit_rft.transcripts import ChatFormat, Transcript


@pytest.fixture(scope="module")
def episodes() -> list[list[Transcript]]:
    chat = ChatFormat(make_tokenizer())
    agent = HierarchicalAgent(HierarchyPrompts("p", "a"))
    return [agent.transcripts(make_episode(s, 1 + s % 4), chat) for s in range(7)]


def _loader(episodes: list[list[Transcript]], **options: Any) -> StepLoader:
    return StepLoader(episodes, **{"batch_size": 3, **options})


def _what(batch: StepTranscripts) -> Counter[tuple[str, tuple[int, ...]]]:
    """Episode and token ids of each transcript of a step."""
    return Counter((transcript.episode_id, tuple(transcript.input_ids)) for transcript in batch.transcripts)


@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_processes_share_each_step(episodes: list[list[Transcript]], world_size: int) -> None:
    alone = list(_loader(episodes))
    shares = [list(_loader(episodes, rank=r, world_size=world_size)) for r in range(world_size)]
    for step, whole in enumerate(alone):
        assert sum((_what(share[step]) for share in shares), Counter()) == _what(whole)
        assert all(share[step].num_utterances == whole.num_utterances for share in shares)
        assert sum(share[step].num_tokens for share in shares) == whole.num_tokens


def test_every_episode_comes_once_an_epoch_in_another_order(episodes: list[list[Transcript]]) -> None:
    loader = _loader(episodes)
    assert len(loader) == 3
    first, second = ([batch.transcripts for batch in loader] for _ in range(2))
    assert [len(x) for x in (first, second)] == [3, 3]
    orders = [[sorted({transcript.episode_id for transcript in step}) for step in epoch] for epoch in (first, second)]
    assert orders[0] != orders[1]
    for epoch in orders:
        assert sorted(i for step in epoch for i in step) == sorted(t[0].episode_id for t in episodes)


def test_a_loader_resumes_in_mid_epoch(episodes: list[list[Transcript]]) -> None:
    loader = _loader(episodes)
    iterator = iter(loader)
    next(iterator)
    state = loader.state_dict()
    rest = [_what(batch) for batch in iterator] + [_what(batch) for batch in loader]
    other = _loader(episodes)
    other.load_state_dict(state)
    assert [_what(batch) for batch in other] + [_what(batch) for batch in other] == rest


def test_a_place_in_other_data_is_refused(episodes: list[list[Transcript]]) -> None:
    state = _loader(episodes).state_dict()
    for other in (_loader(episodes[:-1]), _loader(episodes, batch_size=2), _loader(episodes, seed=1)):
        with pytest.raises(ValueError, match="cannot resume"):
            other.load_state_dict(state)


def test_bad_sizes_are_refused(episodes: list[list[Transcript]]) -> None:
    with pytest.raises(ValueError, match="batch_size must be >= 1"):
        _loader(episodes, batch_size=0)


def test_jobs_are_shared_without_repetition() -> None:
    suite = CorridorSuite()
    jobs = suite.episodes("train")
    loaders = [JobLoader(jobs, suite.make_env, rank=rank, world_size=3) for rank in range(3)]
    played = [job.id for loader in loaders for batch in loader for job in batch.jobs]
    assert sorted(played) == sorted(job.id for job in jobs)
    assert all(loader.tasks == ["run", "walk"] for loader in loaders)
    with pytest.raises(ValueError, match="episodes for 9 processes"):
        JobLoader(jobs, suite.make_env, world_size=9)
