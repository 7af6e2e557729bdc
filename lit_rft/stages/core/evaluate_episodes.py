"""Evaluation on episodes."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from lit_rft._plain import to_plain, with_class
from lit_rft._seeds import resolve_seed
from lit_rft.agents import Agent, PlayedEpisode
from lit_rft.envs.base import EpisodeSpec
from lit_rft.envs.jobs import EpisodeJobs
from lit_rft.episodes import Episode
from lit_rft.metrics import episode_cells
from lit_rft.models.processes import all_gather_objects, sum_numbers
from lit_rft.rollouts.episode_runner import EpisodeRunner
from lit_rft.rollouts.policy import Policy
from lit_rft.stages.core.data_check import EPISODES
from lit_rft.stages.core.identity import digest
from lit_rft.stages.core.settings import ActingSettings
from lit_rft.stages.core.trials import Trials

_NAMES = {"success": "success_rate"}  # of logged values, where the column has another


class EpisodeEvaluator:
    """Plays episodes; batches are `EpisodeJobs`, results `PlayedEpisode`s, rows of the table tasks.

    An agent with `next_trial` plays problems several times (see `Trials`); each trial is a result, and an evaluation
    goes on after the trials in `finished`.

    Args:
        agent: acts.
        acting: sampling and environment workers.
    """

    batch_kind = EPISODES
    row_name = "task"

    def __init__(self, agent: Agent, acting: ActingSettings) -> None:
        self.agent, self.acting = agent, acting
        self.runner = EpisodeRunner(
            agent,
            parallel_episodes=acting.parallel_episodes,
            merge_adapters=acting.merge_adapters,
            server=acting.server,
            chat_server=acting.chat_server,
            pool=acting.pool,
        )
        self.results: list[PlayedEpisode] = []  # none with `on_result`, which may write any number of them
        self._counts: Counter[str] = Counter()
        self.table: dict[str, dict[str, float]] = {}
        self.costs: dict[str, float] = {}  # of the last epoch, over all processes
        self._started = 0.0
        self.skip: set[str] = set()  # ids of episodes
        self.finished: Sequence[Episode] = ()  # of an earlier run
        self.on_result: Callable[[PlayedEpisode], None] | None = None  # called at the end of each episode
        self._policy: Policy | None = None
        self._trials: Trials | None = None

    def settings(self) -> dict[str, Any]:
        acting, agent = self.acting, with_class(self.agent)
        settings = {
            "kind": "policy",
            "agent": agent["class_path"],
            "agent_settings": digest(agent["init_args"]),
            "sampling": to_plain(acting.sampling),
            "seed": acting.seed,
            "served": acting.server is not None,
        }
        return settings | self._level_sampling() | self._chat_model()

    def _level_sampling(self) -> dict[str, Any]:
        by_level = {level: to_plain(sampling) for level, sampling in self.acting.level_sampling.items()}
        return {"level_sampling": by_level} if by_level else {}

    def _chat_model(self) -> dict[str, Any]:
        """Return what identifies the model of an OpenAI-compatible server."""
        server = self.acting.chat_server
        return {} if server is None else {"chat_server": {"model": server.model, "levels": server.levels or []}}

    def begin(self, policy: Policy) -> None:
        self.results, self.table, self._policy, self._counts = [], {}, policy, Counter()
        self._started = time.monotonic()

    def step(self, batch: EpisodeJobs, index: int, num_batches: int) -> list[PlayedEpisode]:
        """Play until one more problem is finished; all of them are submitted with the first batch."""
        if not self.runner.playing:
            self._begin_session(batch)
        assert self._trials is not None
        problems = [job for job in batch.jobs[:num_batches] if job.id not in self.skip]
        finished = {episode.id: episode for episode in self.finished} if self._trials.repeated else {}
        episodes = self._trials.start(problems, finished)
        num_unfinished, results = num_batches - 1 - index, list[PlayedEpisode]()
        while True:
            # after a trial the next one is submitted at once
            allowed = max(num_unfinished, self._trials.num_unfinished - 1) if self._trials.repeated else num_unfinished
            played = self.runner.play(episodes, allowed)
            with self.runner.closing_on_error():
                episodes = [spec for result in played for spec in self._count(result)]
            results += played
            if not episodes and self._trials.num_unfinished <= num_unfinished:
                return results

    def _count(self, result: PlayedEpisode) -> list[EpisodeSpec]:
        """Count an episode, and return the next trial of its problem, if there is one."""
        assert self._trials is not None
        episode = result.episode
        self._counts.update(episodes=1, env_steps=len(episode.steps), utterances=episode.num_utterances)
        if self.on_result is None:
            self.results.append(result)
        else:
            self.on_result(result)
        return self._trials.after(result.episode)

    def _begin_session(self, batch: EpisodeJobs) -> None:
        policy = self._policy
        assert policy is not None
        source = policy.identity() | self.settings()
        seed = resolve_seed(self.acting.seed)
        acting = self.acting
        self.runner.begin(policy, batch.make_env, acting.sampling, seed, source, acting.level_sampling)
        self._trials = Trials(self.agent, batch.tasks, policy.device)

    def end(self, verb: str) -> dict[str, dict[str, float]]:
        trials, self._trials = self._trials, None
        self.costs = self._count_costs()
        self.skip, self.finished, self.on_result = set(), (), None
        self.runner.end()
        self.table = trials.compute() if trials is not None else {}
        return self.table

    def _count_costs(self) -> dict[str, float]:
        """Count episodes, steps, utterances and tokens over all processes, and the seconds of the slowest."""
        assert self._policy is not None
        numbers = {name: self._counts[name] for name in ("episodes", "env_steps", "utterances")}
        counts = {name: float(value) for name, value in (numbers | self.runner.costs()).items()}
        seconds = max(all_gather_objects(time.monotonic() - self._started))
        sums = sum_numbers(counts, self._policy.device)
        return {name: float(value) for name, value in sums.items()} | {"seconds": seconds}

    def cells(self, row: dict[str, float]) -> dict[str, str]:
        return episode_cells(row)

    def scalars(self) -> dict[str, float]:
        means = {_NAMES.get(column, column): value for column, value in self.table.get("mean", {}).items()}
        return means | {f"{task}/score": row["score"] for task, row in self.table.items() if task != "mean"}

    def weights_changed(self) -> None:
        """Do nothing: each session starts with the current weights."""

    def close(self) -> None:
        """Stop the environment workers."""
        self.runner.close()
        self._trials = None
