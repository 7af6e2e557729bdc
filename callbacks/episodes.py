"""Played episodes: as texts of the loggers, and as files."""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import lightning as L
from lightning.pytorch.callbacks import BasePredictionWriter
from rich.console import Console

from lit_rft.agents import PlayedEpisode
from lit_rft.callbacks.dry_run import is_dry_run
from lit_rft.callbacks.loggers import log_text
from lit_rft.callbacks.results import evaluator_of, own_file, read_other_files
from lit_rft.episodes import Episode
from lit_rft.episodes.io import EpisodeWriter, read_episodes


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

    Resumable, also with another number of processes: episodes in the files are not played again. A file of another
    policy, sampling, split or step limit, or of other problems under the same ids, is rejected; other tasks are added.

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
        evaluator = _evaluator(pl_module)
        self._writer = None
        if is_dry_run(trainer):
            return
        path = own_file(trainer, self.path, "episodes/predicted.jsonl")
        self._writer = EpisodeWriter(path)
        try:
            episodes = self._stored(trainer, path)
            _check_episodes(episodes, trainer.predict_dataloaders, cast(Any, pl_module).evaluation_source())
        except BaseException:
            self._close()
            raise
        evaluator.skip = {episode.id for _, episode in episodes}
        evaluator.finished, evaluator.on_result = [episode for _, episode in episodes], self._write

    def _stored(self, trainer: L.Trainer, path: Path) -> list[tuple[Path, Episode]]:
        """Return the episodes of all processes, with their files, before any of them adds another one."""
        assert self._writer is not None
        others = read_other_files(trainer, path, lambda file: EpisodeWriter(file).close(), read_episodes)
        return [*((path, episode) for episode in self._writer.episodes), *others]

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
        if trainer.is_global_zero and self._writer is not None:
            Console().print(f"{len(self._writer.ids)} episodes are in {self._writer.path}")

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def _check_episodes(stored: Sequence[tuple[Path, Episode]], loader: Any, source: dict[str, Any]) -> None:
    """Check that stored episodes can be in one file with those that are to be played.

    Args:
        stored: the episodes, with their files.
        loader: of the episodes to play, with `all_jobs`; others are not compared.
        source: identity of the policy and its sampling.

    Raises:
        ValueError: For episodes of another split, step limit, policy or sampling, or other problems under known ids.
    """
    jobs = {job.id: job for job in getattr(loader, "all_jobs", ())}
    splits = {job.split for job in jobs.values()}
    advice = "set another file (EpisodeFiles.path), or move this one"
    for path, episode in stored:
        job = jobs.get(episode.id) or jobs.get(re.sub(r"/trial\d+$", "", episode.id))
        if jobs and episode.split not in splits:
            raise ValueError(
                f"expected episodes of the split {', '.join(sorted(splits))} in {path}, got {episode.id} of the split "
                f"{episode.split}: {advice}"
            )
        if job is not None and episode.step_limit != job.step_limit:
            raise ValueError(
                f"expected episodes of at most {job.step_limit} steps in {path}, got {episode.id} with a limit of "
                f"{episode.step_limit}: {advice}"
            )
        if job is not None and episode.meta != (meta := json.loads(json.dumps(job.meta))):
            raise ValueError(f"expected {episode.id} with meta {meta} in {path}, got {episode.meta}: {advice}")
        made_by = {key: value for key, value in episode.source.items() if key != "malformed"}
        if made_by != source:
            raise ValueError(f"{path} holds episodes of another policy or sampling ({made_by}, now {source}): {advice}")


def _evaluator(module: L.LightningModule) -> EvaluatesEpisodes:
    advice = "use CompletionText and CompletionFiles in place of EpisodeText and EpisodeFiles"
    return cast(EvaluatesEpisodes, evaluator_of(module, "EpisodeJobs", advice))
