"""What stages share whose policy answers problems: validation, test and predict."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from lit_rft.metrics import AnswerMetrics
from lit_rft.models.merging import ActingWeights
from lit_rft.models.sharding import sharded_parts, whole_weights
from lit_rft.rewards.base import RewardFunction
from lit_rft.rewards.math import MathReward
from lit_rft.rollout import Sampled, SamplingSettings, sample_groups
from lit_rft.stages.data_check import PROMPTS
from lit_rft.stages.policy import PolicyModule
from lit_rft.stages.serving import ServedPolicy
from lit_rft.stages.settings import AnsweringSettings, OptimizerSettings, PolicySettings, as_json


class PromptRound(Protocol):
    """What a data loader gives; `datamodules.PromptBatch` is one."""

    @property
    def prompts(self) -> list[Any]: ...
    @property
    def sources(self) -> list[str]: ...


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
        reward: what it earned.
        tokens: of the completion.
        finished: whether it came to its end.
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


class AnsweringStage(PolicyModule):
    """A language-model policy that answers problems with verifiable answers.

    Data loaders give `PromptRound`s. `answers` holds an epoch's answers, `answer_table` its scores by benchmark.

    Args:
        policy: which model, and from where it starts.
        optimizer: AdamW and its schedule.
        reward: gives completions their rewards; an answer is right if its reward is above 0.5. Default: Math-Verify.
        answering: how problems are answered.
    """

    evaluation_batch = PROMPTS

    def __init__(
        self,
        policy: PolicySettings | None = None,
        optimizer: OptimizerSettings | None = None,
        reward: RewardFunction | None = None,
        answering: AnsweringSettings | None = None,
    ) -> None:
        super().__init__(policy, optimizer)
        self.reward: RewardFunction = reward if reward is not None else MathReward()
        self.answering = answering or AnsweringSettings()
        self.answers: list[Answer] = []
        self.already_answered: set[str] = set()  # ids of problems that `predict` need not answer again
        self.answer_table: dict[str, dict[str, float]] = {}
        self._metrics: AnswerMetrics | None = None
        self._served = ServedPolicy(self.answering.server) if self.answering.server is not None else None

    def source(self) -> dict[str, Any]:
        """Who answers: what makes two runs of `predict` differ."""
        settings = self.answering
        return {
            "model": self.policy_settings.model,
            "start_from": self.policy_settings.start_from,
            "checkpoint_step": self._checkpoint_step,
            "sampling": as_json(settings.sampling),
            "answers": settings.answers,
            "answers_by_source": settings.answers_by_source,
            "seed": settings.seed,
            "served": settings.server is not None,
        }

    @torch.no_grad()
    def _answer(self, batch: PromptRound) -> list[Answer]:
        assert self.policy is not None and self.chat is not None
        self.check_batch(batch, self.evaluation_batch)
        settings = self.answering
        prompts = [prompt for prompt in batch.prompts if prompt.problem.id not in self.already_answered]
        by_source = settings.answers_by_source or {}
        sizes = [by_source.get(prompt.problem.source, settings.answers) for prompt in prompts]
        named = [(prompt.problem.id, prompt.ids) for prompt in prompts]
        groups = self.sample(named, sizes, settings.sampling, settings.seed, settings.slots)
        pairs = [(prompt, one, n) for prompt, group in zip(prompts, groups, strict=True) for n, one in enumerate(group)]
        texts = [self.chat.text(one.ids) for _, one, _ in pairs]
        rewards = self.reward(texts, [prompt.problem.row() for prompt, _, _ in pairs])
        found = [
            Answer(prompt.problem.id, prompt.problem.source, n, prompt.problem.prompt[-1]["content"], text,
                   prompt.problem.ground_truth, float(reward), len(one.ids), one.finished)
            for (prompt, one, n), text, reward in zip(pairs, texts, rewards, strict=True)
        ]  # fmt: skip
        self._count(batch, found)
        self.answers += found
        return found

    def sample(
        self,
        prompts: Sequence[tuple[str, list[int]]],
        sizes: Sequence[int],
        sampling: SamplingSettings,
        seed: int,
        num_slots: int,
    ) -> list[list[Sampled]]:
        """`rollout.sample_groups` by the policy as it is, or by a server that has it; all processes must call this.

        Raises: see there, `VllmServer.sample_groups` and `ServedPolicy.name`.
        """
        assert self.policy is not None and self.chat is not None
        if self._served is not None:
            adapter = self._served.name(self.policy, self.global_step)
            end = self.chat.end_of_turn_id
            return self._served.server.sample_groups(adapter, prompts, sizes, sampling, end, seed=seed)
        with whole_weights(self.policy):
            folds = self.answering.merge_adapters and not sharded_parts(self.policy)
            acting = ActingWeights(self.policy).active if folds else contextlib.nullcontext
            return sample_groups(
                self.policy, prompts, sizes, sampling, self.chat.end_of_turn_id, seed=seed, num_slots=num_slots,
                decode=self.chat.tokenizer.decode, acting=acting,
            )  # fmt: skip

    def _count(self, batch: PromptRound, answers: list[Answer]) -> None:
        if self._metrics is None:
            self._metrics = AnswerMetrics(batch.sources).to(self.device)
        right: dict[tuple[str, str], list[bool]] = {}
        for one in answers:
            right.setdefault((one.source, one.id), []).append(one.reward > 0.5)
        for (source, _), verdicts in right.items():
            self._metrics.update(source, sum(verdicts), len(verdicts))

    def validation_step(self, batch: PromptRound, batch_idx: int) -> None:
        self._answer(batch)

    def test_step(self, batch: PromptRound, batch_idx: int) -> None:
        self._answer(batch)

    def predict_step(self, batch: PromptRound, batch_idx: int) -> list[Answer]:
        return self._answer(batch)

    def begin_epoch(self) -> None:
        self.answers, self.answer_table, self._metrics = [], {}, None
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
        close = getattr(self.reward, "close", None)
        if close is not None:
            close()
