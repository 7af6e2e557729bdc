"""Parts of rollout sources that are built around another."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from lit_rft.batches import EpisodeGroupBatch, PromptBatch
from lit_rft.rollouts import GroupSource, Policy, Rollout

logger = logging.getLogger(__name__)


class WrappedSource:
    """A rollout source around another, which makes the rollouts.

    Args:
        source: of a stage: `CompletionSource`, `EpisodeGroupSource`, or another one around them.
    """

    def __init__(self, source: GroupSource) -> None:
        self.source = source
        self.more_metrics: dict[str, Tensor] = {}  # besides those of `source`

    @property
    def metrics(self) -> Mapping[str, Tensor]:
        return {**self.source.metrics, **self.more_metrics}

    @property
    def traces_per_group(self) -> int:
        return self.source.traces_per_group

    @property
    def imitated_traces(self) -> int:
        return self.source.imitated_traces

    @property
    def continues_traces(self) -> bool:
        """True if the traces in groups are continued by the policy: no examples to imitate."""
        return getattr(self.source, "continues_traces", False)

    @property
    def env_steps(self) -> int:
        """Environment steps so far, over all processes; 0 for completions."""
        return self.source.env_steps

    @property
    def costs(self) -> Mapping[str, int]:
        """Environment steps and tokens so far, over all processes; empty for completions."""
        return getattr(self.source, "costs", {})

    def __call__(self, policy: Policy, batch: Any) -> list[Rollout]:
        return self.source(policy, batch)

    def traces(self, policy: Policy, batch: Any) -> list[Rollout]:
        """Return all off-policy traces of a batch, for supervised fine-tuning."""
        return self.source.traces(policy, batch)

    def close(self) -> None:
        self.source.close()

    def state_dict(self) -> dict[str, Any]:
        return {"source": self.source.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint, also from one of a run without this source: `source` may change on resume."""
        self.source.load_state_dict(state.get("source", state))


def warn_of_empty_buffer(name: str) -> None:
    """Warn that the checkpoint of another `source` has no buffer for the one with this name."""
    logger.warning(
        "the checkpoint has no buffer of %s: it starts empty; if its run had one, set source as in that run", name
    )


def num_groups(batch: PromptBatch | EpisodeGroupBatch) -> int:
    """Return the number of prompts or tasks of a batch."""
    return len(batch.prompts if isinstance(batch, PromptBatch) else batch.groups)


def select_groups(batch: PromptBatch | EpisodeGroupBatch, indices: Sequence[int]) -> PromptBatch | EpisodeGroupBatch:
    """Return a batch of some of the prompts or tasks of another."""
    if isinstance(batch, PromptBatch):
        return PromptBatch([batch.prompts[index] for index in indices], batch.sources)
    return EpisodeGroupBatch([batch.groups[index] for index in indices], batch.jobs)
