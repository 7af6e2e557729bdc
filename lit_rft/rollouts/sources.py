"""Sources of rollouts: the interface, and sampling of completions with the current policy."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from lit_rft.generation import BackendSettings, Completion, SamplingSettings, sample_groups
from lit_rft.generation.adapter_sync import AdapterSync
from lit_rft.models.merging import MergedWeights
from lit_rft.models.sharding import sharded_parts, unsharded
from lit_rft.rollouts.policy import Policy
from lit_rft.rollouts.rollout import Rollout


class RolloutSource(Protocol):
    """Source of the rollouts of a training step."""

    @property
    def metrics(self) -> Mapping[str, Tensor]:
        """Metrics of the last call, over all processes; a stage logs them."""
        ...

    def __call__(self, policy: Policy, batch: Any) -> list[Rollout]:
        """Return rollouts with their rewards; advantages are computed later.

        All processes must call this, each with its share of the batch.

        Args:
            policy: the current one.
            batch: from the data loader: prompts, or episode specifications.
        """
        ...

    def close(self) -> None:
        """Stop the worker processes; a second call does nothing."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return the state for checkpoints."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        ...


class GroupSource(RolloutSource, Protocol):
    """Source of the groups of GRPO's stages: rollouts of a prompt or task, with its off-policy traces."""

    @property
    def traces_per_group(self) -> int:
        """Maximum number of off-policy traces in a group."""
        ...

    @property
    def imitated_traces(self) -> int:
        """Maximum number of traces of a prompt or task outside its group."""
        ...

    @property
    def env_steps(self) -> int:
        """Environment steps so far, over all processes; 0 for completions."""
        ...

    def traces(self, policy: Policy, batch: Any) -> list[Rollout]:
        """Return all off-policy traces of a batch, for supervised fine-tuning."""
        ...


@runtime_checkable
class CountsEnvSteps(Protocol):
    """A source that acts in environments."""

    @property
    def env_steps(self) -> int:
        """Environment steps so far, over all processes."""
        ...


def innermost_state(state: dict[str, Any]) -> dict[str, Any]:
    """Return the state of a stage's own source in that of sources around it: a run may continue without them."""
    while "source" in state:
        state = state["source"]
    return state


SourceFunction = Callable[..., Any]  # GroupSource -> GroupSource; the command line takes callables by class_path


class CompletionSampler:
    """Samples completions with the current policy, in this process or on a server.

    Args:
        merge_adapters: merge the adapters into the backbone while sampling.
        server: vLLM, which samples; None for this library's own generator.
    """

    def __init__(self, merge_adapters: bool = True, server: BackendSettings | None = None) -> None:
        self.merge_adapters = merge_adapters
        self.served = None if server is None else AdapterSync(server.connect())

    @torch.no_grad()
    def __call__(
        self,
        policy: Policy,
        prompts: Sequence[tuple[str, list[int]]],
        sizes: Sequence[int],
        sampling: SamplingSettings,
        *,
        seed: int,
        max_concurrent: int,
    ) -> list[list[Completion]]:
        """Sample a group of completions for each prompt (see `lit_rft.generation.sample_groups`).

        All processes must call this.

        Raises:
            ValueError: If a server is set and the policy has no adapter that it supports.
            RuntimeError: If the server fails.
        """
        end_ids = policy.chat.end_ids
        if self.served is not None:
            adapter = self.served.current(policy.model, policy.step)
            groups = self.served.backend.sample_groups(
                adapter, prompts, sizes, sampling, end_ids, seed=seed, report=policy.phases.report
            )
            self.served.backend.rest()
            return groups
        with unsharded(policy.model):
            merges = self.merge_adapters and not sharded_parts(policy.model)
            acting = MergedWeights(policy.model).active if merges else contextlib.nullcontext
            return sample_groups(
                policy.model, prompts, sizes, sampling, end_ids, seed=seed, max_concurrent=max_concurrent,
                decode=policy.chat.tokenizer.decode, acting=acting, report=policy.phases.report,
            )  # fmt: skip

    def weights_changed(self) -> None:
        """Send the adapter to the server again, even if the policy's step is the same."""
        if self.served is not None:
            self.served.changed()

    def close(self) -> None:
        """Remove the adapter from the server."""
        if self.served is not None:
            self.served.close()
