"""Episodes of a text environment as training data, and episodes to play for evaluation."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lit_rft._seeds import resolve_seed
from lit_rft.agents import Agent, HierarchicalAgent, add_outcomes
from lit_rft.datamodules.loaders import JobLoader, StepLoader
from lit_rft.datamodules.position import ResumableDataModule
from lit_rft.datamodules.rendering import log_sizes, within_context
from lit_rft.envs.base import EpisodeSpec, Half, TaskSuite, describe, expert_of
from lit_rft.envs.collect import collect_expert_episodes
from lit_rft.episodes import Episode, apply_annotator, read_episodes
from lit_rft.models.backbone import load_tokenizer
from lit_rft.rows import as_list
from lit_rft.transcripts import ChatFormat, Transcript


class TrajectoryDataModule(ResumableDataModule):
    """Trains on stored episodes (by default collected expert episodes) and evaluates on held-out ones.

    Each record is an episode, from which the agent derives its transcripts (such as subgoals and actions).

    Args:
        model: model of the tokenizer; null for the stage's (without a trainer, the default model's).
        agent: renders episodes as transcripts within its context length: longer transcripts lose their earliest turns.
            Null for the stage's (without a trainer, `HierarchicalAgent`).
        train_files: episode files or folders (.jsonl, .parquet) to train on; null collects expert episodes of the
            suite's training split into `data_dir`, by the suite's expert.
        medium_files: files or folders of medium-quality episodes (for example played by a policy) to mix in; null for
            none.
        medium_per_expert: number of medium-quality episodes per expert episode in each epoch, cycling through them.
        medium_filter: selects among the medium-quality episodes, such as `lit_rft.episodes.DistinctFailures`; null for
            all of them.
        outcomes: add reward and end of each decision, which critics learn from; null: if the stage has critics.
        annotate: a function that returns an episode's subgoals, as (start, end, goal) over step indices (an import path
            in a config), in place of those in the files; null keeps theirs.
        data_dir: folder of collected episodes.
        suite: the tasks and their environment (`lit_rft.envs.TaskSuite`); null: training on files, no
            evaluation.
        tasks: names of tasks of the suite; null for all.
        train_episodes_per_task: episodes per task to collect or play for training; null for all.
        train_half: collect from one half of each task's episodes only; null for both.
        eval_split: split of `validate` and `test`, by the suite's names.
        eval_episodes_per_task: episodes per task to play; null for the suite's default.
        predict_split: split of `predict`.
        predict_episodes_per_task: episodes per task to play in `predict`; null for the suite's default.
        predict_half: play one half of each task's episodes only, for example the one without training; null for both.
        predict_repeats: number of times that `predict` plays each; they differ if the sampling temperature is above 0.
        batch_size: episodes per optimiser step, over all processes.
        collect_workers: number of simulators for collection.
        seed: of the order of training and of the episodes that are collected, trained on and played by `predict`;
            null for the run's `seed_everything`.
        eval_seed: of the choice of evaluation episodes, not changed by `seed_everything`: runs with different seeds
            are compared on the same ones.

    Raises:
        ValueError: For a value out of range, an unknown task or split.
        EpisodeError: For corrupt files.
    """

    training_batch, evaluation_batch = "StepTranscripts", "EpisodeJobs"

    def __init__(
        self,
        model: str | None = None,
        agent: Agent | None = None,
        train_files: list[str] | str | None = None,
        medium_files: list[str] | str | None = None,
        medium_per_expert: float = 2.0,
        medium_filter: Callable[[list[Episode]], list[Episode]] | None = None,
        outcomes: bool | None = None,
        annotate: Callable[[Episode], list[tuple[int, int, str]]] | None = None,
        data_dir: str = "data",
        suite: TaskSuite | None = None,
        tasks: list[str] | None = None,
        train_episodes_per_task: int | None = 14,
        train_half: Half | None = None,
        eval_split: str = "dev",
        eval_episodes_per_task: int | None = None,
        predict_split: str = "train",
        predict_episodes_per_task: int | None = None,
        predict_half: Half | None = None,
        predict_repeats: int = 1,
        batch_size: int = 8,
        collect_workers: int = 2,
        seed: int | None = None,
        eval_seed: int = 0,
    ) -> None:
        super().__init__()
        positive = {"batch_size": batch_size, "predict_repeats": predict_repeats}
        for name, value in positive.items():
            if value < 1:
                raise ValueError(f"{name} must be >= 1, got {value}")
        if not medium_per_expert > 0:
            raise ValueError(f"medium_per_expert must be > 0, got {medium_per_expert}")
        self.model, self.agent = model, agent
        self.train_files = None if train_files is None else as_list(train_files)
        self.medium_files = None if medium_files is None else as_list(medium_files)
        self.annotate, self.data_dir = annotate, Path(data_dir)
        self.suite = suite
        self.medium_per_expert, self.outcomes = medium_per_expert, outcomes
        self.medium_filter = medium_filter
        self.tasks, self.train_episodes_per_task = tasks, train_episodes_per_task
        self.train_half, self.predict_half = train_half, predict_half
        self.eval_split, self.eval_episodes_per_task = eval_split, eval_episodes_per_task
        self.predict_split, self.predict_episodes_per_task = predict_split, predict_episodes_per_task
        self.predict_repeats = predict_repeats
        self.batch_size, self.collect_workers = batch_size, collect_workers
        self.seed, self.eval_seed = resolve_seed(seed), eval_seed
        self.episodes: list[Episode] = []  # training episodes; medium-quality ones come last
        self.rendered: list[Episode] = []  # those of the transcripts made last
        self.transcripts: list[list[Transcript]] = []
        self.medium: list[list[Transcript]] = []
        self._jobs: dict[str, list[EpisodeSpec]] = {}
        self._without_decisions = 0  # number of transcripts without decisions after truncation

    @property
    def acting_agent(self) -> Agent:
        """The data module's agent, or else the stage's."""
        agent: Agent = self.agent or self.stage.get("agent") or HierarchicalAgent()
        return agent

    @property
    def task_suite(self) -> TaskSuite:
        """The tasks to collect and to play.

        Raises:
            ValueError: If none is given.
        """
        if self.suite is None:
            raise ValueError(
                "no tasks to play: set data.init_args.suite (such as lit_rft.envs.scienceworld.short_tasks, or "
                "lit_rft.envs.GymSuite with an environment of yours), or train on data.init_args.train_files with "
                "trainer.limit_val_batches 0"
            )
        return self.suite

    @property
    def expert_file(self) -> Path:
        """File of the collected expert episodes; its name depends on everything they depend on."""
        tasks = "" if self.tasks is None else json.dumps(self.tasks)
        digest = hashlib.sha256(f"{describe(self.task_suite)}{tasks}".encode()).hexdigest()[:8]
        number = "all" if self.train_episodes_per_task is None else str(self.train_episodes_per_task)
        half = f"-{self.train_half}" if self.train_half else ""
        return self.data_dir / f"expert-{self.task_suite.name}-{number}{half}-seed{self.seed}-{digest}.jsonl"

    def prepare_data(self) -> None:
        """Collect missing expert episodes, if required. Resumes an interrupted collection."""
        if self.train_files is None and self.trainer is not None and self.trainer.state.fn == "fit":
            self.collect()

    def collect(self) -> list[Episode]:
        """Return the expert episodes of the training split, from the file or by the suite's expert.

        Raises:
            ValueError: If there is neither.
        """
        expert_of(self.task_suite)
        jobs = self._make_jobs("train", self.train_episodes_per_task, self.train_half)
        if self.expert_file.exists():
            wanted = {f"{job.id}/{expert_of(self.task_suite).kind}" for job in jobs}
            episodes = [e for e in read_episodes(self.expert_file) if e.id in wanted]
            if len(episodes) == len(wanted):
                return episodes
        self.data_dir.mkdir(parents=True, exist_ok=True)
        return collect_expert_episodes(self.task_suite, jobs, self.expert_file, num_workers=self.collect_workers)

    def setup(self, stage: str) -> None:
        if stage == "fit":
            self.load_training_data()
        self.choose_episodes(stage)

    def choose_episodes(self, stage: str) -> None:
        """Choose the episodes to play in a verb of the trainer, of the suite's splits."""
        if stage in ("validate", "test") or (stage == "fit" and self._validates()):
            self._jobs["eval"] = self._make_jobs(self.eval_split, self.eval_episodes_per_task, seed=self.eval_seed)
        if stage == "predict":
            jobs = self._make_jobs(self.predict_split, self.predict_episodes_per_task, self.predict_half)
            self._jobs["predict"] = [
                replace(job, id=f"{job.id}/{n}") for n in range(self.predict_repeats) for job in jobs
            ]

    def _validates(self) -> bool:
        """Return whether this fit will ever validate; otherwise it needs no simulator."""
        trainer = self.trainer
        if trainer is None or trainer.limit_val_batches == 0:
            return False
        every, epochs = trainer.check_val_every_n_epoch, trainer.max_epochs
        return every is None or epochs in (None, -1) or every <= epochs

    def _make_jobs(
        self,
        split: str,
        per_task: int | None,
        half: Half | None = None,
        tasks: list[str] | None = None,
        seed: int | None = None,
    ) -> list[EpisodeSpec]:
        return self.task_suite.episodes(
            split, tasks=tasks or self.tasks, limit=per_task, half=half, seed=self.seed if seed is None else seed
        )

    def load_training_data(self) -> None:
        """Read the stored episodes and make their transcripts; subclasses read others."""
        files = self.expert_files()
        expert, medium = self.read(files), self.read_medium()
        self.episodes = expert + medium
        chat = self.read_tokenizer()
        self.transcripts = self._make_transcripts(expert, chat, "train_files", files)
        if self.medium_files is not None:
            self.medium = self._make_transcripts(medium, chat, "medium_files", self.medium_files)
        log_sizes([*self.transcripts, *self.medium], self.acting_agent.max_length, self._without_decisions)

    def read_medium(self) -> list[Episode]:
        """Read the medium-quality episodes that `medium_filter` selects.

        Raises:
            ValueError: If it selects none of them.
        """
        played = self.read(self.medium_files or [])
        if self.medium_filter is None:
            return played
        medium = self.medium_filter(played)
        if played and not medium:
            raise ValueError(
                f"medium_filter kept none of the {len(played)} episodes in "
                f"{', '.join(map(str, self.medium_files or []))}: set data.init_args.medium_files to others, or "
                "data.init_args.medium_filter to null"
            )
        return medium

    def expert_files(self) -> Sequence[str | Path]:
        """Return the files of expert episodes; these are collected if there are none."""
        if self.train_files is not None:
            return self.train_files
        if not self.expert_file.exists():
            self.collect()  # without a trainer; otherwise `prepare_data` has done it in one process
        return [self.expert_file]

    def read_tokenizer(self) -> ChatFormat:
        """Load the tokenizer, and return its chat format."""
        self.tokenizer = load_tokenizer(self.model_name)
        return ChatFormat(self.tokenizer)

    def read(self, files: Sequence[str | Path]) -> list[Episode]:
        """Read stored episodes, with the subgoals of `annotate` if that is set."""
        episodes = [episode for file in files for episode in read_episodes(file)]
        if self.annotate is None:
            return episodes
        name = getattr(self.annotate, "__name__", "user")
        return [apply_annotator(episode, self.annotate, name) for episode in episodes]

    def _make_transcripts(
        self, episodes: list[Episode], chat: ChatFormat, key: str, files: Sequence[str | Path]
    ) -> list[list[Transcript]]:
        """Make the transcripts of each episode that has any; the key is that of the files, for errors."""
        groups, agent, self.rendered = [], self.acting_agent, []
        outcomes = self.stage.get("needs_outcomes") if self.outcomes is None else self.outcomes
        for episode in episodes:
            transcripts = agent.transcripts(episode, chat)
            if outcomes:
                transcripts = add_outcomes(transcripts, episode, chat, agent)
            kept = within_context(transcripts, agent.max_length)
            self._without_decisions += len(transcripts) - len(kept)
            if kept:
                groups.append(kept)
                self.rendered.append(episode)
        if not groups:
            raise ValueError(
                f"expected episodes with steps to train on, got {len(episodes)} episodes without any in "
                f"{', '.join(map(str, files))}: set data.init_args.{key} to others"
            )
        return groups

    def train_dataloader(self) -> StepLoader:
        return self.in_position(self.training_loader())

    def training_loader(self) -> StepLoader:
        """Make a loader of the transcripts, from the beginning."""
        rank, world_size = self._place()
        return StepLoader(
            self.transcripts,
            batch_size=self.batch_size,
            mixed_episodes=self.medium,
            mixed_per_epoch=round(self.medium_per_expert * len(self.transcripts)) if self.medium else 0,
            seed=self.seed,
            rank=rank,
            world_size=world_size,
        )

    def val_dataloader(self) -> JobLoader | list[Any]:
        return self._job_loader("eval")

    def test_dataloader(self) -> JobLoader | list[Any]:
        return self._job_loader("eval")

    def predict_dataloader(self) -> JobLoader | list[Any]:
        return self._job_loader("predict")

    def _job_loader(self, name: str) -> JobLoader | list[Any]:
        if name not in self._jobs:
            return []
        rank, world_size = self._place()
        return JobLoader(self._jobs[name], self.task_suite.make_env, rank=rank, world_size=world_size)

    def _place(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)
