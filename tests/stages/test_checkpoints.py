"""Checkpoints are small, complete, safe to load, and never half written."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from lit_rft import __version__
from lit_rft.callbacks import AdapterExport, AtomicCheckpointIO, RandomState, RunCheckpoint
from lit_rft.callbacks.model_card import public_name
from lit_rft.models import LoraSettings, causal_lm, load_backbone
from lit_rft.testing.tiny import make_tokenizer
from lit_rft.testing.tiny_stage import ADAPTERS, make_loader, make_stage, trained

DROPOUT = LoraSettings(rank=4, alpha=8, dropout=0.2, target_modules="all-linear")


def _fit(
    stage: Any, model: Path, folder: Path, steps: int, ckpt_path: str | None = None, epochs: int = -1, every: int = 1
) -> None:
    trainer = L.Trainer(
        max_steps=steps,
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        plugins=[AtomicCheckpointIO()],
        callbacks=[RunCheckpoint(every_n_steps=every), RandomState(), AdapterExport()],
    )
    trainer.fit(stage, make_loader(model, batch_size=2, episodes=7), ckpt_path=ckpt_path)


@pytest.mark.parametrize("stop", [3, 4, 5], ids=["mid-epoch", "end of epoch", "second epoch"])
def test_resuming_equals_never_having_stopped(tiny_model_folder: Path, tmp_path: Path, stop: int) -> None:
    whole = make_stage(tiny_model_folder, lora=DROPOUT)
    _fit(whole, tiny_model_folder, tmp_path / "whole", 8)  # 4 steps an epoch
    first = make_stage(tiny_model_folder, lora=DROPOUT)
    _fit(first, tiny_model_folder, tmp_path / "parts", stop)
    second = make_stage(tiny_model_folder, lora=DROPOUT, seed=99)  # other weights, were they not restored
    _fit(second, tiny_model_folder, tmp_path / "parts", 8, ckpt_path="last")
    for name, weight in trained(whole).items():
        assert torch.equal(weight, trained(second)[name]), name


@pytest.mark.parametrize(
    ("every", "parts"),
    [
        (100, [(-1, 1), (-1, 3)]),
        (1, [(-1, 1), (-1, 2), (-1, 3)]),
        (100, [(99, 1), (99, 2), (99, 3)]),
        (1, [(99, 1), (99, 2), (99, 3)]),
        (100, [(4, -1), (8, 9), (-1, 3)]),
        (100, [(2, 1), (3, 1), (-1, 3)]),
        (1, [(2, 3), (5, 3), (99, 3)]),
        (100, [(6, 9), (7, 2), (12, -1)]),
    ],
    ids=str,
)
def test_several_resumptions_equal_one_run(
    parts: list[tuple[int, int]], every: int, tiny_model_folder: Path, tmp_path: Path
) -> None:
    """Stopped by numbers of steps and epochs, within an epoch or at its end; checkpoints are written after a step or
    when training ends."""
    whole = make_stage(tiny_model_folder, lora=DROPOUT)
    _fit(whole, tiny_model_folder, tmp_path / "whole", -1, epochs=3)  # 4 steps an epoch
    for number, (steps, epochs) in enumerate(parts):
        stage = make_stage(tiny_model_folder, lora=DROPOUT, seed=number)
        last = "last" if number else None
        _fit(stage, tiny_model_folder, tmp_path / "parts", steps, last, epochs, every)
    assert (stage.global_step, stage.trainer.current_epoch) == (12, 3)
    for name, weight in trained(whole).items():
        assert torch.equal(weight, trained(stage)[name]), name
    states = [one.trainer.optimizers[0].state_dict()["state"] for one in (whole, stage)]
    for index, moments in states[0].items():
        assert all(torch.equal(value, states[1][index][name]) for name, value in moments.items())


def test_a_checkpoint_holds_what_trains_and_nothing_else(tiny_model_folder: Path, tmp_path: Path) -> None:
    stage = make_stage(tiny_model_folder)
    _fit(stage, tiny_model_folder, tmp_path, 2)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["last.ckpt"]
    checkpoint = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert set(checkpoint["state_dict"]) == set(trained(stage))
    assert checkpoint["global_step"] == 2
    assert checkpoint["optimizer_states"][0]["state"] and checkpoint["lr_schedulers"]


def test_layers_trained_in_full_are_saved_and_restored(tiny_model_folder: Path, tmp_path: Path) -> None:
    lora = LoraSettings(4, 8, 0.2, use_dora=True, use_rslora=True, modules_to_save=["lm_head"])
    whole = make_stage(tiny_model_folder, lora=lora)
    before = {name: weight.clone() for name, weight in _configured(whole).items()}
    _fit(whole, tiny_model_folder, tmp_path / "whole", 4)
    for steps, seed in ((2, 0), (4, 9)):
        stage = make_stage(tiny_model_folder, lora=lora, seed=seed)
        _fit(stage, tiny_model_folder, tmp_path / "parts", steps, "last" if seed else None)
    head = next(name for name in before if "lm_head" in name)
    assert any("magnitude" in name for name in before)
    for name, weight in trained(whole).items():
        assert torch.equal(weight, trained(stage)[name]), name
    assert not torch.equal(trained(whole)[head], before[head])
    for source in ("checkpoints/last.ckpt", "adapter"):  # another stage starts from it
        start = str(tmp_path / "parts" / source)
        started = make_stage(tiny_model_folder, lora=lora, policy={"start_from": start})
        assert all(torch.equal(weight, trained(stage)[name]) for name, weight in _configured(started).items())


def _configured(stage: Any) -> dict[str, torch.Tensor]:
    stage.configure_model()
    return trained(stage)


def test_another_model_refuses_the_checkpoint(tiny_model_folder: Path, tmp_path: Path) -> None:
    _fit(make_stage(tiny_model_folder), tiny_model_folder, tmp_path, 1)
    other = make_stage(tiny_model_folder, lora=LoraSettings(4, 8, 0.0, ("q_proj",)))
    with pytest.raises(ValueError, match="does not fit the model"):
        _fit(other, tiny_model_folder, tmp_path, 2, ckpt_path="last")


def test_a_stage_starts_from_a_checkpoint_or_an_adapter(tiny_model_folder: Path, tmp_path: Path) -> None:
    first = make_stage(tiny_model_folder)
    _fit(first, tiny_model_folder, tmp_path, 2)
    for start in (tmp_path / "checkpoints" / "last.ckpt", tmp_path / "adapter"):
        second = make_stage(tiny_model_folder, policy={"start_from": str(start)}, seed=5)
        second.configure_model()
        weights = trained(second)
        assert all(torch.equal(weight, weights[name]) for name, weight in trained(first).items()), start


def test_a_bad_start_is_refused(tiny_model_folder: Path, tmp_path: Path) -> None:
    for start in (tmp_path / "nothing.ckpt", tmp_path):
        with pytest.raises(ValueError, match="must be a"):
            make_stage(tiny_model_folder, policy={"start_from": str(start)}).configure_model()


def test_the_exported_adapter_is_the_policy(tiny_model_folder: Path, tmp_path: Path) -> None:
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoTokenizer

    stage = make_stage(tiny_model_folder)
    _fit(stage, tiny_model_folder, tmp_path, 2)
    loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter").eval()
    ids = torch.arange(5, 25)[None]
    policy: Any = stage.policy
    with torch.no_grad():
        torch.testing.assert_close(loaded(input_ids=ids).logits, policy.eval()(input_ids=ids).logits)
        with policy.disable_adapter():
            assert not torch.allclose(loaded(input_ids=ids).logits, policy(input_ids=ids).logits)
    assert AutoTokenizer.from_pretrained(tmp_path / "adapter").get_vocab() == make_tokenizer().get_vocab()


def test_without_lora_the_whole_model_is_exported(tiny_model_folder: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    stage = make_stage(tiny_model_folder, lora=None)
    _fit(stage, tiny_model_folder, tmp_path, 1)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "adapter")
    expected = dict(causal_lm(stage.policy).named_parameters())  # type: ignore[arg-type]
    assert all(torch.equal(p, expected[name]) for name, p in loaded.named_parameters())


def test_a_full_disk_leaves_the_previous_checkpoint(tmp_path: Path) -> None:
    """A file-size limit makes the write fail in the middle, as a full device does."""
    target = tmp_path / "last.ckpt"
    io = AtomicCheckpointIO()
    io.save_checkpoint({"step": 1, "weights": torch.ones(10), "pytorch-lightning_version": "2"}, target)
    script = f"""
import resource, signal, torch
from lit_rft.callbacks import AtomicCheckpointIO
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    AtomicCheckpointIO().save_checkpoint({{"step": 2, "weights": torch.ones(1_000_000)}}, {str(target)!r})
except OSError as error:
    print("refused:", error)
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert "refused:" in result.stdout and "previous one is intact" in result.stdout, result
    assert io.load_checkpoint(target)["step"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_checkpoint_of_another_library_is_refused(tmp_path: Path) -> None:
    torch.save({"model": {}}, tmp_path / "foreign.ckpt")
    with pytest.raises(ValueError, match="is not a checkpoint of a training run"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "foreign.ckpt")


def test_a_torn_or_missing_checkpoint_is_refused(tmp_path: Path) -> None:
    io, target = AtomicCheckpointIO(), tmp_path / "last.ckpt"
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        io.load_checkpoint(target)
    io.save_checkpoint({"weights": torch.ones(1000)}, target)
    target.write_bytes(target.read_bytes()[:2000])
    with pytest.raises(ValueError, match="incomplete or corrupt checkpoint"):
        io.load_checkpoint(target)


def test_checkpoints_load_no_pickled_objects(tmp_path: Path) -> None:
    torch.save({"weights": Path("/")}, tmp_path / "evil.ckpt")
    with pytest.raises(ValueError, match="plain values"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "evil.ckpt")


def test_the_best_by_a_metric_is_kept(tiny_model_folder: Path, tmp_path: Path) -> None:
    scores = iter([10.0, 30.0, 20.0])

    class Scores(L.Callback):
        def on_validation_epoch_end(self, trainer: Any, module: Any) -> None:
            module.log("val/score", next(scores))

    stage: Any = make_stage(tiny_model_folder, lora=ADAPTERS)
    stage.validation_step = lambda *_: None
    trainer = L.Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        default_root_dir=tmp_path,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        plugins=[AtomicCheckpointIO()],
        callbacks=[Scores(), RunCheckpoint(every_n_steps=100, monitor="val/score")],
    )
    loader = make_loader(tiny_model_folder, batch_size=2, episodes=2)  # one step an epoch
    trainer.fit(stage, loader, torch.utils.data.DataLoader([0]))
    steps = {p.name: torch.load(p, weights_only=True)["global_step"] for p in (tmp_path / "checkpoints").iterdir()}
    assert steps == {"best.ckpt": 2, "last.ckpt": 3}


def test_a_run_on_a_full_disk_stops_and_resumes_from_the_checkpoint_before(
    tiny_model_folder: Path, tmp_path: Path
) -> None:
    script = f"""
import resource, signal, sys
from pathlib import Path
import lightning as L
from lit_rft.callbacks import AtomicCheckpointIO, RunCheckpoint
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from lit_rft.testing.tiny_stage import make_loader, make_stage

class DiskFillsUp(L.Callback):
    def on_train_batch_start(self, trainer, module, batch, index):
        if trainer.global_step == 2:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

model = Path({str(tiny_model_folder)!r})
trainer = L.Trainer(
    max_steps=4, max_epochs=-1, accelerator="cpu", logger=False, default_root_dir={str(tmp_path)!r},
    enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0, plugins=[AtomicCheckpointIO()],
    callbacks=[DiskFillsUp(), RunCheckpoint(every_n_steps=1)],
)
trainer.fit(make_stage(model), make_loader(model, batch_size=2, episodes=7))
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=200)
    assert result.returncode != 0 and "the previous one is intact" in result.stderr, result.stderr[-2000:]
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["last.ckpt"]
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 2
    _fit(make_stage(tiny_model_folder), tiny_model_folder, tmp_path, 4, ckpt_path="last")


def test_what_a_killed_process_left_half_written_is_swept(tmp_path: Path) -> None:
    (tmp_path / ".last.ckpt.12345.partial").write_bytes(b"half")
    AtomicCheckpointIO().save_checkpoint({"step": 1}, tmp_path / "last.ckpt")
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize("lora", [ADAPTERS, None], ids=["adapter", "whole model"])
def test_what_is_exported_names_no_path_of_this_machine(
    lora: LoraSettings | None, tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And our own loader takes it, by the name that it has."""
    monkeypatch.setattr("lit_rft.models.smollm2.smollm2_135m_instruct", lambda: tiny_model_folder)
    name = "smollm2-135m-instruct"
    first = make_stage(Path(name), lora=lora)
    _fit(first, Path(name), tmp_path / "first", 1)
    start = {"start_from": str(tmp_path / "first" / "checkpoints" / "last.ckpt")}
    stage = make_stage(Path(name), lora=lora, policy=start)
    _fit(stage, Path(name), tmp_path, 2)
    folder = tmp_path / "adapter"
    for path in folder.rglob("*"):
        if path.suffix in (".json", ".md", ".jinja"):
            for place in (str(tiny_model_folder), str(tmp_path), str(Path.home())):
                assert place not in path.read_text(), path
    if lora is not None:
        assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == name
    loaded: Any = load_backbone(name, adapter=folder) if lora is not None else load_backbone(str(folder))
    ids = torch.arange(5, 25)[None]
    policy: Any = stage.policy
    with torch.no_grad():
        torch.testing.assert_close(loaded.eval()(input_ids=ids).logits, policy.eval()(input_ids=ids).logits)


def test_the_model_card_says_what_was_trained_and_how(tiny_model_folder: Path, tmp_path: Path) -> None:
    _fit(make_stage(tiny_model_folder), tiny_model_folder, tmp_path, 2)
    card = (tmp_path / "adapter" / "README.md").read_text()
    expected = ["HierarchicalSFT", "Optimiser steps: 2", "load_backbone", '"learning_rate": 0.005', __version__, "Date"]
    assert all(text in card for text in expected), card
    assert "More Information Needed" not in card and card.startswith("---\nbase_model:")


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("/home/me/.cache/huggingface/hub/models--Qwen--Qwen2.5-1.5B/snapshots/8faed761d45a/", "Qwen/Qwen2.5-1.5B"),
        ("Qwen/Qwen2.5-1.5B", "Qwen/Qwen2.5-1.5B"),
        ("models/mine", "models/mine"),
    ],
)
def test_the_hubs_cache_is_named_by_the_hubs_id(model: str, name: str) -> None:
    assert public_name(model) == name
