"""Evaluation on problems with verifiable answers."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lit_rft._plain import to_plain
from lit_rft._seeds import resolve_seed
from lit_rft.batches import Prompt, PromptBatch
from lit_rft.generation import Completion
from lit_rft.metrics import AnswerMetrics, answer_cells
from lit_rft.models.processes import barrier, global_rank, sum_numbers
from lit_rft.problems import Problem
from lit_rft.rewards.base import describe_reward, reward_metrics
from lit_rft.rewards.calling import RewardFunction, check_reward, close_reward, compute_rewards
from lit_rft.rewards.math import MathReward
from lit_rft.rollouts.policy import Policy
from lit_rft.rollouts.sources import CompletionSampler
from lit_rft.stages.core.data_check import PROMPTS
from lit_rft.stages.core.settings import AnsweringSettings

logger = logging.getLogger(__name__)


@dataclass
class Answer:
    """One answer to a problem, as `predict` writes it.

    Args:
        id: of the problem.
        source: benchmark of the problem.
        number: of the answer, from 0.
        prompt: last message of the prompt.
        completion: the answer.
        ground_truth: reference answer.
        reward: the verifier's.
        tokens: length of the completion.
        finished: whether it finished (EOS or stop).
        num_samples: answers to this problem, this one included.
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


class ProblemEvaluator:
    """Answers problems; batches are `PromptBatch`s, results `Answer`s, rows of the table benchmarks.

    Args:
        verifier: grades answers; a reward above 0.5 counts as right.
        answering: sampling and number of answers.
        sampler: samples with the policy; None for a `CompletionSampler` in this process.
    """

    batch_kind = PROMPTS
    row_name = "benchmark"

    def __init__(
        self, verifier: RewardFunction, answering: AnsweringSettings, sampler: CompletionSampler | None = None
    ) -> None:
        self.verifier, self.answering = verifier, answering
        self.sampler = sampler or CompletionSampler(answering.merge_adapters, answering.server)
        self.results: list[Answer] = []
        self.table: dict[str, dict[str, float]] = {}
        self.costs: dict[str, float] = {}  # not counted
        self.skip: set[tuple[str, str, str, str]] = set()  # problems: source, id, last message, ground truth
        self._policy: Policy | None = None
        self._metrics: AnswerMetrics | None = None
        self._counts: dict[str, float] = {}  # of the verifier, in this epoch

    def settings(self) -> dict[str, Any]:
        settings = self.answering
        return {
            "verifier": describe_reward(self.verifier),
            "sampling": to_plain(settings.sampling),
            "num_samples": settings.num_samples,
            "num_samples_by_source": settings.num_samples_by_source,
            "seed": settings.seed,
            "served": settings.server is not None,
        }

    def begin(self, policy: Policy) -> None:
        self.results, self.table, self._policy = [], {}, policy
        self._metrics, self._counts = None, {}
        self.weights_changed()

    def step(self, batch: PromptBatch, index: int, num_batches: int) -> list[Answer]:
        policy, settings = self._policy, self.answering
        assert policy is not None
        prompts = [prompt for prompt in batch.prompts if _key(prompt.problem) not in self.skip]
        sizes = [settings.num_samples_for(prompt.problem.source, prompt.problem.repeats) for prompt in prompts]
        groups = self.sampler(
            policy, [(prompt.problem.id, prompt.ids) for prompt in prompts], sizes, settings.sampling,
            seed=resolve_seed(settings.seed), max_concurrent=settings.max_concurrent,
        )  # fmt: skip
        answers = self._grade(policy, prompts, groups)
        if self._metrics is None:
            self._metrics = AnswerMetrics(batch.sources).to(policy.device)
        start = 0
        for size in sizes:
            group = answers[start : start + size]
            self._metrics.update(group[0].source, sum(answer.reward > 0.5 for answer in group), size)
            start += size
        self.results += answers
        return answers

    def _grade(self, policy: Policy, prompts: Sequence[Prompt], groups: Sequence[Sequence[Completion]]) -> list[Answer]:
        """Return the graded answers to each prompt, in order."""
        triples = [(p.problem, n, c) for p, group in zip(prompts, groups, strict=True) for n, c in enumerate(group)]
        sizes = [len(group) for group in groups for _ in group]
        texts = [policy.chat.text(completion.ids) for _, _, completion in triples]
        rewards = compute_rewards(
            self.verifier, texts, [problem.row() for problem, _, _ in triples],
            prompts=[list(problem.prompt) for problem, _, _ in triples],
            completion_ids=[list(completion.ids) for _, _, completion in triples],
        )  # fmt: skip
        if texts:
            for name, value in {"graded": float(len(texts)), **reward_metrics(self.verifier)}.items():
                self._counts[name] = self._counts.get(name, 0.0) + value
        return [
            Answer(problem.id, problem.source, number, problem.prompt[-1]["content"], text, problem.ground_truth,
                   float(reward), len(completion.ids), completion.finished, size)
            for (problem, number, completion), text, reward, size in zip(triples, texts, rewards, sizes, strict=True)
        ]  # fmt: skip

    def end(self, verb: str) -> dict[str, dict[str, float]]:
        metrics, self._metrics, self.skip = self._metrics, None, set()
        if self.sampler.served is not None:
            barrier()  # the adapter stays on the server until the last process has its answers
        self._report_counts(verb)
        self.table = metrics.compute() if metrics is not None else {}
        return self.table

    def _report_counts(self, verb: str) -> None:
        """Log how many answers were graded, unreadable and killed in this epoch, over all processes."""
        if self._policy is None:
            return
        names = ["graded", *sorted(reward_metrics(self.verifier))]
        sums = sum_numbers({name: self._counts.get(name, 0.0) for name in names}, self._policy.device)
        counts, self._counts = {name: int(value) for name, value in sums.items()}, {}
        if global_rank():
            return
        if verb and counts["graded"]:
            logger.info("%s: %s", verb, ", ".join(f"{count} answers {name}" for name, count in counts.items()))
        if counts.get("killed"):
            logger.warning("%d answers were killed in grading and count as wrong (docs/grading.md)", counts["killed"])

    def cells(self, row: dict[str, float]) -> dict[str, str]:
        return answer_cells(row)

    def scalars(self) -> dict[str, float]:
        values: dict[str, float] = {}
        for source, row in self.table.items():
            prefix = "" if source == "mean" else f"{source or 'problems'}/"
            values |= {f"{prefix}average": row["average"], f"{prefix}pass": row["pass"]}
        return values

    def weights_changed(self) -> None:
        self.sampler.weights_changed()

    def close(self) -> None:
        """Stop the verifier's processes, and remove the policy from the server."""
        self.sampler.close()
        close_reward(self.verifier)


def choose_rewards(
    reward: RewardFunction | None, verifier: RewardFunction | None
) -> tuple[RewardFunction, RewardFunction]:
    """Choose the reward function of training and the verifier of evaluation, and check that they can be called.

    A bonus in the training reward is never reported as accuracy: the default verifier is `MathReward`, no subclass.
    """
    reward = reward if reward is not None else MathReward()
    if verifier is None and type(reward) is MathReward:
        verifier = reward
    elif verifier is None:
        logger.info("validation, test and predict are graded by MathReward: set verifier for answers of another kind")
        verifier = MathReward()
    for function in (reward, verifier):
        check_reward(function)
    return reward, verifier


def _key(problem: Problem) -> tuple[str, str, str, str]:
    """Return the fields that distinguish a problem's answers, in an `Answer` too."""
    return problem.source, problem.id, problem.prompt[-1]["content"], problem.ground_truth
