"""Rollouts of training and evaluations, as files beside the run."""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning as L

from lit_rft.agents import PlayedEpisode
from lit_rft.callbacks.dry_run import is_dry_run
from lit_rft.callbacks.loggers import step_of
from lit_rft.callbacks.results import own_file
from lit_rft.records import GroupRecord, RolloutWriter
from lit_rft.records.files import FOLDER
from lit_rft.rollouts.recording import TokenTexts, record_answer, record_episode, record_rollout
from lit_rft.rollouts.rollout import Rollout
from lit_rft.rollouts.update_record import UpdateRecord

logger = logging.getLogger(__name__)


class RolloutFiles(L.Callback):
    """Keeps a share of the rollouts of a run, every group complete, for `lit-rft show` and `read_rollouts`.

    Training rollouts are the stage's `samples`, and the traces that its `update` has imitated, written at the end of
    their batch to `<default_root_dir>/rollouts/train.jsonl`; results of the evaluator go to `validation.jsonl` and
    `test.jsonl`. With several processes each writes its own files, with `-rank<n>` before the suffix. A resumed run
    removes the groups after its checkpoint, which it samples again. Stages without rollouts write none.

    A write that fails, on a full disk for example, is a warning: the run goes on without the rollouts of that batch.

    If the stage's `update` has an attribute `record`, the records contain token-wise values of the updates.

    Args:
        share: of the groups, in (0, 1]; halved whenever a file reaches its limit.
        max_megabytes: limit of the training file and of the validation file, each, over all processes.
    """

    def __init__(self, share: float = 0.25, max_megabytes: float = 100.0) -> None:
        if not 0 < share <= 1 or not max_megabytes > 0:
            raise ValueError(f"share must be in (0, 1] and max_megabytes > 0, got {share} and {max_megabytes}")
        self.share, self.max_megabytes = share, max_megabytes
        self._batches = 0  # of training so far
        self._step = 0  # of the policy that samples this batch
        self._update = UpdateRecord()
        self._written: Sequence[Rollout] = ()  # a stage may keep the samples of an earlier batch
        self._writer: RolloutWriter | None = None
        self._texts: TokenTexts | None = None
        self._warned: set[str] = set()  # splits whose file could not be written

    def state_dict(self) -> dict[str, Any]:
        return {"batches": self._batches}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._batches = state_dict["batches"]

    # --- training ----------------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if is_dry_run(trainer):
            return
        if trainer.is_global_zero:
            for path in sorted((Path(trainer.default_root_dir) / FOLDER).glob("*.jsonl")):
                self._drop_later_groups(path)
        trainer.strategy.barrier("rollouts after the checkpoint are removed")
        self._written = getattr(pl_module, "samples", ())
        update = getattr(pl_module, "update", None)
        if hasattr(update, "record"):
            update.record = self._update  # type: ignore[union-attr]

    def _drop_later_groups(self, path: Path) -> None:
        """Remove what an earlier process wrote after the checkpoint; a run that starts begins empty files."""
        split = path.stem.split("-rank")[0]
        if split not in ("train", "validation"):
            return
        # an evaluation after the checkpoint's batch may be older than the checkpoint; if it is repeated, it is replaced
        first = self._batches + (1 if split == "validation" and self._batches else 0)
        with contextlib.closing(RolloutWriter(path, 1.0, self._max_bytes(1))) as writer:
            writer.drop(lambda line: bool(line["batch"] >= first))

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._step = trainer.global_step
        self._update.clear()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        samples, imitated = getattr(pl_module, "samples", ()), _imitated(pl_module)
        if (samples or imitated) and samples is not self._written and not is_dry_run(trainer):
            self._written = samples
            with self._tolerated("train"):
                if self._writer is None:
                    self._writer = self._open(trainer, "train")
                self._writer.append(self._groups(trainer, pl_module, [*samples, *imitated]))
        self._batches += 1

    @contextlib.contextmanager
    def _tolerated(self, split: str) -> Iterator[None]:
        """Turn a failed write into a warning: rollouts are kept for reading, and the run can do without them."""
        try:
            yield
        except BlockingIOError:  # another run writes into this folder
            raise
        except OSError as error:
            if split not in self._warned:
                logger.warning(
                    "some rollouts are not kept: %s cannot be written (%s); the run goes on, and tries again later",
                    f"{FOLDER}/{split}.jsonl", error,
                )  # fmt: skip
            self._warned.add(split)

    def _groups(self, trainer: L.Trainer, module: Any, samples: Sequence[Rollout]) -> list[GroupRecord]:
        assert self._writer is not None
        texts, imitated = self._texts_of(module), {id(trace) for trace in _imitated(module)}
        groups: dict[int, list[Rollout]] = {}
        for rollout in samples:
            groups.setdefault(rollout.group, []).append(rollout)
        return [
            GroupRecord("train", self._step, self._batches, trainer.global_rank, number, _task(members[0]),
                        [record_rollout(rollout, texts, self._update, id(rollout) in imitated) for rollout in members])
            for number, members in groups.items()
            if self._writer.wants(self._batches, trainer.global_rank, number)
        ]  # fmt: skip

    # --- evaluation --------------------------------------------------------------------------------------------------

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.sanity_checking:
            self._write_results(trainer, pl_module, "validation")

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._write_results(trainer, pl_module, "test")

    def _write_results(self, trainer: L.Trainer, module: Any, split: str) -> None:
        """Write the evaluator's results in place of earlier ones of the same step."""
        results = getattr(getattr(module, "evaluator", None), "results", ())
        if not results or is_dry_run(trainer):
            return
        with self._tolerated(split), contextlib.closing(self._open(trainer, split)) as writer:
            writer.drop(lambda line: bool(line["step"] == step_of(trainer)))
            texts = self._texts_of(module)
            groups: dict[Any, list[Any]] = {}  # by problem, numbered in this order
            for result in sorted(results, key=_order_of):
                groups.setdefault(_problem(result), []).append(result)
            writer.append(
                GroupRecord(split, step_of(trainer), self._batches, trainer.global_rank, number,
                            _task(members[0]), [_record(result, texts) for result in members])
                for number, members in enumerate(groups.values())
                if writer.wants(self._batches, trainer.global_rank, number)
            )  # fmt: skip

    # --- files -------------------------------------------------------------------------------------------------------

    def _open(self, trainer: L.Trainer, split: str) -> RolloutWriter:
        path = own_file(trainer, None, f"{FOLDER}/{split}.jsonl")
        return RolloutWriter(path, self.share, self._max_bytes(trainer.world_size))

    def _max_bytes(self, processes: int) -> int:
        return int(self.max_megabytes * 1e6 / processes)

    def _texts_of(self, module: Any) -> TokenTexts:
        if self._texts is None:
            self._texts = TokenTexts(module.chat.tokenizer)
        return self._texts

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _imitated(module: Any) -> Sequence[Rollout]:
    """Return the traces outside the groups of the stage's last batch."""
    traces: Sequence[Rollout] = getattr(getattr(module, "update", None), "imitated", ())
    return traces


def _record(result: Any, texts: TokenTexts) -> Any:
    return record_episode(result, texts) if isinstance(result, PlayedEpisode) else record_answer(result)


def _order_of(result: Any) -> str:
    """Return the key that orders results independently of the moments at which episodes ended."""
    return str(result.episode.id) if isinstance(result, PlayedEpisode) else ""


def _problem(result: Any) -> Any:
    return result.episode.id if isinstance(result, PlayedEpisode) else (result.source, result.id)


def _task(result: Any) -> str:
    """Return the task of a rollout, a played episode or an answer."""
    episode = getattr(result, "episode", None)
    return str(episode.task if episode is not None else getattr(result, "task", getattr(result, "source", "")))
