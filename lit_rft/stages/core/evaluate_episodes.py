"""Evaluation on episodes."""

from typing import Any

from lit_rft._plain import with_class
from lit_rft._seeds import resolve_seed
from lit_rft.agents import Agent, PlayedEpisode
from lit_rft.envs.jobs import EpisodeJobs
from lit_rft.metrics import EpisodeMetrics
from lit_rft.rollouts.episode_runner import EpisodeRunner
from lit_rft.rollouts.policy import Policy
from lit_rft.stages.core.data_check import EPISODES
from lit_rft.stages.core.identity import digest
from lit_rft.stages.core.settings import ActingSettings, as_json

_NAMES = {"success": "success_rate"}  # of logged values, where the column has another


class EpisodeEvaluator:
    """Plays episodes; batches are `EpisodeJobs`, results `PlayedEpisode`s, rows of the table tasks.

    Args:
        agent: acts.
        acting: sampling and environment workers.
    """

    batch_kind = EPISODES

    def __init__(self, agent: Agent, acting: ActingSettings) -> None:
        self.agent, self.acting = agent, acting
        self.runner = EpisodeRunner(
            agent,
            parallel_episodes=acting.parallel_episodes,
            merge_adapters=acting.merge_adapters,
            server=acting.server,
            pool=acting.pool,
        )
        self.results: list[PlayedEpisode] = []
        self.table: dict[str, dict[str, float]] = {}
        self.skip: set[str] = set()  # ids of episodes
        self._policy: Policy | None = None
        self._metrics: EpisodeMetrics | None = None

    def settings(self) -> dict[str, Any]:
        acting, agent = self.acting, with_class(self.agent)
        return {
            "kind": "policy",
            "agent": agent["class_path"],
            "agent_settings": digest(agent["init_args"]),
            "sampling": as_json(acting.sampling),
            "seed": acting.seed,
            "served": acting.server is not None,
        }

    def begin(self, policy: Policy) -> None:
        self.results, self.table, self._policy = [], {}, policy

    def step(self, batch: EpisodeJobs, index: int, num_batches: int) -> list[PlayedEpisode]:
        """Play until one more episode has ended; all of them are submitted with the first batch."""
        if not self.runner.playing:
            self._begin_session(batch)
        assert self._metrics is not None
        episodes = [job for job in batch.jobs[:num_batches] if job.id not in self.skip]
        played = self.runner.play(episodes, num_batches - 1 - index)
        with self.runner.closing_on_error():
            for result in played:
                self._metrics.update(result.episode)
        self.results += played
        return played

    def _begin_session(self, batch: EpisodeJobs) -> None:
        policy = self._policy
        assert policy is not None
        source = policy.identity() | self.settings()
        seed = resolve_seed(self.acting.seed)
        self.runner.begin(policy, batch.make_env, self.acting.sampling, seed, source)
        self._metrics = EpisodeMetrics(batch.tasks).to(policy.device)

    def end(self, verb: str) -> dict[str, dict[str, float]]:
        metrics, self._metrics, self.skip = self._metrics, None, set()
        self.runner.end()
        self.table = metrics.compute() if metrics is not None else {}
        return self.table

    def scalars(self) -> dict[str, float]:
        means = {_NAMES.get(column, column): value for column, value in self.table.get("mean", {}).items()}
        return means | {f"score/{task}": row["score"] for task, row in self.table.items() if task != "mean"}

    def weights_changed(self) -> None:
        """Do nothing: each session starts with the current weights."""

    def close(self) -> None:
        """Stop the environment workers."""
        self.runner.close()
        self._metrics = None
