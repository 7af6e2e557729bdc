"""Problems with verifiable answers as prompts for a policy."""

import logging
import sys
from collections.abc import Sequence
from typing import Any, Literal

from lit_rft._seeds import resolve_seed
from lit_rft.batches import Prompt
from lit_rft.datamodules.position import ResumableDataModule
from lit_rft.datamodules.prompts import PromptLoader
from lit_rft.models.backbone import load_tokenizer
from lit_rft.problems import Problem, generate_training_problems, read_problems
from lit_rft.problems.generated import warn_of_overlap
from lit_rft.rewards.ground_truths import warn_of_unearnable
from lit_rft.rows import as_list
from lit_rft.transcripts import PromptFormat

logger = logging.getLogger(__name__)
_HELD_OUT = 1_000_003  # added to eval_seed, so that small training seeds generate other problems


class MathPromptDataModule(ResumableDataModule):
    """Problems from files, the Hugging Face hub, or reasoning-gym (no download).

    Files replace generated problems: `train_tasks` are not used with `train_files`, nor `eval_tasks` with `eval_files`.
    Repeats of a problem are kept once; in evaluation each adds samples (`AnsweringSettings`). docs/problems.md has the
    formats.

    Args:
        model: model of the tokenizer; null for the stage's (without a trainer, the default model's).
        train_files: Parquet, JSON lines, JSON or CSV files, folders, patterns (`data/*.jsonl`), or `hf:NAME`,
            `hf:NAME:SPLIT`, `hf:NAME:CONFIGURATION:SPLIT`.
        eval_files: the same for `validate`, `test` and `predict`.
        columns: field -> its column, for fields without a common name
            (`{prompt: question, ground_truth: answer, traces: solution}`); null for a field without a column.
        eval_columns: the same for `eval_files`; null for `columns`.
        train_tasks: reasoning-gym tasks to train on, each with a number of problems, none of them held out.
        eval_tasks: the same for evaluation; by another seed.
        task_settings: of reasoning-gym tasks by name, in training and evaluation (`{chain_sum: {max_terms: 4}}`).
        prompt_template: `chat`, `think` (the release's), or a Jinja template; see `PromptFormat`.
        max_prompt_length: maximum tokens per prompt; longer ones are excluded and counted.
        max_trace_length: maximum tokens per off-policy trace, including the end token; null for the stage's maximum
            of a completion (without a trainer, no limit).
        long_traces: `drop` longer traces (their problem is kept), or `cut` them (no end token).
        trace_share: share of prompts with traces in each training batch, in (0, 1]; few of them come again and again
            beside many others. 1 trains on them alone. null: each prompt once per epoch.
        batch_size: prompts per rollout, over all processes.
        eval_batch_size: problems per evaluation batch and process.
        seed: of the order and of generated training problems; null for the run's `seed_everything`.
        eval_seed: of generated evaluation problems, not changed by `seed_everything`: runs with different seeds are
            compared on the same ones.

    Raises:
        ValueError: For a value out of range.
        ProblemError: For an invalid row.
    """

    training_batch = evaluation_batch = "PromptBatch"

    def __init__(
        self,
        model: str | None = None,
        train_files: list[str] | str | None = None,
        eval_files: list[str] | str | None = None,
        train_tasks: dict[str, int] | None = None,
        eval_tasks: dict[str, int] | None = None,
        task_settings: dict[str, dict[str, Any]] | None = None,
        prompt_template: str = "chat",
        max_prompt_length: int = 1024,
        max_trace_length: int | None = None,
        long_traces: Literal["drop", "cut"] = "drop",
        batch_size: int = 8,
        eval_batch_size: int = 8,
        seed: int | None = None,
        eval_seed: int = 0,
        columns: dict[str, str | None] | None = None,
        eval_columns: dict[str, str | None] | None = None,
        trace_share: float | None = None,
    ) -> None:
        super().__init__()
        positive = {"max_prompt_length": max_prompt_length, "max_trace_length": max_trace_length,
                    "batch_size": batch_size, "eval_batch_size": eval_batch_size}  # fmt: skip
        for name, value in positive.items():
            if value is not None and value < 1:
                raise ValueError(f"{name} must be >= 1, got {value}")
        if long_traces not in ("drop", "cut"):
            raise ValueError(f"long_traces must be drop or cut, got {long_traces!r}")
        if trace_share is not None and not (0 < trace_share <= 1 and round(trace_share * batch_size)):
            raise ValueError(
                f"trace_share must be in (0, 1], and at least one prompt of batch_size={batch_size}, got {trace_share}"
            )
        self.trace_share = trace_share
        self.model, self.prompt_template = model, prompt_template
        self.train_files, self.eval_files = as_list(train_files), as_list(eval_files)
        self.columns = columns
        self.eval_columns = columns if eval_columns is None else eval_columns
        self.train_tasks, self.eval_tasks = train_tasks or {}, eval_tasks or {}
        self.task_settings = task_settings or {}
        self.max_prompt_length, self.max_trace_length = max_prompt_length, max_trace_length
        self.long_traces = long_traces
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.seed, self.eval_seed = resolve_seed(seed), _HELD_OUT + eval_seed
        if self.seed == self.eval_seed:
            raise ValueError(f"seed {self.seed} would generate the evaluation problems for training: set another")
        self.prompts: dict[str, list[Prompt]] = {}  # `train` and `eval`, after `setup`
        self._cut = 0  # traces that were too long

    @property
    def trace_limit(self) -> int:
        """Maximum tokens per trace: `max_trace_length`, or the stage's maximum of a completion."""
        return self.max_trace_length or self.stage.get("max_tokens") or sys.maxsize

    def setup(self, stage: str) -> None:
        held_out: list[Problem] = []
        if stage != "fit" or self.eval_files or self.eval_tasks:
            held_out = self._problems(self.eval_files, self.eval_tasks, self.eval_columns, "eval")
        if stage == "fit":
            problems = self._problems(self.train_files, self.train_tasks, self.columns, "train", held_out)
            self.prompts["train"] = self._tokenize(problems, "train")
            self._check_traces(self.prompts["train"])
            if self._traced_per_batch == self.batch_size:
                self.prompts["train"] = self._traced(self.prompts["train"])
        if held_out:
            self.prompts["eval"] = self._tokenize(held_out, "eval")
        self._check_ground_truths()

    @property
    def _traced_per_batch(self) -> int:
        """Number of prompts with traces in each training batch; 0 for any number."""
        return round((self.trace_share or 0.0) * self.batch_size)

    def _check_ground_truths(self) -> None:
        """Warn about ground truths that no answer matches by the stage's reward, or its verifier in evaluation."""
        if self.trainer is None or not self.trainer.is_global_zero:
            return
        for name, grader in (("train", "reward"), ("eval", "verifier")):
            if problems := [prompt.problem for prompt in self.prompts.get(name, [])]:
                warn_of_unearnable(problems, self.stage.get(grader))

    def _problems(
        self,
        files: list[str],
        tasks: dict[str, int],
        columns: dict[str, str | None] | None,
        name: str,
        held_out: Sequence[Problem] = (),
    ) -> list[Problem]:
        """Read problems from files, or else generate them without the held-out ones.

        Generated problems of a config must not mix with a user's files.

        Raises:
            ValueError: If there are neither; see also `read_problems` and `generate_training_problems`.
        """
        generated = f"{sum(tasks.values())} generated problems of {', '.join(tasks)}"
        if files:
            problems = read_problems(files, columns)
            if tasks:
                logger.warning("%s: %d problems of %s_files replace %s (%s_tasks)",
                               name, len(problems), name, generated, name)  # fmt: skip
            warn_of_overlap(problems, held_out)
            return problems
        if not tasks:
            raise ValueError(f"no problems: set {name}_files or {name}_tasks")
        other, other_files = ("train", self.train_files) if name == "eval" else ("eval", self.eval_files)
        if other_files:
            logger.warning("%s: %s_files are given, but no %s_files: %s are used (%s_tasks)",
                           name, other, name, generated, name)  # fmt: skip
        seed = self.seed if name == "train" else self.eval_seed
        return [
            problem
            for task, number in tasks.items()
            for problem in generate_training_problems(
                task, number, held_out, seed=seed, **self.task_settings.get(task, {})
            )
        ]

    def _check_traces(self, prompts: list[Prompt]) -> None:
        """Reject data without traces if the objective needs them: LUFFY would be GRPO.

        Raises:
            ValueError: If the stage needs traces and no problem has one.
        """
        if not self.stage.get("needs_traces") or any(prompt.traces for prompt in prompts):
            return
        given = sum(len(prompt.problem.traces) for prompt in prompts)
        limit = "max_trace_length" if self.max_trace_length else "the stage's completions, max_trace_length"
        reason, remedy = "none was found", "set their column (data.init_args.columns: {traces: NAME})"
        if given:
            reason = f"all {given} are longer than {limit}={self.trace_limit}"
            remedy = "raise data.init_args.max_trace_length, or cut them (data.init_args.long_traces: cut)"
        raise ValueError(
            f"the objective needs off-policy traces, but none of {len(prompts)} training problems has one: {reason}; "
            f"{remedy}, or train without them (model.init_args.objective.traces_per_group 0 is GRPO)"
        )

    def _traced(self, prompts: list[Prompt]) -> list[Prompt]:
        if traced := [prompt for prompt in prompts if prompt.traces]:
            return traced
        raise ValueError(f"trace_share={self.trace_share}, but none of {len(prompts)} training problems has a trace")

    def _tokenize(self, problems: list[Problem], name: str) -> list[Prompt]:
        self._cut = 0
        self.tokenizer = load_tokenizer(self.model_name)
        form = PromptFormat(self.tokenizer, self.prompt_template)
        prompts = [self._prompt(problem, form) for problem in problems]
        kept = [prompt for prompt in prompts if len(prompt.ids) <= self.max_prompt_length]
        if len(kept) < len(prompts):
            logger.warning("%d of %d prompts are longer than max_prompt_length=%d and are left out",
                           len(prompts) - len(kept), len(prompts), self.max_prompt_length)  # fmt: skip
        if not kept:
            raise ValueError(
                f"all {len(prompts)} prompts are longer than max_prompt_length={self.max_prompt_length}: raise it"
            )
        self._report(kept, name)
        return kept

    def _prompt(self, problem: Problem, form: PromptFormat) -> Prompt:
        known = problem.trace_log_probs or ((),) * len(problem.traces)
        traces = []
        for number, (text, log_probs) in enumerate(zip(problem.traces, known, strict=True)):
            ids = form.completion_ids(text)
            if log_probs and len(log_probs) != len(ids):
                raise ValueError(
                    f"problem {problem.id}: trace {number} has {len(log_probs)} trace_log_probs and {len(ids)} tokens, "
                    f"including its end, with the tokenizer of {self.model_name}: the numbers must be equal"
                )
            traces.append((ids, text, list(log_probs)))
        limit = self.trace_limit
        if self.long_traces == "drop":
            traces = [trace for trace in traces if len(trace[0]) <= limit]
        cut = slice(limit)
        self._cut += sum(len(ids) > limit for ids, _, _ in traces)
        return Prompt(
            problem,
            form.prompt_ids(problem.prompt),
            [ids[cut] for ids, _, _ in traces],
            [form.text(ids[cut]) for ids, _, _ in traces],  # rewards are of the trained text
            [log_probs[cut] for _, _, log_probs in traces],
        )

    def _report(self, prompts: list[Prompt], name: str) -> None:
        given = sum(len(prompt.problem.traces) for prompt in prompts)
        kept = sum(len(prompt.traces) for prompt in prompts)
        without = sum(not prompt.traces for prompt in prompts)
        logger.info("%s: %d problems, %d off-policy traces; problems without any: %d",
                    name, len(prompts), kept, without)  # fmt: skip
        long = given - kept if self.long_traces == "drop" else self._cut
        if long:
            fate = "left out" if self.long_traces == "drop" else "cut"
            logger.warning("%d of %d traces are longer than max_trace_length=%d and are %s",
                           long, given, self.trace_limit, fate)  # fmt: skip

    def train_dataloader(self) -> PromptLoader:
        traced = self._traced_per_batch % self.batch_size  # all of them: no others are left
        return self.in_position(self._loader("train", self.batch_size, shuffle=True, traced_per_batch=traced))

    def val_dataloader(self) -> PromptLoader | list[Any]:
        if "eval" not in self.prompts:
            return []
        return self._loader("eval", self.eval_batch_size * self._place()[1], shuffle=False)

    test_dataloader = predict_dataloader = val_dataloader

    def _loader(self, name: str, batch_size: int, shuffle: bool, traced_per_batch: int = 0) -> PromptLoader:
        rank, world_size = self._place()
        return PromptLoader(
            self.prompts[name],
            batch_size=batch_size,
            shuffle=shuffle,
            seed=self.seed,
            rank=rank,
            world_size=world_size,
            traced_per_batch=traced_per_batch,
        )

    def _place(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)
