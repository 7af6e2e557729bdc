"""What the stages share that act in environments."""

import dataclasses
from typing import Any

from lit_rft._seeds import resolve_seed
from lit_rft.agents import Agent, HierarchicalAgent, PlayedEpisode
from lit_rft.envs.jobs import EpisodeJobs
from lit_rft.stages.data_check import EPISODES
from lit_rft.stages.episode_runner import ActingPolicy, EpisodeRunner
from lit_rft.stages.hyper_parameters import with_class
from lit_rft.stages.identity import current_fingerprint, digest
from lit_rft.stages.policy import PolicyModule
from lit_rft.stages.settings import ActingSettings, BatchingSettings, OptimizerSettings, PolicySettings, as_json


class EpisodeStage(PolicyModule):
    """A language-model policy that acts in text environments.

    Subclasses write `training_step`. `validate`, `test` and `predict` play episodes: their data loaders give
    `EpisodeJobs`, `played` holds the episodes of the epoch, and `predict_step` returns those that have ended.

    Args:
        policy: which model, and from where it starts.
        optimizer: AdamW and its schedule.
        acting: how episodes are played.
        agent: the agent that acts: what its levels read, and how they take turns; null for `HierarchicalAgent`.
        batching: micro-batches of an optimiser step.
    Raises: ValueError for an agent whose context has no room for an utterance.
    """

    evaluation_batch = EPISODES

    def __init__(
        self,
        policy: PolicySettings | None = None,
        optimizer: OptimizerSettings | None = None,
        acting: ActingSettings | None = None,
        agent: Agent | None = None,
        batching: BatchingSettings | None = None,
    ) -> None:
        super().__init__(policy, optimizer, batching)
        acting = acting or ActingSettings()
        self.acting = dataclasses.replace(acting, seed=resolve_seed(acting.seed))
        self.agent: Agent = agent or HierarchicalAgent()
        check_agent(self.agent, self.acting)
        self.played: list[PlayedEpisode] = []
        self.already_played: set[str] = set()  # ids of episodes that `predict` need not play again
        self.score_table: dict[str, dict[str, float]] = {}
        self._runner = EpisodeRunner(self.acting)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["agent"] = with_class(self.agent)

    def check_source(self, checkpoint: dict[str, Any], source: str) -> None:
        """Raises: ValueError for a policy of another agent."""
        theirs, own = checkpoint.get("agent"), with_class(self.agent)
        if theirs is not None and theirs["class_path"] != own["class_path"]:
            raise ValueError(
                f"{source} is of the agent {theirs['class_path']}, and this is {own['class_path']}: start from another "
                "checkpoint, or set agent accordingly"
            )

    # --- acting ------------------------------------------------------------------------------------------------------

    def acting_policy(self) -> ActingPolicy:
        """Who plays in evaluation."""
        assert self.policy is not None and self.chat is not None
        sampling, seed = self.acting.sampling, resolve_seed(self.acting.seed)
        return ActingPolicy(self.policy, self.agent, self.chat, self.source(), sampling, seed)

    def source(self) -> dict[str, Any]:
        """Who plays, for the records: what makes two runs of `predict` differ. All processes must call this."""
        assert self.policy is not None
        acting, agent = self.acting, with_class(self.agent)
        return {
            "kind": "policy",
            "model": self.policy_settings.model,
            "start_from": self.policy_settings.start_from,
            "checkpoint_step": self._checkpoint_step,
            "weights": current_fingerprint(self.policy),
            "agent": agent["class_path"],
            "agent_settings": digest(agent["init_args"]),
            "sampling": as_json(acting.sampling),
            "seed": acting.seed,
            "served": acting.server is not None,
        }

    def _play(self, jobs: EpisodeJobs, batch_index: int, num_batches: int) -> list[PlayedEpisode]:
        """Play until one more episode has ended: all of them are submitted with the first batch."""
        self.check_batch(jobs, self.evaluation_batch)
        if not self._runner.playing:
            self._runner.begin(self.acting_policy(), jobs)
        wanted = [job for job in jobs.jobs[:num_batches] if job.id not in self.already_played]
        ended = self._runner.play(EpisodeJobs(wanted, jobs.make_env, jobs.tasks), num_batches - 1 - batch_index)
        self.played += ended
        return ended

    def validation_step(self, batch: EpisodeJobs, batch_idx: int) -> None:
        numbers = self.trainer.num_sanity_val_batches if self.trainer.sanity_checking else self.trainer.num_val_batches
        self._play(batch, batch_idx, int(numbers[0]))

    def test_step(self, batch: EpisodeJobs, batch_idx: int) -> None:
        self._play(batch, batch_idx, int(self.trainer.num_test_batches[0]))

    def predict_step(self, batch: EpisodeJobs, batch_idx: int) -> list[PlayedEpisode]:
        return self._play(batch, batch_idx, int(self.trainer.num_predict_batches[0]))

    def begin_epoch(self) -> None:
        self.played, self.score_table = [], {}

    def end_epoch(self, prefix: str) -> None:
        """Report the scores."""
        self.already_played = set()
        if not self._runner.playing:
            return
        self.score_table = self._runner.end()
        if prefix:
            means = self.score_table.get("mean", {})
            names = {"success": "success_rate"}
            self.log_dict({f"{prefix}/{names.get(k, k)}": v for k, v in means.items()}, rank_zero_only=True)
            per_task = {f"{prefix}/score/{t}": row["score"] for t, row in self.score_table.items() if t != "mean"}
            self.log_dict(per_task, rank_zero_only=True)

    def teardown(self, stage: str) -> None:
        """End the simulators."""
        self._runner.close()


def check_agent(agent: Agent, acting: ActingSettings) -> None:
    """Raises: ValueError for settings that checkpoints cannot keep, and for a context without room for an utterance."""
    if not dataclasses.is_dataclass(agent):
        raise ValueError(f"agent must be a frozen dataclass, whose fields checkpoints keep; got {type(agent).__name__}")
    if agent.levels and agent.max_length <= acting.sampling.max_new_tokens:
        raise ValueError(
            f"agent.max_length must be larger than acting.sampling.max_new_tokens, got {agent.max_length} and "
            f"{acting.sampling.max_new_tokens}"
        )
