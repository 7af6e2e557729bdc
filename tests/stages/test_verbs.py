"""validate, test and predict on a small environment, with what they leave behind."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_rft.agents import HierarchyPrompts
from lit_rft.callbacks import EpisodeFiles, EpisodeText, RolloutFiles, ScoreTable, Throughput
from lit_rft.datamodules import TrajectoryDataModule
from lit_rft.envs import PoolSettings
from lit_rft.envs.base import EpisodeSpec
from lit_rft.episodes.io import read_episodes
from lit_rft.generation import SamplingSettings
from lit_rft.records import read_rollouts
from lit_rft.stages import ActingSettings
from lit_rft.testing.corridor import CorridorSuite
from lit_rft.testing.tiny_stage import ADAPTERS, FLAT_PLAYER, PLAYER, make_stage

ACTING = ActingSettings(SamplingSettings(6, 1.0), parallel_episodes=2, pool=PoolSettings(threads=True))


def _trainer(folder: Path, *callbacks: L.Callback, **options: Any) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu",
        logger=TensorBoardLogger(folder, name="tensorboard", version=""),
        default_root_dir=folder,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        callbacks=list(callbacks),
        **options,
    )


def _data(model: Path, folder: Path, **options: Any) -> TrajectoryDataModule:
    settings = {"suite": CorridorSuite(), "data_dir": str(folder / "data"), "batch_size": 2, **options}
    return TrajectoryDataModule(str(model), **settings)


def _events(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return events


@pytest.mark.parametrize("agent", [PLAYER, FLAT_PLAYER])
def test_fit_with_validation_leaves_scores_and_episodes_in_tensorboard(
    tiny_model_folder: Path, tmp_path: Path, agent: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    stage = make_stage(tiny_model_folder, acting=ACTING, agent=agent)
    trainer = _trainer(tmp_path, EpisodeText(2), ScoreTable(), Throughput(), max_epochs=2)
    trainer.fit(stage, datamodule=_data(tiny_model_folder, tmp_path, train_episodes_per_task=2))
    assert not stage.evaluator.runner.num_pools and not stage.evaluator.runner.playing  # the simulators are gone
    events = _events(tmp_path)
    scalars = set(events.Tags()["scalars"])
    assert {f"train/{level}/log_likelihood" for level in agent.levels} <= scalars
    assert {"train/loss", "train/grad_norm", "train/learning_rate", "perf/tokens_per_second"} <= scalars
    assert {"val/score", "val/success_rate", "val/walk/score", "val/run/score"} <= scalars
    assert len(events.Scalars("val/score")) == 2 and len(events.Scalars("train/loss")) == 4
    texts = [tag for tag in events.Tags()["tensors"] if tag.startswith("val/episode/")]
    assert len(texts) == 2
    text = events.Tensors(texts[0])[0].tensor_proto.string_val[0].decode()
    assert "You are in room" in text and ("###" in text) == (agent is PLAYER)
    assert "validation, step 4" in capsys.readouterr().out


def test_an_evaluation_is_at_the_step_of_its_checkpoint(
    tiny_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = _data(tiny_model_folder, tmp_path, train_episodes_per_task=2)
    trainer = _trainer(tmp_path / "run", max_epochs=1, limit_val_batches=0)
    trainer.fit(stage := make_stage(tiny_model_folder, acting=ACTING, agent=PLAYER), datamodule=data)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    trainer.test(stage, datamodule=data, verbose=False)
    stage = make_stage(tiny_model_folder, acting=ACTING, agent=PLAYER)
    evaluating = _trainer(tmp_path / "run", EpisodeText(1), ScoreTable(), RolloutFiles(1.0))
    evaluating.validate(stage, datamodule=data, ckpt_path=tmp_path / "a.ckpt", verbose=False)
    events = _events(tmp_path / "run")
    for name in ("val/score", "test/score"):
        assert [scalar.step for scalar in events.Scalars(name)] == [2]
    tags = [tag for tag in events.Tags()["tensors"] if tag.startswith("val/")]
    assert len(tags) == 2 and all(events.Tensors(tag)[0].step == 2 for tag in tags)
    assert {group.step for group in read_rollouts(tmp_path / "run")} == {2}
    assert "validation, step 2" in capsys.readouterr().out


def test_test_reports_and_keeps_what_was_played(tiny_model_folder: Path, tmp_path: Path) -> None:
    stage = make_stage(tiny_model_folder, acting=ACTING, agent=PLAYER)
    results = _trainer(tmp_path, ScoreTable()).test(
        stage, datamodule=_data(tiny_model_folder, tmp_path, eval_split="train"), verbose=False
    )
    assert len(stage.evaluator.results) == 8
    assert results[0]["test/score"] == pytest.approx(stage.evaluator.table["mean"]["score"], rel=1e-5)
    played = stage.evaluator.results
    by_task = {t: [p.episode.outcome.score for p in played if p.episode.task == t] for t in ("walk", "run")}
    for task, scores in by_task.items():
        assert stage.evaluator.table[task]["score"] == pytest.approx(100 * sum(scores) / len(scores))


def test_predict_writes_episodes_and_resumes(tiny_model_folder: Path, tmp_path: Path) -> None:
    def predict(number: int | None) -> list[str]:
        stage = make_stage(tiny_model_folder, acting=ACTING, agent=PLAYER)
        trainer = _trainer(tmp_path, EpisodeFiles(), limit_predict_batches=number)
        batches: Any = trainer.predict(stage, datamodule=_data(tiny_model_folder, tmp_path))
        assert not stage.evaluator.results  # in the file: there may be more of them than memory holds
        return [played.episode.id for batch in batches for played in batch]

    first = predict(3)
    second = predict(None)
    assert len(first) == 3 and len(second) == 5 and not set(first) & set(second)
    episodes = read_episodes(tmp_path / "episodes" / "predicted.jsonl")
    assert sorted(e.id for e in episodes) == sorted(first + second)
    assert all(e.source["kind"] == "policy" and e.subgoals for e in episodes)


def test_predict_leaves_out_episodes_whose_environment_failed(tiny_model_folder: Path, tmp_path: Path) -> None:
    def predict(suite: CorridorSuite) -> list[str]:
        acting = replace(ACTING, pool=PoolSettings())  # in processes, which the environment kills
        stage = make_stage(tiny_model_folder, acting=acting, agent=PLAYER)
        data = _data(tiny_model_folder, tmp_path, suite=suite)
        batches: Any = _trainer(tmp_path, EpisodeFiles()).predict(stage, datamodule=data)
        return [played.episode.outcome.reason for batch in batches for played in batch]

    # one variation of both tasks always fails, the others play on
    reasons = predict(CorridorSuite(die_in=0))
    assert reasons.count("env_error") == 2 and len(reasons) == 8
    written = read_episodes(tmp_path / "episodes" / "predicted.jsonl")
    assert len(written) == 6 and all(e.outcome.reason != "env_error" and e.meta["variation"] for e in written)
    assert len(predict(CorridorSuite())) == 2  # those that failed are played again
    assert len(read_episodes(tmp_path / "episodes" / "predicted.jsonl")) == 8


def test_predict_refuses_a_file_of_another_step_limit(tiny_model_folder: Path, tmp_path: Path) -> None:
    def predict(limit: int) -> None:
        data = _data(tiny_model_folder, tmp_path, suite=CorridorSuite(step_limit=limit))
        stage = make_stage(tiny_model_folder, acting=ACTING, agent=PLAYER)
        _trainer(tmp_path, EpisodeFiles()).predict(stage, datamodule=data, return_predictions=False)

    predict(3)
    with pytest.raises(ValueError, match=r"expected .* at most 4 steps in .*with a limit of 3: set another file"):
        predict(4)
    predict(3)
    assert {e.step_limit for e in read_episodes(tmp_path / "episodes" / "predicted.jsonl")} == {3}


def test_predict_refuses_a_file_of_other_episodes(tiny_model_folder: Path, tmp_path: Path) -> None:
    def predict(**options: Any) -> None:
        data = _data(tiny_model_folder, tmp_path, **options)
        stage = make_stage(tiny_model_folder, acting=ACTING, agent=PLAYER)
        _trainer(tmp_path, EpisodeFiles()).predict(stage, datamodule=data, return_predictions=False)

    class Renumbered(CorridorSuite):
        def _spec(self, task: str, variation: int, split: str) -> EpisodeSpec:
            return replace(super()._spec(task, variation, split), meta={"variation": (variation, 1)})

    predict(predict_split="dev")
    written = (tmp_path / "episodes" / "predicted.jsonl").read_bytes()
    with pytest.raises(ValueError, match=r"the split train in .* of the split dev: set another file"):
        predict()
    with pytest.raises(ValueError, match=r"meta \{'variation': \[\d, 1\]\} in .* got \{'variation': \d\}: set another"):
        predict(predict_split="dev", suite=Renumbered())
    predict(predict_split="dev", tasks=["walk"])  # others may be in the file
    assert (tmp_path / "episodes" / "predicted.jsonl").read_bytes() == written


def test_predict_continues_the_files_of_another_number_of_processes(tiny_model_folder: Path, tmp_path: Path) -> None:
    def predict(number: int | None) -> None:
        stage = make_stage(tiny_model_folder, acting=ACTING, agent=PLAYER)
        trainer = _trainer(tmp_path, EpisodeFiles(), limit_predict_batches=number)
        trainer.predict(stage, datamodule=_data(tiny_model_folder, tmp_path), return_predictions=False)

    predict(3)
    folder = tmp_path / "episodes"
    (folder / "predicted.jsonl").rename(folder / "predicted-rank1.jsonl")
    with (folder / "predicted-rank1.jsonl").open("a") as stream:
        stream.write('{"id": "of a killed pro')
    predict(None)
    assert len(read_episodes(folder / "predicted.jsonl")) == 5 and len(read_episodes(folder)) == 8


def test_what_was_predicted_can_be_trained_on(tiny_model_folder: Path, tmp_path: Path) -> None:
    stage = make_stage(tiny_model_folder, acting=ACTING, agent=PLAYER)
    _trainer(tmp_path, EpisodeFiles()).predict(stage, datamodule=_data(tiny_model_folder, tmp_path))
    data = _data(tiny_model_folder, tmp_path, train_files=[str(tmp_path / "episodes" / "predicted.jsonl")])
    trainer = _trainer(tmp_path, max_epochs=1, limit_val_batches=0)
    trainer.fit(make_stage(tiny_model_folder), datamodule=data)
    assert trainer.global_step == 4


KNOBS: dict[str, dict[str, Any]] = {
    "temperature": {"sampling": SamplingSettings(6, 0.3)},
    "max_new_tokens": {"sampling": SamplingSettings(2, 1.0)},
    "top_k": {"sampling": SamplingSettings(6, 1.0, top_k=2)},
    "top_p": {"sampling": SamplingSettings(6, 1.0, top_p=0.3)},
    "seed": {"seed": 1},
}


def test_every_acting_knob_counts(tiny_model_folder: Path, tmp_path: Path) -> None:
    def play(settings: ActingSettings, agent: Any = PLAYER) -> list[Any]:
        stage = make_stage(tiny_model_folder, acting=settings, agent=agent)
        _trainer(tmp_path).test(stage, datamodule=_data(tiny_model_folder, tmp_path), verbose=False)
        return sorted((p.episode.id, [(g.start, g.goal) for g in p.episode.subgoals]) for p in stage.evaluator.results)

    base = {"sampling": ACTING.sampling, "parallel_episodes": 2, "pool": ACTING.pool}
    played = play(ActingSettings(**base))
    assert played == play(ActingSettings(**base))
    for name, knob in KNOBS.items():
        assert played != play(ActingSettings(**{**base, **knob})), name
    assert played != play(ACTING, replace(PLAYER, subgoal_steps=1))


@pytest.mark.parametrize("lora", [ADAPTERS, None], ids=["adapters", "all weights"])
def test_evaluation_in_bf16_keeps_its_caches(
    lora: Any, tiny_model_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Lightning evaluates in inference mode, whose tensors know less than others: before training and after."""
    stage = make_stage(tiny_model_folder, lora=lora, acting=ACTING, agent=PLAYER)
    data = _data(tiny_model_folder, tmp_path, train_episodes_per_task=2)
    for verb in ("test", "fit", "test"):
        trainer = _trainer(tmp_path, precision="bf16-mixed", max_epochs=1)
        getattr(trainer, verb)(stage, datamodule=data)
        assert stage.evaluator.results
    assert not [record.message for record in caplog.records if "anew" in record.message]


def test_folding_the_adapters_in_changes_nothing_that_is_played(tiny_model_folder: Path, tmp_path: Path) -> None:
    played = []
    for merge in (True, False):
        settings = ActingSettings(SamplingSettings(6), 2, merge_adapters=merge, pool=PoolSettings(threads=True))
        stage = make_stage(tiny_model_folder, acting=settings, agent=PLAYER)
        stage.configure_model()
        for name, parameter in stage.named_parameters():
            if "lora_B" in name:
                parameter.data.fill_(0.02)
        before = {name: p.detach().clone() for name, p in stage.named_parameters()}
        _trainer(tmp_path).test(stage, datamodule=_data(tiny_model_folder, tmp_path), verbose=False)
        played.append(sorted((p.episode.id, [t.input_ids for t in p.transcripts]) for p in stage.evaluator.results))
        assert all((p == before[name]).all() for name, p in stage.named_parameters())
    assert played[0] == played[1]


def test_a_file_of_another_policy_is_not_added_to(tiny_model_folder: Path, tmp_path: Path) -> None:
    def predict(acting: ActingSettings, shift: float = 0.0, agent: Any = PLAYER) -> None:
        stage = make_stage(tiny_model_folder, acting=acting, agent=agent)
        stage.configure_model()
        for name, parameter in stage.named_parameters():
            parameter.data += shift * ("lora_B" in name)
        trainer = _trainer(tmp_path, EpisodeFiles(), limit_predict_batches=1)
        trainer.predict(stage, datamodule=_data(tiny_model_folder, tmp_path), return_predictions=False)

    predict(ACTING)
    with pytest.raises(ValueError, match="another policy or sampling"):
        predict(ActingSettings(SamplingSettings(6, 0.5), parallel_episodes=2, pool=PoolSettings(threads=True)))
    for other in ({"max_length": 800}, {"subgoal_steps": 3}, {"prompts": HierarchyPrompts("Think.", "Act.")}):
        with pytest.raises(ValueError, match="another policy or sampling"):
            predict(ACTING, agent=replace(PLAYER, **other))
    with pytest.raises(ValueError, match="another policy or sampling"):
        predict(ACTING, agent=FLAT_PLAYER)
    with pytest.raises(ValueError, match="another policy or sampling"):
        predict(ACTING, 0.01)
    with pytest.raises(ValueError, match="must end in"):
        EpisodeFiles("episodes.parquet")


def test_episodes_are_written_as_they_end(tiny_model_folder: Path, tmp_path: Path) -> None:
    written: list[int] = []

    class Count(L.Callback):
        def on_predict_batch_end(self, *args: Any) -> None:
            path = tmp_path / "episodes" / "predicted.jsonl"
            written.append(len(path.read_text().splitlines()) if path.exists() else 0)

    stage = make_stage(tiny_model_folder, acting=ACTING, agent=PLAYER)
    trainer = _trainer(tmp_path, EpisodeFiles(), Count())
    trainer.predict(stage, datamodule=_data(tiny_model_folder, tmp_path), return_predictions=False)
    assert len(written) == 8 and written[0] < written[4] < written[-1] == 8


def test_an_error_while_playing_leaves_the_policy_as_it_was(tiny_model_folder: Path, tmp_path: Path) -> None:
    stage = make_stage(tiny_model_folder, acting=ACTING, agent=PLAYER)
    stage.configure_model()
    for name, parameter in stage.named_parameters():
        if "lora_B" in name:
            parameter.data.fill_(0.02)
    before = {name: p.detach().clone() for name, p in stage.named_parameters()}

    class Stop(L.Callback):
        def on_test_batch_end(self, *args: Any) -> None:
            stage.chat.text = None  # type: ignore[union-attr, assignment, method-assign]

    with pytest.raises(TypeError):
        _trainer(tmp_path, Stop()).test(stage, datamodule=_data(tiny_model_folder, tmp_path), verbose=False)
    assert not stage.evaluator.runner.playing and not stage.evaluator.runner.num_pools
    assert all((p == before[name]).all() for name, p in stage.named_parameters())
    del stage.chat.text  # type: ignore[union-attr]
    _trainer(tmp_path).test(stage, datamodule=_data(tiny_model_folder, tmp_path), verbose=False)
    assert len(stage.evaluator.results) == 4
