"""Texts, tables, figures and scalars reach every kind of logger, or files."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_rft.batches import Prompt, PromptBatch
from lit_rft.callbacks import CompletionText, ScoreTable
from lit_rft.callbacks.loggers import log_figure, log_scalars, log_table, log_text, markdown_table
from lit_rft.problems import Problem
from lit_rft.rollouts import Rollout
from lit_rft.testing.tiny import make_tokenizer
from lit_rft.transcripts import PromptFormat, completion_transcript


class WandbLike(Logger):
    """The part of WandbLogger that is used."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[Any] = []

    @property
    def name(self) -> str:
        return "wandb"

    @property
    def version(self) -> str:
        return "1"

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        pass

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass

    def log_text(self, key: str, columns: list[str], data: list[list[Any]]) -> None:
        self.texts.append((key, columns, data))


class MlflowLike(Logger):
    """The part of MLFlowLogger that is used: artifacts of a run, by its client."""

    run_id = "run-1"
    name = "mlflow"
    version = "1"

    def __init__(self) -> None:
        super().__init__()
        self.artifacts: list[Any] = []
        self.experiment = SimpleNamespace(log_text=self._keep, log_figure=self._keep)

    def _keep(self, run_id: str, content: Any, name: str) -> None:
        self.artifacts.append((run_id, content, name))

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        pass

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass


def make_trainer(folder: Path, *loggers: Logger) -> L.Trainer:
    return L.Trainer(default_root_dir=folder, logger=list(loggers) or False, accelerator="cpu", barebones=False,
                     enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)  # fmt: skip


def test_a_text_reaches_all_loggers(tmp_path: Path) -> None:
    board, table, wandb = TensorBoardLogger(tmp_path, name="tb", version=""), CSVLogger(tmp_path), WandbLike()
    trainer = make_trainer(tmp_path, table, board, wandb)  # TensorBoard is not the first
    log_text(trainer, "val/answers", "words")
    log_text(trainer, "val/answers", "more")
    board.experiment.flush()
    events = EventAccumulator(str(tmp_path / "tb"))
    events.Reload()
    assert events.Tags()["tensors"] == ["val/answers/text_summary"]
    assert [data for _, _, data in wandb.texts] == [[[0, "words"]], [[0, "more"]]]
    text = (tmp_path / "texts" / "val" / "answers.md").read_text()
    assert "words" in text and "more" in text


def test_a_text_is_a_file_only_where_a_logger_does_not_take_it(tmp_path: Path) -> None:
    log_text(make_trainer(tmp_path, WandbLike()), "val/answers", "words")
    assert not (tmp_path / "texts").exists()
    log_text(make_trainer(tmp_path), "val/answers", "words")  # no logger
    assert "words" in (tmp_path / "texts" / "val" / "answers.md").read_text()


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    trainer = L.Trainer(default_root_dir=tmp_path, fast_dev_run=True, logger=False, accelerator="cpu")
    log_text(trainer, "a", "words")
    log_table(trainer, "a", ["b"], [[1]])
    assert not list(tmp_path.iterdir())


COLUMNS, ROWS = ["prompt", "reward"], [["1 + 1\nis <b>", 1.0], ["x | y", 0.5]]


def test_a_table_reaches_all_loggers(tmp_path: Path) -> None:
    board, csv, wandb = TensorBoardLogger(tmp_path, name="tb", version=""), CSVLogger(tmp_path), WandbLike()
    trainer = make_trainer(tmp_path, csv, board, wandb)
    log_table(trainer, "val/answers", COLUMNS, ROWS)
    log_table(trainer, "val/answers", ["other"], [["column"]])
    board.experiment.flush()
    events = EventAccumulator(str(tmp_path / "tb"))
    events.Reload()
    (first, _) = events.Tensors("val/answers/text_summary")
    assert first.tensor_proto.string_val[0].decode() == markdown_table(COLUMNS, ROWS)
    assert wandb.texts[0] == ("val/answers", COLUMNS, ROWS)
    lines = (tmp_path / "tables" / "val" / "answers.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"step": 0, "prompt": "1 + 1\nis <b>", "reward": 1.0}, {"step": 0, "prompt": "x | y", "reward": 0.5},
        {"step": 0, "other": "column"},
    ]  # fmt: skip


def test_a_table_is_a_file_without_a_logger(tmp_path: Path) -> None:
    log_table(make_trainer(tmp_path), "val/answers", COLUMNS, ROWS)
    assert len((tmp_path / "tables" / "val" / "answers.jsonl").read_text().splitlines()) == 2


def test_what_a_resumed_run_repeats_is_in_the_files_once(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    for _ in range(2):
        log_table(trainer, "val/answers", COLUMNS, ROWS)
        log_text(trainer, "notes", "a")
    log_table(trainer, "val/answers", COLUMNS, ROWS[:1] * 2)
    assert len((tmp_path / "tables" / "val" / "answers.jsonl").read_text().splitlines()) == 4
    notes = tmp_path / "texts" / "notes.md"
    assert notes.read_text() == "## step 0\n\na\n\n"
    notes.write_bytes(b"torn \xe2\x82")
    log_text(trainer, "notes", "a")
    assert notes.read_bytes().endswith(b"## step 0\n\na\n\n")


def test_scalars_reach_all_loggers(tmp_path: Path) -> None:
    board, csv = TensorBoardLogger(tmp_path, name="tb", version=""), CSVLogger(tmp_path)
    log_scalars(make_trainer(tmp_path, csv, board), {"a": 0.25}, step=7)
    board.experiment.flush()
    csv.save()
    events = EventAccumulator(str(tmp_path / "tb"))
    events.Reload()
    assert [(point.step, point.value) for point in events.Scalars("a")] == [(7, 0.25)]
    assert (Path(csv.log_dir) / "metrics.csv").read_text().split() == ["a,step", "0.25,7"]


def test_scores_are_tables_of_the_loggers(tmp_path: Path) -> None:
    evaluator = SimpleNamespace(
        table={"walk": {"score": 50.0}, "mean": {"score": 50.0}}, row_name="task", costs={},
        cells=lambda row: {"score": f"{row['score']:.1f}"},
    )  # fmt: skip
    module: Any = SimpleNamespace(evaluator=evaluator)
    wandb = WandbLike()
    ScoreTable().on_validation_end(make_trainer(tmp_path, wandb), module)
    ScoreTable().on_test_end(make_trainer(tmp_path, wandb), module)
    rows = [["walk", "50.0"], ["mean", "50.0"]]
    assert wandb.texts == [("val/scores", ["task", "score"], rows), ("test/scores", ["task", "score"], rows)]


@pytest.mark.processes
def test_weights_and_biases_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real package, as files."""
    wandb = pytest.importorskip("wandb")
    from lightning.pytorch.loggers import WandbLogger

    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = WandbLogger(save_dir=tmp_path, offline=True, project="tests")
    trainer = make_trainer(tmp_path, logger)
    log_text(trainer, "val/episode", "words")
    log_table(trainer, "val/answers", COLUMNS, ROWS)
    log_scalars(trainer, {"a": 0.25})
    folder = Path(logger.experiment.dir)
    wandb.finish()
    tables = {path.name.split("_")[0]: json.loads(path.read_text()) for path in folder.rglob("*.table.json")}
    assert tables["episode"] == {"columns": ["step", "text"], "data": [[0, "words"]]}
    assert tables["answers"] == {"columns": COLUMNS, "data": ROWS}
    assert not (tmp_path / "texts").exists() and not (tmp_path / "tables").exists()


@pytest.mark.processes
def test_mlflow_in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real package, without a server."""
    pytest.importorskip("mlflow")
    from lightning.pytorch.loggers import MLFlowLogger

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    logger = MLFlowLogger(tracking_uri=f"file:{tmp_path / 'ml'}")
    trainer = make_trainer(tmp_path, logger)
    log_text(trainer, "val/episode", "words")
    log_table(trainer, "val/answers", COLUMNS, ROWS)
    log_scalars(trainer, {"a": 0.25})
    files = {path.name: path for path in (tmp_path / "ml").rglob("*") if path.is_file()}
    assert files["episode-0.md"].read_text() == "words"
    assert files["answers-0.md"].read_text() == markdown_table(COLUMNS, ROWS)
    assert files["a"].read_text().split()[1:] == ["0.25", "0"]
    assert not (tmp_path / "texts").exists() and not (tmp_path / "tables").exists()


def test_texts_and_figures_are_artifacts_of_a_run_in_mlflow(tmp_path: Path) -> None:
    mlflow = MlflowLike()
    log_text(make_trainer(tmp_path, mlflow), "val/answers", "words")
    log_figure(make_trainer(tmp_path, mlflow), "calibration/high", "figure")
    assert mlflow.artifacts == [
        ("run-1", "words", "texts/val/answers-0.md"), ("run-1", "figure", "figures/calibration/high-0.png")
    ]  # fmt: skip
    assert not (tmp_path / "texts").exists() and not (tmp_path / "figures").exists()


def test_a_figure_is_a_file_for_loggers_without_figures(tmp_path: Path) -> None:
    figure = pytest.importorskip("matplotlib.figure").Figure()
    log_figure(make_trainer(tmp_path, CSVLogger(tmp_path)), "calibration/high", figure)
    assert (tmp_path / "figures" / "calibration" / "high-0.png").stat().st_size > 0


def test_answers_do_not_vanish_with_a_csv_logger(tmp_path: Path) -> None:
    answer = SimpleNamespace(prompt="1 + 1", completion="it is two", ground_truth="2", reward=1.0)
    module: Any = SimpleNamespace(evaluator=SimpleNamespace(results=[answer]))
    CompletionText().on_validation_end(make_trainer(tmp_path, CSVLogger(tmp_path)), module)
    assert "it is two" in (tmp_path / "tables" / "val" / "answers.jsonl").read_text()


def test_a_completion_is_beside_its_own_prompt(tmp_path: Path) -> None:
    """A source such as ExGRPO's puts other prompts in the place of the batch's."""
    form = PromptFormat(make_tokenizer(), "chat")
    ids = {text: form.prompt_ids([{"role": "user", "content": text}]) for text in ("new?", "replayed?")}
    problems = [Problem(f"p{n}", ({"role": "user", "content": "new?"},), "1") for n in range(2)]
    batch = PromptBatch([Prompt(problem, ids["new?"], [], [], []) for problem in problems])
    samples = [
        Rollout([completion_transcript(name, ids[text], [9], form.chat.end_of_turn_id)], "one", group, False, True, 1.0)
        for group, (name, text) in enumerate([("p0", "new?"), ("old", "replayed?")])
    ]
    module: Any = SimpleNamespace(samples=samples, chat=form.chat)
    CompletionText().on_train_batch_end(make_trainer(tmp_path, CSVLogger(tmp_path)), module, None, batch, 0)
    first, second = (tmp_path / "tables" / "train" / "completions.jsonl").read_text().splitlines()[-2:]
    assert "new?" in first and "replayed?" in second and "new?" not in second
