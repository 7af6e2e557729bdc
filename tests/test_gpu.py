"""What every stage does on a GPU; the same checks run on the CPU, so that they are known to work where no GPU is."""

import math
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from every_stage import ACTING, STAGES, make

from lit_rft.callbacks import AtomicCheckpointIO, RandomState
from lit_rft.generation import ConversationGenerator, SamplingSettings, graphs, sample_groups
from lit_rft.models.accel import accelerate, can_pack, can_share_prompts
from lit_rft.models.backbone import final_hidden_states, output_logits
from lit_rft.models.forward import hidden_states
from lit_rft.models.merging import MergedWeights
from lit_rft.testing.tiny import let_adapters_act, make_groups, make_model, with_adapters
from lit_rft.testing.tiny_stage import fit, make_stage, trained
from lit_rft.transcripts import collate_packed, collate_padded, collate_shared

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def on(device: str, **options: Any) -> dict[str, Any]:
    return {"accelerator": "gpu" if device == "cuda" else "cpu", "devices": 1, **options}


class ActingAdapters(L.Callback):
    """Lets fresh adapters change the outputs, and keeps the weights before the first step."""

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        policy: Any = pl_module.policy
        L.seed_everything(3, verbose=False)
        let_adapters_act(policy)
        self.before = {name: p.detach().cpu().clone() for name, p in policy.named_parameters()}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", STAGES)
def test_steps_in_bf16(kind: str, device: str, tiny_model_folder: Path, tmp_path: Path) -> None:
    stage, data = make(kind, tiny_model_folder, tmp_path)
    start = ActingAdapters()
    options = on(device, precision="bf16-mixed", default_root_dir=tmp_path, callbacks=[start])
    trainer = fit(stage, data, 2, **options)
    assert trainer.global_step == 2
    losses = {name: float(value) for name, value in trainer.callback_metrics.items() if name.endswith("loss")}
    assert losses and all(math.isfinite(value) for value in losses.values())
    policy = dict(stage.policy.named_parameters())
    assert {p.device.type for p in policy.values()} == {"cpu"}  # Lightning brings the module back
    for name, parameter in policy.items():
        changed = not torch.equal(start.before[name], parameter.detach())
        assert changed == (parameter.requires_grad and ".frozen." not in name), name
        assert parameter.dtype == (torch.float32 if "lora" in name else torch.bfloat16), name


def utterance_states(model: Any, batch: Any, device: str) -> dict[str, torch.Tensor]:
    """Hidden states [n, D] before each token of a transcript's utterance, by the transcript's id."""
    batch = batch.to(device)
    hidden = hidden_states(model, batch).flatten(0, 1)
    rows = zip(batch.transcripts, batch.preceding, batch.utterance_mask, strict=True)
    return {transcript.episode_id: hidden[preceding[mask]] for transcript, preceding, mask in rows}


@pytest.mark.parametrize("device", DEVICES)
def test_packed_and_padded_rows_have_the_same_states(device: str) -> None:
    model = with_adapters(make_model()).to(device)
    assert can_pack(model)
    transcripts = [member for group in make_groups() for member in group]
    padded = utterance_states(model, collate_padded(transcripts, 0), device)
    packed = utterance_states(model, collate_packed(transcripts, 0, 64), device)
    assert padded.keys() == packed.keys() and len(padded) == len(transcripts)
    for name, expected in padded.items():
        torch.testing.assert_close(packed[name], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("device", DEVICES)
def test_shared_prompts_and_separate_ones_have_the_same_states(device: str) -> None:
    model = with_adapters(make_model()).to(device)
    assert can_share_prompts(model)
    group = make_groups((4,))[0]
    found = [utterance_states(model, batch, device) for batch in (collate_padded(group, 0), collate_shared([group], 0))]
    states = [torch.cat([by_id[transcript.episode_id] for transcript in group]) for by_id in found]
    torch.testing.assert_close(states[0], states[1], rtol=1e-3, atol=1e-4)
    direction = torch.randn(states[0].shape, generator=torch.Generator().manual_seed(0)).to(device)
    gradients = []
    for state in states:
        model.zero_grad()
        (state * direction).sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert (gradients[0] - gradients[1]).norm() < 1e-3 * gradients[0].norm()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_fast_layouts_are_taken_in_bf16(architecture: str, device: str) -> None:
    """No fallback in the precision that training has."""
    model = with_adapters(make_model(architecture).to(torch.bfloat16)).to(device)
    with torch.autocast(device, torch.bfloat16):
        assert can_pack(model) and can_share_prompts(model)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("merged", [False, True])
def test_cached_decoding_is_recomputation(merged: bool, device: str) -> None:
    model = with_adapters(make_model()).to(device)
    prompts = [("a", list(range(3, 12))), ("b", list(range(20, 43)))]
    acting = {"acting": MergedWeights(model).active} if merged else {}
    with torch.no_grad():
        groups = sample_groups(model, prompts, [3, 2], SamplingSettings(12, 1.0), 2, seed=0, max_concurrent=4, **acting)
        for (_, prompt), group in zip(prompts, groups, strict=True):
            for completion in group:
                ids = torch.tensor([prompt + completion.ids], device=device)
                hidden = final_hidden_states(model, ids, torch.arange(ids.shape[1], device=device)[None])
                log_probs = output_logits(model, hidden)[0].log_softmax(-1)[len(prompt) - 1 : -1]
                expected = log_probs.gather(-1, ids[0, len(prompt) :, None]).squeeze(-1)
                torch.testing.assert_close(torch.tensor(completion.log_probs), expected.cpu(), rtol=1e-3, atol=1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("merged", [False, True])
def test_captured_steps_say_what_eager_ones_do(
    merged: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """More tokens than the cache begins with room for, and fewer and fewer rows."""
    replays: list[int] = []
    step = graphs.StaticStep.__call__

    def counted(self: Any, *given: Any) -> torch.Tensor:
        replays.append(1)
        return step(self, *given)

    monkeypatch.setattr(graphs.StaticStep, "__call__", counted)
    model = with_adapters(make_model("qwen2").to(dtype)).cuda()
    prompts = [("a", list(range(3, 12))), ("b", list(range(20, 43)))]
    acting = {"acting": MergedWeights(model).active} if merged else {}
    said = {}
    for switch in ("0", "1"):
        accelerate(model, "auto" if switch == "1" else ["kv_cache", "decoding_attention"])
        sampling = SamplingSettings(100, 1.0)
        found = sample_groups(model, prompts, [9, 8], sampling, 2, seed=0, max_concurrent=17, **acting)
        said[switch] = [one for group in found for one in group]
        assert bool(replays) == (switch == "1")
    assert "without CUDA graphs" not in caplog.text
    tolerance, common = (1e-3 if dtype == torch.float32 else 0.1), 0
    for eager, graph in zip(said["0"], said["1"], strict=True):
        if dtype == torch.float32:
            assert graph.ids == eager.ids
        # in bf16 rounding decides between near-ties: up to the first one of them
        same = next((n for n, (a, b) in enumerate(zip(eager.ids, graph.ids, strict=False)) if a != b), len(eager.ids))
        assert graph.log_probs[:same] == pytest.approx(eager.log_probs[:same], abs=tolerance)
        common += same
    assert common > 5 * len(said["0"])


@pytest.mark.gpu
def test_captured_steps_follow_weights_that_change() -> None:
    """In place, as an optimiser changes them, and others in their place."""
    said: dict[str, list[list[int]]] = {}
    for switch in ("0", "1"):
        model = make_model().cuda()
        accelerate(model, "auto" if switch == "1" else ["kv_cache", "decoding_attention"])
        generator = ConversationGenerator(model, 2, SamplingSettings(12), num_slots=2)
        slot = generator.open("a")
        found = [generator.sample({slot: [5, 6, 7]})[slot].ids]
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(1.1)
        found.append(generator.sample({slot: [8]})[slot].ids)
        for name, weight in list(model.named_parameters()):
            owner, _, last = name.rpartition(".")
            setattr(model.get_submodule(owner), last, torch.nn.Parameter(weight.detach() * 0.8))
        found.append(generator.sample({slot: [9]})[slot].ids)
        said[switch] = found
    assert said["0"] == said["1"]


@pytest.mark.parametrize("device", DEVICES)
def test_conversations_keep_their_cache(device: str) -> None:
    """A second turn after the first is what reading the whole conversation gives."""
    model = make_model().to(device)
    generator = ConversationGenerator(model, 2, SamplingSettings(5), num_slots=2)
    slot = generator.open("a")
    first = generator.sample({slot: [5, 6, 7]})[slot]
    second = generator.sample({slot: [40, 41]})[slot]
    fresh = ConversationGenerator(model, 2, SamplingSettings(5), num_slots=2)
    whole = fresh.open("a")
    assert fresh.sample({whole: [5, 6, 7, *first.ids, 40, 41]})[whole].ids == second.ids


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", ["sft", "grpo"])
def test_resuming_goes_on_as_if_uninterrupted(kind: str, device: str, tiny_model_folder: Path, tmp_path: Path) -> None:
    def run(steps: int, ckpt_path: Path | None = None) -> tuple[L.Trainer, dict[str, torch.Tensor]]:
        stage, data = make(kind, tiny_model_folder, tmp_path)
        trainer = L.Trainer(
            **on(device), max_steps=steps, max_epochs=-1, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0, callbacks=[RandomState()],
            plugins=[AtomicCheckpointIO()], default_root_dir=tmp_path,
        )  # fmt: skip
        trainer.fit(stage, data, ckpt_path=ckpt_path)
        return trainer, trained(stage)

    _, uninterrupted = run(3)
    trainer, _ = run(1)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    _, resumed = run(3, tmp_path / "one.ckpt")
    for name, expected in uninterrupted.items():
        # sums on a GPU may be in another order each time, which Adam makes large where a gradient is next to nothing
        difference = (resumed[name].cpu() - expected.cpu()).norm()
        assert difference <= 1e-3 * expected.cpu().norm() + 1e-6, name


@pytest.mark.parametrize("device", DEVICES)
def test_problems_and_episodes_are_evaluated(device: str, tiny_model_folder: Path, tmp_path: Path) -> None:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False, "default_root_dir": tmp_path}
    trainer = L.Trainer(**on(device, precision="bf16-mixed"), **quiet)
    grpo, prompts = make("grpo", tiny_model_folder, tmp_path)
    (scores,) = trainer.validate(grpo, prompts, verbose=False)
    assert 0 <= scores["val/average"] <= 1 and len(grpo.evaluator.results) == 4
    _, data = make("online", tiny_model_folder, tmp_path)
    (scores,) = trainer.test(make_stage(tiny_model_folder, acting=ACTING), datamodule=data, verbose=False)
    assert 0 <= scores["test/score"] <= 1
