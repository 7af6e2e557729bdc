"""Plain preference pairs, a prompt with a chosen and a rejected answer, in the Hugging Face columns."""

import logging
from collections.abc import Sequence
from typing import Any

from lit_rft._seeds import resolve_seed
from lit_rft.datamodules.pairs import PairLoader, PreferencePair
from lit_rft.datamodules.position import ResumableDataModule
from lit_rft.models.backbone import load_tokenizer
from lit_rft.problems import ProblemError
from lit_rft.problems.messages import messages_from_text, read_messages
from lit_rft.rows import as_list, find_files, read_rows
from lit_rft.transcripts import PromptFormat, completion_transcript

logger = logging.getLogger(__name__)
FIELDS = ("prompt", "chosen", "rejected")


class PreferenceDataModule(ResumableDataModule):
    """Preference pairs from files or the Hugging Face hub, for `DPO`.

    A row has `prompt`, `chosen` and `rejected`, each a text or a list of messages. Without `prompt`, `chosen` and
    `rejected` are conversations whose last messages differ.

    Args:
        model: whose tokenizer to use; null for the stage's.
        train_files: Parquet, JSON lines, JSON or CSV files, folders, patterns, or `hf:NAME`.
        eval_files: the same for `validate` and `test`.
        columns: field (prompt, chosen, rejected) -> column, where the columns have other names.
        prompt_template: see `MathPromptDataModule`.
        max_length: maximum tokens of prompt and answer; pairs with a longer side are excluded and counted.
        batch_size: pairs per optimiser step, over all processes.
        eval_batch_size: pairs per evaluation batch, over all processes.
        seed: of the order; null for the run's `seed_everything`.

    Raises:
        ValueError: For a value out of its range, or if there are no pairs.
        ProblemError: For a bad row; it names file, row and field.
    """

    training_batch = evaluation_batch = "PreferenceBatch"

    def __init__(
        self,
        train_files: list[str] | str | None = None,
        eval_files: list[str] | str | None = None,
        model: str | None = None,
        columns: dict[str, str] | None = None,
        prompt_template: str = "chat",
        max_length: int = 2048,
        batch_size: int = 8,
        eval_batch_size: int = 8,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        sizes = {"max_length": max_length, "batch_size": batch_size, "eval_batch_size": eval_batch_size}
        for name, value in sizes.items():
            if value < 1:
                raise ValueError(f"{name} must be >= 1, got {value}")
        if unknown := sorted(set(columns or {}) - set(FIELDS)):
            raise ValueError(f"columns has {', '.join(unknown)}, expected {', '.join(FIELDS)}")
        self.model, self.prompt_template, self.max_length = model, prompt_template, max_length
        self.files = {"train": as_list(train_files), "eval": as_list(eval_files)}
        self.columns = {field: (columns or {}).get(field, field) for field in FIELDS}
        self.batch_size, self.eval_batch_size, self.seed = batch_size, eval_batch_size, resolve_seed(seed)
        self.pairs: dict[str, list[PreferencePair]] = {}

    def setup(self, stage: str) -> None:
        needed = "train" if stage == "fit" else "eval"
        if not self.files[needed]:
            raise ValueError(f"no preference pairs: name {needed}_files")
        self.tokenizer = load_tokenizer(self.model_name)
        form = PromptFormat(self.tokenizer, self.prompt_template)
        for name in ("train", "eval") if stage == "fit" else ("eval",):
            pairs = [self._pair(row, file, number, form) for file, number, row in self._rows(name)]
            self.pairs[name] = [p for p in pairs if max(map(len, [*p.chosen, *p.rejected])) <= self.max_length]
            if len(self.pairs[name]) < len(pairs):
                logger.warning(
                    "%s: %d of %d pairs are longer than max_length=%d and excluded",
                    name, len(pairs) - len(self.pairs[name]), len(pairs), self.max_length,
                )  # fmt: skip
            if pairs and not self.pairs[name]:
                raise ValueError(f"all {len(pairs)} pairs of {name}_files are longer than max_length={self.max_length}")

    def _rows(self, name: str) -> list[tuple[str, int, Any]]:
        files = [file for source in self.files[name] for file in find_files(source, "preference pairs")]
        return [(file, number, row) for file in files for number, row in read_rows(file, ProblemError)]

    def _pair(self, row: Any, file: str, number: int, form: PromptFormat) -> PreferencePair:
        try:
            prompt, chosen, rejected = parse_pair(row, self.columns)
        except ProblemError as error:
            raise ProblemError(error.message, error.field, file, number) from error
        origin = f"{file}:{number}"
        ids, end = form.prompt_ids(prompt), form.end_of_turn_id
        sides = [completion_transcript(origin, ids, form.completion_ids(text), end) for text in (chosen, rejected)]
        return PreferencePair(origin, [sides[0]], [sides[1]])

    def train_dataloader(self) -> PairLoader:
        rank, world_size = self._place()
        pairs, size = self.pairs["train"], self.batch_size
        return self.in_position(PairLoader(pairs, batch_size=size, seed=self.seed, rank=rank, world_size=world_size))

    def val_dataloader(self) -> PairLoader | list[Any]:
        if not self.pairs.get("eval"):
            return []
        rank, world_size = self._place()
        return PairLoader(
            self.pairs["eval"], batch_size=self.eval_batch_size, shuffle=False, rank=rank, world_size=world_size
        )

    test_dataloader = val_dataloader

    def _place(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)


def parse_pair(row: Any, columns: dict[str, str]) -> tuple[list[dict[str, str]], str, str]:
    """Return the prompt's messages, the chosen and the rejected answer of a row.

    Args:
        row: from a file.
        columns: field -> column.

    Raises:
        ProblemError: For a missing or bad field, or answers that are the same.
    """
    if not isinstance(row, dict):
        raise ProblemError(f"expected an object, got {type(row).__name__}")
    for field in ("chosen", "rejected"):
        if row.get(columns[field]) is None:
            raise ProblemError(f"missing; the row has {', '.join(map(str, row))}", columns[field])
    given = row.get(columns["prompt"])
    prompt = None if given is None else _prompt(given, columns["prompt"])
    sides = [_side(row[columns[field]], columns[field], prompt) for field in ("chosen", "rejected")]
    if sides[0][0] != sides[1][0]:
        raise ProblemError(
            f"expected two answers to one prompt: without a prompt column, {columns['chosen']} and "
            f"{columns['rejected']} are conversations that differ in the last message alone",
            columns["rejected"],
        )
    if sides[0][1] == sides[1][1]:
        raise ProblemError("expected another answer than the chosen one, got the same", columns["rejected"])
    return sides[0][0], sides[0][1], sides[1][1]


def _prompt(value: Any, name: str) -> list[dict[str, str]]:
    value = messages_from_text(value, name)  # as in a CSV file
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    return [dict(message) for message in read_messages(value, name, "user")]


def _side(value: Any, name: str, prompt: list[dict[str, str]] | None) -> tuple[list[dict[str, str]], str]:
    """Return the prompt and the answer of one side."""
    value = messages_from_text(value, name)
    if isinstance(value, str):
        if prompt is None:
            raise ProblemError("expected messages, as there is no prompt column, got a text", name)
        return prompt, value
    messages: Sequence[dict[str, str]] = [dict(message) for message in read_messages(value, name, "assistant")]
    before, answer = list(messages[:-1]), messages[-1]["content"]
    if prompt is not None and before and before != prompt:
        raise ProblemError("expected the answer, or the prompt's messages and the answer; got another prompt", name)
    if prompt is None and not before:
        raise ProblemError("expected a conversation, as there is no prompt column, got one message", name)
    return (prompt if prompt is not None else before), answer
