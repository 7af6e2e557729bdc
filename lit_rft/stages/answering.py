"""What stages share whose policy answers problems: validation, test and predict."""

import contextlib
import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lit_rft._seeds import resolve_seed
from lit_rft.batches import PromptBatch
from lit_rft.generation import Completion, SamplingSettings, sample_groups
from lit_rft.metrics import AnswerMetrics
from lit_rft.models.merging import MergedWeights
from lit_rft.models.sharding import sharded_parts, unsharded
from lit_rft.rewards.base import describe_reward, reward_metrics
from lit_rft.rewards.calling import RewardFunction, check_reward, compute_rewards
from lit_rft.rewards.math import MathReward
from lit_rft.stages.data_check import PROMPTS
from lit_rft.stages.identity import current_fingerprint
from lit_rft.stages.policy import PolicyModule
from lit_rft.stages.serving import AdapterSync
from lit_rft.stages.settings import AnsweringSettings, BatchingSettings, OptimizerSettings, PolicySettings, as_json

logger = logging.getLogger(__name__)


@dataclass
class Answer:
    """One answer to a problem, as `predict` writes it.

    Args:
        id: of the problem.
        source: its benchmark.
        number: of the answer, from 0.
        prompt: its last message.
        completion: what was answered.
        ground_truth: what is right.
        reward: what the verifier gave it.
        tokens: of the completion.
        finished: whether it came to its end.
        num_samples: to this problem, this one included.
    """

    id: str
    source: str
    number: int
    prompt: str
    completion: str
    ground_truth: str
    reward: float
    tokens: int
    finished: bool
    num_samples: int


class AnsweringStage(PolicyModule):
    """A language-model policy that answers problems with verifiable answers.

    Data loaders give `PromptBatch`s. `answers` holds an epoch's answers, `answer_table` its scores by benchmark.

    Args:
        policy: which model, and from where it starts.
        optimizer: AdamW and its schedule.
        reward: gives completions their rewards in training. Default: `MathReward`.
        verifier: grades the answers of validation, test and predict; more than 0.5 is right in the reported accuracy.
            null: `reward` where that is a `MathReward`, else a `MathReward` with its defaults.
        answering: how problems are answered.
        batching: micro-batches of an optimiser step.
    """

    evaluation_batch = PROMPTS

    def __init__(
        self,
        policy: PolicySettings | None = None,
        optimizer: OptimizerSettings | None = None,
        reward: RewardFunction | None = None,
        verifier: RewardFunction | None = None,
        answering: AnsweringSettings | None = None,
        batching: BatchingSettings | None = None,
    ) -> None:
        super().__init__(policy, optimizer, batching)
        self.reward: RewardFunction = reward if reward is not None else MathReward()
        self.verifier = choose_verifier(self.reward, verifier)
        for function in (self.reward, self.verifier):
            check_reward(function)
        answering = answering or AnsweringSettings()
        self.answering = dataclasses.replace(answering, seed=resolve_seed(answering.seed))
        self.answers: list[Answer] = []
        # problems that `predict` need not answer again: source, id, last message, ground truth
        self.already_answered: set[tuple[str, str, str, str]] = set()
        self.answer_table: dict[str, dict[str, float]] = {}
        self._metrics: AnswerMetrics | None = None
        self._graded: dict[str, float] = {}  # what the verifier counted since the epoch's start
        self._served = AdapterSync(self.answering.server) if self.answering.server is not None else None

    def source(self) -> dict[str, Any]:
        """Who answers, and who grades: what makes two runs of `predict` differ. All processes must call this."""
        assert self.policy is not None
        settings = self.answering
        return {
            "model": self.policy_settings.model,
            "start_from": self.policy_settings.start_from,
            "checkpoint_step": self._checkpoint_step,
            "weights": current_fingerprint(self.policy),
            "verifier": describe_reward(self.verifier),
            "sampling": as_json(settings.sampling),
            "num_samples": settings.num_samples,
            "num_samples_by_source": settings.num_samples_by_source,
            "seed": settings.seed,
            "served": settings.server is not None,
        }

    @torch.no_grad()
    def _answer(self, batch: PromptBatch) -> list[Answer]:
        assert self.policy is not None and self.chat is not None
        self.check_batch(batch, self.evaluation_batch)
        settings = self.answering
        prompts = [prompt for prompt in batch.prompts if _question(prompt.problem) not in self.already_answered]
        sizes = [settings.num_samples_for(prompt.problem.source, prompt.problem.repeats) for prompt in prompts]
        named = [(prompt.problem.id, prompt.ids) for prompt in prompts]
        groups = self.sample(named, sizes, settings.sampling, resolve_seed(settings.seed), settings.max_concurrent)
        pairs = [(prompt, one, n) for prompt, group in zip(prompts, groups, strict=True) for n, one in enumerate(group)]
        texts = [self.chat.text(one.ids) for _, one, _ in pairs]
        rewards = compute_rewards(
            self.verifier, texts, [prompt.problem.row() for prompt, _, _ in pairs],
            prompts=[list(prompt.problem.prompt) for prompt, _, _ in pairs],
            completion_ids=[list(one.ids) for _, one, _ in pairs],
        )  # fmt: skip
        if texts:
            self._add_counts({"graded": float(len(texts)), **reward_metrics(self.verifier)})
        totals = [size for size in sizes for _ in range(size)]
        found = [
            Answer(prompt.problem.id, prompt.problem.source, n, prompt.problem.prompt[-1]["content"], text,
                   prompt.problem.ground_truth, float(reward), len(one.ids), one.finished, total)
            for (prompt, one, n), text, reward, total in zip(pairs, texts, rewards, totals, strict=True)
        ]  # fmt: skip
        self._count(batch, found, sizes)
        self.answers += found
        return found

    def sample(
        self,
        prompts: Sequence[tuple[str, list[int]]],
        sizes: Sequence[int],
        sampling: SamplingSettings,
        seed: int,
        max_concurrent: int,
    ) -> list[list[Completion]]:
        """`rollout.sample_groups` by the policy as it is, or by a server that has it; all processes must call this.

        Raises: see there, `VllmServer.sample_groups` and `AdapterSync.name`.
        """
        assert self.policy is not None and self.chat is not None
        if self._served is not None:
            adapter = self._served.name(self.policy, self.global_step)
            end = self.chat.end_ids
            return self._served.server.sample_groups(adapter, prompts, sizes, sampling, end, seed=seed)
        with unsharded(self.policy):
            folds = self.answering.merge_adapters and not sharded_parts(self.policy)
            acting = MergedWeights(self.policy).active if folds else contextlib.nullcontext
            return sample_groups(
                self.policy, prompts, sizes, sampling, self.chat.end_ids, seed=seed, max_concurrent=max_concurrent,
                decode=self.chat.tokenizer.decode, acting=acting,
            )  # fmt: skip

    def _count(self, batch: PromptBatch, answers: list[Answer], sizes: Sequence[int]) -> None:
        """Add the answers of this process to the epoch's metrics; `sizes`: answers to each problem, in order."""
        if self._metrics is None:
            self._metrics = AnswerMetrics(batch.sources).to(self.device)
        start = 0
        for size in sizes:
            group = answers[start : start + size]
            self._metrics.update(group[0].source, sum(one.reward > 0.5 for one in group), size)
            start += size

    def _add_counts(self, counts: dict[str, float]) -> None:
        for name, value in counts.items():
            self._graded[name] = self._graded.get(name, 0.0) + value

    def _report_counts(self, verb: str) -> None:
        """Log how many answers were graded, unreadable and killed in this epoch, over all processes."""
        names = ["graded", *sorted(reward_metrics(self.verifier))]
        mine = {name: torch.tensor(self._graded.get(name, 0.0), device=self.device) for name in names}
        counts = {name: int(value) for name, value in self.sum_over_processes(mine).items()}
        self._graded = {}
        if self.trainer.is_global_zero and counts["graded"] and not self.trainer.sanity_checking:
            logger.info("%s: %s", verb, ", ".join(f"{count} answers {name}" for name, count in counts.items()))
        if counts.get("killed") and self.trainer.is_global_zero:
            logger.warning("%d answers were killed in grading and count as wrong (docs/grading.md)", counts["killed"])

    def validation_step(self, batch: PromptBatch, batch_idx: int) -> None:
        self._answer(batch)

    def test_step(self, batch: PromptBatch, batch_idx: int) -> None:
        self._answer(batch)

    def predict_step(self, batch: PromptBatch, batch_idx: int) -> list[Answer]:
        return self._answer(batch)

    def begin_epoch(self) -> None:
        self.answers, self.answer_table, self._metrics, self._graded = [], {}, None, {}
        self._weights_changed()

    def on_fit_start(self) -> None:
        self._weights_changed()

    def _weights_changed(self) -> None:
        """Other weights may have been loaded, whatever the number of the step."""
        if self._served is not None:
            self._served.changed()

    def end_epoch(self, prefix: str) -> None:
        metrics, self._metrics = self._metrics, None
        self.already_answered = set()
        if self._served is not None:
            self.trainer.strategy.barrier()  # the adapter stays until the last process has its answers
        self._report_counts({"val": "validate", "": "predict"}.get(prefix, prefix))
        if metrics is None or not prefix:
            return
        self.answer_table = metrics.compute()
        for source, row in self.answer_table.items():
            name = "" if source == "mean" else f"/{source or 'problems'}"
            columns = {f"{prefix}/average{name}": row["average"], f"{prefix}/pass{name}": row["pass"]}
            self.log_dict(columns, rank_zero_only=True)

    def teardown(self, stage: str) -> None:
        """End the verifiers, and take the policy from the server."""
        if self._served is not None:
            self._served.close()
        for function in (self.reward, self.verifier):
            close = getattr(function, "close", None)
            if close is not None:
                close()


def choose_verifier(reward: RewardFunction, verifier: RewardFunction | None) -> RewardFunction:
    """Choose who grades evaluation, so that a bonus in the training reward is never reported as accuracy."""
    if verifier is not None:
        return verifier
    if isinstance(reward, MathReward):
        return reward
    logger.info("validation, test and predict are graded by MathReward: set verifier for answers of another kind")
    return MathReward()


def _question(problem: Any) -> tuple[str, str, str, str]:
    """What tells a problem's answers from those to any other, in an `Answer` too."""
    return problem.source, problem.id, problem.prompt[-1]["content"], problem.ground_truth
