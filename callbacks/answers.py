"""Answers to problems: as tables of the loggers, and as files."""

import contextlib
import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import BasePredictionWriter
from rich.console import Console

from lit_rft._files import AppendedFile, replacing
from lit_rft.callbacks.dry_run import is_dry_run
from lit_rft.callbacks.loggers import log_table
from lit_rft.callbacks.results import evaluator_of, own_file, read_other_files


class CompletionText(L.Callback):
    """Logs completions as tables, for modules with `samples` and `answers` (`MixedPolicyGRPO`).

    In training a table of prompt, off-policy trace and on-policy completion with their rewards; after validation and
    test some answers.

    Args:
        number: maximum number of completions.
        every_n_batches: interval in training.
    """

    def __init__(self, number: int = 4, every_n_batches: int = 10) -> None:
        if number < 1 or every_n_batches < 1:
            raise ValueError(f"number and every_n_batches must be >= 1, got {number} and {every_n_batches}")
        self.number, self.every_n_batches = number, every_n_batches

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx % self.every_n_batches:
            return
        module: Any = pl_module
        groups: dict[int, list[Any]] = {}
        for rollout in module.samples:
            groups.setdefault(rollout.group, []).append(rollout)
        if not groups:
            return
        questions = {prompt.problem.id: prompt.problem.prompt[-1]["content"] for prompt in batch.prompts}
        rows = []
        for members in list(groups.values())[: self.number]:
            completion = next((rollout for rollout in members if not rollout.off_policy), None)
            trace = next((rollout for rollout in members if rollout.off_policy), None)
            prompt = questions.get(members[0].id) or _prompt_text(module, members[0])  # a source may exchange prompts
            rows.append([prompt, *_text_and_reward(trace), *_text_and_reward(completion)])
        columns = ["prompt", "trace", "reward of the trace", "completion", "reward"]
        log_table(trainer, "train/completions", columns, rows)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._answers(trainer, pl_module, "val")

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._answers(trainer, pl_module, "test")

    def _answers(self, trainer: L.Trainer, pl_module: L.LightningModule, prefix: str) -> None:
        rows = [
            [sample.prompt, sample.completion, sample.ground_truth, f"{sample.reward:g}"]
            for sample in _evaluator(pl_module).results[: self.number]
        ]
        if rows:
            log_table(trainer, f"{prefix}/answers", ["prompt", "completion", "ground truth", "reward"], rows)


def _prompt_text(module: Any, rollout: Any) -> str:
    transcript = rollout.transcripts[0]
    text: str = module.chat.tokenizer.decode(transcript.input_ids[: transcript.utterance_starts[0]])
    return text


def _text_and_reward(completion: Any) -> list[str]:
    return ["-", "-"] if completion is None else [completion.text, f"{completion.reward:g}"]


class CompletionFiles(BasePredictionWriter):
    """Writes the answers of `predict`, with their rewards, as JSON lines.

    Resumable, also with another number of processes: problems in the files are not answered again. A file of another
    policy (its weights count), reward or sampling, or of other problems, is rejected, and one that another call writes.

    Args:
        path: null for `<default_root_dir>/completions.jsonl`. With several processes each writes its own file, with
            `-rank<n>` before the suffix.
    """

    def __init__(self, path: str | None = None) -> None:
        super().__init__(write_interval="batch")
        self.path = path
        self._path: Path | None = None
        self._file: AppendedFile | None = None

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        module: Any = pl_module
        evaluator = _evaluator(module)
        self._path = self._file = None
        if is_dry_run(trainer):
            return
        path = self._path = own_file(trainer, self.path, "completions.jsonl")
        head = {"source": module.evaluation_source(), "data": data_fingerprints(trainer.predict_dataloaders)}
        lines = _locked_lines(path, head)
        self._file = AppendedFile(path)
        try:
            if not lines:
                self._file.append(_to_line(head))
            answers = lines[1:] + _answers_of_others(trainer, path, head)
        except BaseException:
            self._close()
            raise
        evaluator.skip = {_question(line) for line in answers}

    def write_on_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        prediction: Sequence[Any],
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        if self._file is None:  # a dry run
            return
        # one write: all answers of a problem, or none
        self._file.append(b"".join(_to_line(dataclasses.asdict(sample)) for sample in prediction))

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._close()
        if trainer.is_global_zero and self._path is not None:
            Console().print(f"completions are in {self._path}")

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _evaluator(module: L.LightningModule) -> Any:
    advice = "use EpisodeText and EpisodeFiles in place of CompletionText and CompletionFiles"
    return evaluator_of(module, "PromptBatch", advice)


def data_fingerprints(loaders: Any) -> list[str | None]:
    """Return the fingerprints of the problems of data loaders; null for loaders without (`PromptLoader` has one)."""
    loaders = loaders if isinstance(loaders, (list, tuple)) else [loaders]
    return [loader.fingerprint() if hasattr(loader, "fingerprint") else None for loader in loaders]


def _check_head(path: Path, existing: Any, head: dict[str, Any]) -> None:
    """Check that a file's first line matches this run.

    Raises:
        ValueError: For a file of another policy, reward, sampling or other problems.
    """
    advice = "name another file (CompletionFiles.path) or folder (trainer.default_root_dir), or remove this one"
    if existing.get("source") != head["source"]:
        raise ValueError(
            f"{path} holds answers of another policy, reward or sampling ({existing.get('source')}, now "
            f"{head['source']}): {advice}"
        )
    if existing.get("data") != head["data"]:
        raise ValueError(
            f"{path} holds answers to other problems (fingerprint {existing.get('data')}, now {head['data']}): {advice}"
        )


def _complete_lines(path: Path, head: dict[str, Any]) -> list[Any]:
    """Read the head and the answers of a file whose writer may have been killed.

    Problems with missing answers are removed: the file is rewritten atomically.

    Args:
        path: of the file.
        head: expected first line.

    Raises:
        ValueError: If the file is corrupt elsewhere, or belongs to another run; it is not changed.
    """
    if not path.exists():
        return []
    complete, _, torn = path.read_bytes().rpartition(b"\n")
    try:
        lines = [json.loads(line) for line in complete.splitlines()]
    except ValueError as error:
        raise ValueError(
            f"{path} is corrupt before its last line ({error}): set another file (CompletionFiles.path)"
        ) from error
    if lines and not (isinstance(lines[0], dict) and isinstance(lines[0].get("source"), dict)):
        raise ValueError(f"{path} is not a completions file: set another file (CompletionFiles.path)")
    if lines:
        _check_head(path, lines[0], head)
    numbers = Counter(_question(line) for line in lines[1:])
    kept = lines[:1] + [line for line in lines[1:] if numbers[_question(line)] >= line["num_samples"]]
    if torn or len(kept) < len(lines):
        with replacing(path) as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
    return kept


def _locked_lines(path: Path, head: dict[str, Any]) -> list[Any]:
    """Read the lines of a file as `_complete_lines` does.

    Raises:
        BlockingIOError: If another process writes it.
    """
    with contextlib.closing(AppendedFile(path)):
        return _complete_lines(path, head)


def _to_line(values: Any) -> bytes:
    return json.dumps(values).encode() + b"\n"


def _answers_of_others(trainer: L.Trainer, path: Path, head: dict[str, Any]) -> list[Any]:
    """Return the answers in the files of other processes, before any of them adds another one."""
    others = read_other_files(
        trainer, path, lambda file: _locked_lines(file, head), lambda file: _complete_lines(file, head)[1:]
    )
    return [line for _, line in others]


def _question(line: Any) -> tuple[Any, ...]:
    """Return the key of a problem in `ProblemEvaluator.skip`."""
    return tuple(line.get(name) for name in ("source", "id", "prompt", "ground_truth"))
