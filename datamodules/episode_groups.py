"""Tasks of a text environment with their expert episodes, for groups of episodes."""

import functools
import logging
from collections.abc import Sequence
from typing import Any

from lit_rft.batches import EpisodeGroup, EpisodeGroupBatch, ExpertEpisode
from lit_rft.datamodules.digests import digest_of, job_parts, transcript_parts
from lit_rft.datamodules.loaders import EpochLoader
from lit_rft.datamodules.trajectories import TrajectoryDataModule
from lit_rft.envs.base import HasExpert, problem_key
from lit_rft.envs.jobs import EpisodeJobs

logger = logging.getLogger(__name__)


class EpisodeGroupLoader(EpochLoader[EpisodeGroup, EpisodeGroupBatch]):
    """Tasks in shuffled batches, split over processes.

    Args:
        groups: all of them.
        jobs: see `EpisodeGroupBatch`.
        batch_size: tasks per batch, over all processes.
        seed: of the order.
        rank, world_size: index of this process, and number of processes.
    """

    def __init__(
        self,
        groups: Sequence[EpisodeGroup],
        jobs: EpisodeJobs,
        *,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__(len(groups), batch_size, seed, rank, world_size)
        self.groups, self.jobs = groups, jobs

    def order(self) -> list[EpisodeGroup]:
        return self.shuffled(self.groups)

    def make_batch(self, items: list[EpisodeGroup]) -> EpisodeGroupBatch:
        return EpisodeGroupBatch(items[self.rank :: self.world_size], self.jobs)

    def shape(self) -> dict[str, int | str]:
        sizes = {"groups": len(self.groups), "batch_size": self.batch_size, "seed": self.seed}
        return {**sizes, "digest": self._digest}

    @functools.cached_property
    def _digest(self) -> str:
        parts: list[Sequence[int] | str] = []
        for group in self.groups:
            parts += job_parts(group.job)
            parts += [p for expert in group.experts for t in expert.transcripts for p in transcript_parts(t)]
            parts.append(repr([expert.score for expert in group.experts]))
        return digest_of(parts)


class EpisodeGroupDataModule(TrajectoryDataModule):
    """Tasks to play for `MixedPolicyEpisodes`, each with its expert episodes.

    Their choice and evaluation are set by the arguments of `TrajectoryDataModule`: `train_files` or collected expert
    episodes (none if the stage's objective does not use them), `train_episodes_per_task`, `train_half`. `batch_size` is
    the number of tasks per rollout.

    Args:
        trajectories: arguments of `TrajectoryDataModule`, without those of medium-quality episodes (`medium_files`,
            `medium_per_expert`, `medium_filter`) and `outcomes`.
    """

    training_batch = "EpisodeGroupBatch"

    def __init__(self, **trajectories: Any) -> None:
        # reject arguments that do not belong to this class
        super().__init__(outcomes=False, medium_files=None, medium_per_expert=1.0, medium_filter=None, **trajectories)
        self.groups: list[EpisodeGroup] = []

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage != "fit":
            return
        experts: dict[tuple[str, str], list[ExpertEpisode]] = {}
        # by position: episodes of different files may have the same id
        for episode, transcripts in zip(self.rendered, self.transcripts, strict=True):
            text = "\n".join(step.action for step in episode.steps)
            expert = ExpertEpisode(transcripts, text, episode.outcome.score, episode)
            experts.setdefault(problem_key(episode), []).append(expert)
        jobs = self._make_jobs("train", self.train_episodes_per_task, self.train_half)
        self.groups = [EpisodeGroup(job, experts.get(problem_key(job), [])) for job in jobs]
        without = sum(not group.experts for group in self.groups)
        if self._stage_needs_experts() and without == len(jobs):
            raise ValueError(
                f"the objective needs expert episodes, but none of {len(self.episodes)} matches one of the {len(jobs)} "
                "problems to play (same task and meta): set data.init_args.train_files and train_episodes_per_task "
                "to the same problems, or train without experts (model.init_args.objective.traces_per_group 0 is GRPO)"
            )
        if without and self.episodes:
            logger.warning("%d of %d tasks have no expert episode: their groups are on-policy", without, len(jobs))

    def prepare_data(self) -> None:
        """Collect expert episodes if the objective needs them and there are no files."""
        if self._wants_experts():
            super().prepare_data()

    def load_training_data(self) -> None:
        if self._wants_experts():
            super().load_training_data()
        else:
            self.read_tokenizer()

    def _wants_experts(self) -> bool:
        """Return whether to load expert episodes: if there are files, or the objective needs them."""
        if self.train_files is not None or self._stage_needs_experts():
            return True
        return self.trainer is None and isinstance(self.suite, HasExpert) and self.suite.expert is not None

    def _stage_needs_experts(self) -> bool:
        return bool(self.stage.get("needs_traces"))

    def train_dataloader(self) -> EpisodeGroupLoader:  # type: ignore[override]
        rank, world_size = self._place()
        tasks = sorted({group.job.task for group in self.groups})
        loader = EpisodeGroupLoader(
            self.groups,
            EpisodeJobs([], self.task_suite.make_env, tasks),
            batch_size=self.batch_size,
            seed=self.seed,
            rank=rank,
            world_size=world_size,
        )
        return self.in_position(loader)
