"""What the stages share that act in environments."""

import dataclasses
import hashlib
import json
from typing import Any

from lit_rft._seeds import resolve_seed
from lit_rft.agents import Agent, FlatAgent, HierarchicalAgent, PlayedEpisode
from lit_rft.envs.jobs import EpisodeJobs
from lit_rft.stages.data_check import EPISODES
from lit_rft.stages.episode_runner import ActingPolicy, EpisodeRunner
from lit_rft.stages.identity import current_fingerprint
from lit_rft.stages.policy import PolicyModule
from lit_rft.stages.settings import ActingSettings, OptimizerSettings, PolicySettings, as_json
from lit_rft.transcripts import HierarchyPrompts


class EpisodeStage(PolicyModule):
    """A language-model policy that acts in text environments.

    Subclasses write `training_step`. `validate`, `test` and `predict` play episodes: their data loaders give
    `EpisodeJobs`, `played` holds the episodes of the epoch, and `predict_step` returns those that have ended.

    Args:
        policy: which model, and from where it starts.
        optimizer: AdamW and its schedule.
        acting: how episodes are played.
        hierarchy: two levels, or (False) a flat agent without subgoals.
        prompts: what each level is told.
    """

    evaluation_batch = EPISODES

    def __init__(
        self,
        policy: PolicySettings | None = None,
        optimizer: OptimizerSettings | None = None,
        acting: ActingSettings | None = None,
        hierarchy: bool = True,
        prompts: HierarchyPrompts | None = None,
    ) -> None:
        super().__init__(policy, optimizer)
        acting = acting or ActingSettings()
        self.acting = dataclasses.replace(acting, seed=resolve_seed(acting.seed))
        self.hierarchy = hierarchy
        self.prompts = prompts or HierarchyPrompts()
        self.played: list[PlayedEpisode] = []
        self.already_played: set[str] = set()  # ids of episodes that `predict` need not play again
        self.score_table: dict[str, dict[str, float]] = {}
        self._runner = EpisodeRunner(self.acting)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["hierarchy"] = self.hierarchy

    def check_source(self, checkpoint: dict[str, Any], source: str) -> None:
        """Raises: ValueError for a flat policy where this one is hierarchical, or the other way round."""
        if checkpoint.get("hierarchy", self.hierarchy) != self.hierarchy:
            kinds = {True: "a hierarchical", False: "a flat"}
            raise ValueError(
                f"{source} is of {kinds[not self.hierarchy]} policy, and this is {kinds[self.hierarchy]} one: start "
                "from another checkpoint, or set hierarchy accordingly"
            )

    # --- acting ------------------------------------------------------------------------------------------------------

    def make_agent(self) -> Agent:
        assert self.chat is not None
        settings = self.acting
        if self.hierarchy:
            return HierarchicalAgent(self.chat, self.prompts, settings.max_length, settings.subgoal_steps)
        return FlatAgent(self.chat, self.prompts, settings.max_length)

    def acting_policy(self) -> ActingPolicy:
        """Who plays in evaluation."""
        assert self.policy is not None and self.chat is not None
        sampling, seed = self.acting.sampling, resolve_seed(self.acting.seed)
        agent, source = self.make_agent(), self.source()
        end, decode = self.chat.end_ids, self.chat.tokenizer.decode
        return ActingPolicy(self.policy, agent, end, source, sampling, seed, decode=decode)

    def source(self) -> dict[str, Any]:
        """Who plays, for the records: what makes two runs of `predict` differ. All processes must call this."""
        assert self.policy is not None
        acting = self.acting
        return {
            "kind": "policy",
            "model": self.policy_settings.model,
            "start_from": self.policy_settings.start_from,
            "checkpoint_step": self._checkpoint_step,
            "weights": current_fingerprint(self.policy),
            "hierarchy": self.hierarchy,
            "prompts": hashlib.sha256(json.dumps(as_json(self.prompts)).encode()).hexdigest()[:16],
            "max_length": acting.max_length,
            "subgoal_steps": acting.subgoal_steps,
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
