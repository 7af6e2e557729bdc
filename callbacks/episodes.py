"""Played episodes: as texts of the loggers, and as files."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import lightning as L
from lightning.pytorch.callbacks import BasePredictionWriter
from rich.console import Console

from lit_rft.agents import PlayedEpisode
from lit_rft.callbacks.loggers import log_text
from lit_rft.callbacks.results import evaluator_of, own_file
from lit_rft.envs.base import EpisodeSpec, problem_key
from lit_rft.episodes import Episode
from lit_rft.episodes.io import EpisodeWriter


class EvaluatesEpisodes(Protocol):
    """Evaluator on episodes; `lit_rft.stages.core.evaluate_episodes.EpisodeEvaluator` is one.

    `results`: the episodes of the epoch so far, without `on_result`. `skip`: ids that `predict` may leave out.
    `finished`: episodes of an earlier run. `on_result`: called at the end of each episode.
    """

    results: list[PlayedEpisode]
    skip: set[str]
    finished: Sequence[Episode]
    on_result: Callable[[PlayedEpisode], None] | None


class EpisodeText(L.Callback):
    """Logs some episodes of each validation and test as text, with subgoals, actions and observations.

    Args:
        number: number of episodes, from different tasks first.
    """

    def __init__(self, number: int = 4) -> None:
        if number < 1:
            raise ValueError(f"number must be >= 1, got {number}")
        self.number = number

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._log(trainer, pl_module, "val")

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._log(trainer, pl_module, "test")

    def _log(self, trainer: L.Trainer, pl_module: L.LightningModule, prefix: str) -> None:
        if not trainer.is_global_zero:
            return
        episodes = [played.episode for played in _evaluator(pl_module).results]
        seen: dict[str, int] = {}
        ranked = []
        for index, episode in enumerate(episodes):
            seen[episode.task] = seen.get(episode.task, 0) + 1
            ranked.append((seen[episode.task], index))
        for _, index in sorted(ranked)[: self.number]:
            episode = episodes[index]
            log_text(trainer, f"{prefix}/episode/{episode.task}", episode_markdown(episode))


def episode_markdown(episode: Episode) -> str:
    """Format an episode as Markdown: subgoals as headings, then actions and observations."""
    outcome = episode.outcome
    lines = [
        f"**{episode.id}**: score {100 * outcome.score:.0f}, {outcome.reason}, {len(episode.steps)} steps",
        f"*{episode.task_description}*",
        _quote(episode.initial_observation),
    ]
    starts = {subgoal.start: subgoal for subgoal in episode.subgoals}
    for index, step in enumerate(episode.steps):
        if index in starts:
            subgoal = starts[index]
            lines.append(f"### {subgoal.goal} ({'done' if subgoal.completed else 'given up'})")
        mark = "" if step.valid else " (invalid)"
        lines.append(f"`{step.action or ' '}`{mark} -> {100 * step.score:.0f}")
        lines.append(_quote(step.observation))
    return "\n\n".join(lines)


def _quote(text: str) -> str:
    return "\n".join(f"> {line.strip()}  " for line in text.splitlines() if line.strip())


class EpisodeFiles(BasePredictionWriter):
    """Writes the episodes of `predict` as they end, as a data set for the next stage.

    Resumable: episodes in the file are not played again. A file of another policy, other sampling, another step limit
    or other problems under the same ids is rejected.

    Args:
        path: a `.jsonl` file; null for `<default_root_dir>/episodes/predicted.jsonl`. With several processes each
            writes its own file, with `-rank<n>` before the suffix.
    """

    def __init__(self, path: str | None = None) -> None:
        super().__init__(write_interval="batch")
        if path is not None and Path(path).suffix != ".jsonl":
            raise ValueError(f"path must end in .jsonl, got {path}")
        self.path = path
        self._writer: EpisodeWriter | None = None

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        path = own_file(trainer, self.path, "episodes/predicted.jsonl")
        self._writer = EpisodeWriter(path)
        evaluator = _evaluator(pl_module)
        source = cast(Any, pl_module).evaluation_source()
        specs = {job.id: job for job in getattr(trainer.predict_dataloaders, "jobs", ())}
        for episode in self._writer.episodes:
            # the id of a trial is that of its problem and one more part
            spec = specs.get(episode.id) or specs.get(episode.id.rpartition("/")[0])
            if spec is not None:
                self._check_problem(episode, spec, path)
            made_by = {key: value for key, value in episode.source.items() if key != "malformed"}
            if made_by != source:
                self._close()
                raise ValueError(
                    f"{path} holds episodes of another policy or sampling ({made_by}, now {source}): set "
                    "another file (EpisodeFiles.path), or move this one"
                )
        evaluator.skip = set(self._writer.ids)
        evaluator.finished, evaluator.on_result = self._writer.episodes, self._write

    def _check_problem(self, episode: Episode, spec: EpisodeSpec, path: Path) -> None:
        advice = "set another file (EpisodeFiles.path), or move this one"
        if episode.step_limit != spec.step_limit:
            self._close()
            raise ValueError(
                f"expected episodes of at most {spec.step_limit} steps in {path}, got {episode.id} with a limit of "
                f"{episode.step_limit}: {advice}"
            )
        if problem_key(episode) != problem_key(spec):
            self._close()
            raise ValueError(
                f"expected the problem {spec.task} {spec.meta} under the id {episode.id} in {path}, got "
                f"{episode.task} {episode.meta}: {advice}"
            )

    def write_on_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        prediction: Sequence[PlayedEpisode],
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Do nothing: episodes are written as they end, several of a problem with trials."""

    def _write(self, played: PlayedEpisode) -> None:
        assert self._writer is not None
        if played.episode.outcome.reason != "env_error":  # played again when resumed
            self._writer.append(played.episode)

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._close()
        assert self._writer is not None
        if trainer.is_global_zero:
            Console().print(f"{len(self._writer.ids)} episodes are in {self._writer.path}")

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def _evaluator(module: L.LightningModule) -> EvaluatesEpisodes:
    advice = "use CompletionText and CompletionFiles in place of EpisodeText and EpisodeFiles"
    return cast(EvaluatesEpisodes, evaluator_of(module, "EpisodeJobs", advice))
