"""Groups of episodes of the same problem: those that the policy plays, and expert episodes."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lit_rft.batches import EpisodeGroup, EpisodeGroupBatch
from lit_rft.envs.jobs import EpisodeJobs
from lit_rft.generation import SamplingSettings
from lit_rft.models.processes import distinct_names
from lit_rft.rollouts.episode_runner import EpisodeRunner
from lit_rft.rollouts.episodes import EpisodeSource
from lit_rft.rollouts.policy import Policy
from lit_rft.rollouts.rollout import Rollout
from lit_rft.rollouts.sources import innermost_state


class EpisodeGroupSource:
    """Groups of episodes of the same problem: some that the policy plays, and expert episodes.

    Args:
        runner: plays.
        sampling: of the utterances.
        group_size: members per group, >= 1.
        traces_per_group: maximum number of expert episodes in a group; a problem with more cycles through them.
        imitated_traces: expert episodes per problem outside its group, for a likelihood term: they have no advantage.
        seed: of the sampling.
    """

    def __init__(
        self,
        runner: EpisodeRunner,
        sampling: SamplingSettings,
        *,
        group_size: int = 8,
        traces_per_group: int = 0,
        imitated_traces: int = 0,
        seed: int = 0,
    ) -> None:
        self.episodes, self.seed = EpisodeSource(runner, sampling, seed), seed
        self.group_size, self.traces_per_group, self.imitated_traces = group_size, traces_per_group, imitated_traces
        self._batches = 0  # so far: problems cycle through their experts

    @property
    def metrics(self) -> dict[str, Tensor]:
        return self.episodes.metrics

    @property
    def env_steps(self) -> int:
        """Environment steps so far, over all processes."""
        return self.episodes.env_steps

    @property
    def costs(self) -> dict[str, int]:
        """See `EpisodeSource`."""
        return self.episodes.costs

    def __call__(self, policy: Policy, batch: EpisodeGroupBatch) -> list[Rollout]:
        """Return the groups one after another, played episodes first, then the imitated expert episodes."""
        experts = self._experts(batch.groups, self.traces_per_group)
        held = Counter(expert.group for expert in experts)
        jobs, group_of = [], {}
        names = distinct_names([group.job.id for group in batch.groups])
        for number, (group, name) in enumerate(zip(batch.groups, names, strict=True)):
            for turn in range(self.group_size - held[number]):
                job = dataclasses.replace(group.job, id=f"{name}/{policy.occasion}/{turn}")
                jobs.append(job)
                group_of[job.id] = number
        played = self.episodes.play(policy, EpisodeJobs(jobs, batch.jobs.make_env, batch.jobs.tasks), self.seed)
        members = [_decisions_only(rollout, group_of[rollout.id]) for rollout in played]
        rollouts = [rollout for rollout in members if rollout.transcripts] + experts
        rollouts.sort(key=lambda rollout: rollout.group)
        rollouts += self._experts(batch.groups, self.imitated_traces, counts_in_baseline=False)
        self._batches += 1
        return rollouts

    def traces(self, policy: Policy, batch: EpisodeGroupBatch) -> list[Rollout]:
        """Return all expert episodes of a batch, for supervised fine-tuning."""
        experts = self._experts(batch.groups, None)
        self._batches += 1
        return experts

    def _experts(
        self, groups: Sequence[EpisodeGroup], number: int | None, counts_in_baseline: bool = True
    ) -> list[Rollout]:
        """Return up to `number` expert episodes per group (None: all), starting one further in each batch."""
        rollouts = []
        for index, group in enumerate(groups):
            for turn in range(len(group.experts) if number is None else min(number, len(group.experts))):
                expert = group.experts[(self._batches + turn) % len(group.experts)]
                # copies: values are kept by transcript, and an expert may be in a group and imitated outside it
                transcripts = [transcript.copy() for transcript in expert.transcripts]
                rollout = Rollout(transcripts, expert.text, index, off_policy=True, finished=True, reward=expert.score)
                rollout.counts_in_baseline = counts_in_baseline
                rollout.episode, rollout.agent = expert.episode, self.episodes.runner.agent
                rollouts.append(rollout)
        return rollouts

    def close(self) -> None:
        self.episodes.close()

    def state_dict(self) -> dict[str, Any]:
        return {"batches": self._batches, **self.episodes.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        state = innermost_state(state)
        self._batches = state["batches"]
        self.episodes.load_state_dict(state)


def _decisions_only(rollout: Rollout, group: int) -> Rollout:
    """Drop what was read after the last decision of each transcript, and transcripts without a decision."""
    pairs = zip(rollout.transcripts, rollout.sampled_log_probs, strict=True)
    kept = [(t.without_last_prompt(), log_probs) for t, log_probs in pairs if t.num_decisions]
    return dataclasses.replace(
        rollout, transcripts=[t for t, _ in kept], sampled_log_probs=[rows for _, rows in kept], group=group
    )
