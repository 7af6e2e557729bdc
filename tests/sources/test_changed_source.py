"""Resuming with another `source` than that of the checkpoint: the data position stays, and buffers start empty."""

import logging
from typing import Any

import pytest

from lit_rft import MixedPolicyEpisodes, MixedPolicyGRPO
from lit_rft.sources import DynamicSampling, ExGRPO, ReLIFT
from lit_rft.stages import ObjectiveSettings


def make(source: Any, stage: Any = MixedPolicyGRPO) -> Any:
    objective = ObjectiveSettings(traces_per_group=1, imitated_traces=1)
    return stage(objective=objective, source=source).source


def saved(source: Any, buffer: Any = None, stage: Any = MixedPolicyGRPO) -> dict[str, Any]:
    """The state of a source after seven batches."""
    made = make(source, stage)
    state: dict[str, Any] = made.state_dict()
    plain = state
    while "source" in plain:
        plain = plain["source"]
    plain["batches"] = 7
    return state if buffer is None else state | {"buffer": buffer}


def batches(source: Any) -> int:
    while hasattr(source, "source"):
        source = source.source
    return int(source._batches)


@pytest.mark.parametrize("state", [
    saved(None), saved(DynamicSampling(2)), saved(ExGRPO(), {"a": {"rate": 0.5}}), saved(ReLIFT(), [{"text": "a"}]),
], ids=["plain", "without buffer", "ExGRPO", "ReLIFT"])  # fmt: skip
@pytest.mark.parametrize("source", [None, DynamicSampling(2), ExGRPO(), ReLIFT()], ids=str)
def test_any_source_continues_from_any_other(source: Any, state: Any, caplog: pytest.LogCaptureFixture) -> None:
    resumed = make(source)
    with caplog.at_level(logging.WARNING):
        resumed.load_state_dict(state)
    assert batches(resumed) == 7
    if isinstance(source, (ExGRPO, ReLIFT)):
        own = isinstance(state.get("buffer"), dict if isinstance(source, ExGRPO) else list)
        assert len(resumed.buffer) == own
        assert ("it starts empty" in caplog.text) is not own


def test_episodes_continue_without_their_wrapper() -> None:
    resumed = make(None, MixedPolicyEpisodes)
    resumed.load_state_dict(saved(ReLIFT(), [], MixedPolicyEpisodes))
    assert batches(resumed) == 7
