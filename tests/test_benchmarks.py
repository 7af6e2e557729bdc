"""The GPU benchmarks run without a GPU, at a tiny size; a limit is what it says."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lit_rft.generation import ConversationGenerator, SamplingSettings
from lit_rft.models.accel.shared_prompts import shared_prompt_masks
from lit_rft.models.backbone import output_logits
from lit_rft.models.forward import hidden_states
from lit_rft.testing.tiny import make_groups, make_model, with_adapters
from lit_rft.transcripts import collate_shared

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def run_gpu_steps(folder: Path, *steps: str) -> dict[str, Any]:
    """Run steps of the GPU benchmark (none: all) on this machine, and return their figures."""
    environment = os.environ | {"SIZE": "tiny", "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    command = [str(BENCHMARKS / "gpu" / "run.sh"), str(folder), *steps]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, env=environment)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    steps = steps or ("check", "tests", "train", "rollout", "grpo", "learn")
    assert {path.name for path in folder.iterdir()} == {*(f"{step}.json" for step in steps), "log.txt"}
    found = {step: json.loads((folder / f"{step}.json").read_text()) for step in steps if step != "tests"}
    for step, figures in found.items():
        assert figures["items"] and figures["versions"]["torch"] == torch.__version__, step
        assert not any("failed" in item for item in figures["items"].values()), figures["items"]
        assert figures["complete"] and figures["cudnn_attention"] == (step in ("check", "train")), step
    return found


def test_a_step_of_the_gpu_benchmark_runs_anywhere(tmp_path: Path) -> None:
    check_first_step(run_gpu_steps(tmp_path, "check")["check"]["items"])


def check_first_step(check: dict[str, Any]) -> None:
    assert check["rollout"]["same_completions"] == 1 and check["rollout"]["log_prob_difference"] == 0
    for step in ("sft step", "grpo step"):  # here both sides are the CPU
        assert check[step]["float32_relative_difference"] == 0 < check[step]["bf16_relative_difference"] < 0.1
        assert check[step]["fraction_with_gradient"] == 1
    assert "ATTENTION" in check["attention"]["causal"]


@pytest.mark.slow  # a minute and a half
def test_all_steps_of_the_gpu_benchmark_run_anywhere(tmp_path: Path) -> None:
    found = run_gpu_steps(tmp_path)
    check_first_step(found["check"]["items"])
    train = found["train"]["items"]
    ours, plain = (train[f"{side}, tiny, LoRA, 32 tokens a row"] for side in ("SFT", "SFT by transformers, sdpa"))
    assert ours["tokens"] == plain["tokens"] == 64 and 0 < ours["mfu"] < 1
    update = train["GRPO update, tiny, all weights, 32 tokens a row"]
    assert update["shares_prompts"] and update["tflop_per_second"] > 0
    assert update["tokens"] < 8 * 32 + 32  # the template's tokens are read once, as the prompt is
    rollout = found["rollout"]["items"]
    assert rollout["one step, 8 rows"]["milliseconds_of_reading"] > 0
    assert rollout["lit-rft, 8 rows"]["decoder"] == "Decoder" and rollout["generate, 8 rows"]["peak_gb"] > 0
    assert sum(rollout["profile of an eager step, 8 rows"]["shares"].values()) == pytest.approx(1)
    first_profile = list(rollout).index("profile of an eager step, 8 rows")  # it slows what follows it
    assert all("generate, " not in name and "lit-rft" not in name for name in list(rollout)[first_profile:])
    assert found["grpo"]["items"]["lit-rft"]["completion_tokens"] == 2 * 8 * 8
    assert found["learn"]["items"]["LUFFY, seed 0"]["finished"]


def test_a_step_of_the_gpu_benchmark_keeps_what_it_has(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Items that fail, run out of memory or find no time left do not take the others with them."""
    monkeypatch.syspath_prepend(str(BENCHMARKS / "gpu"))
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from kit import Kit

    def out_of_memory() -> None:
        raise torch.OutOfMemoryError("no room")

    kit, file = Kit("some", "tiny", 100.0, tmp_path), tmp_path / "some.json"
    assert kit.measure("good", lambda: {"value": 1}) == {"value": 1} | {"took": kit.figures["items"]["good"]["took"]}

    def on_disk() -> dict[str, int]:
        return {name: item["value"] for name, item in json.loads(file.read_text())["items"].items()}

    assert kit.measure("seen", on_disk) is not None  # what a step has that is cut now
    assert kit.measure("large", out_of_memory) is None
    kit.finish()  # no error so far
    assert kit.measure("wrong", lambda: 1 / 0) is None
    kit.seconds = 0.0
    assert kit.measure("late", lambda: {"value": 2}, at_least=1) is None
    items = json.loads(file.read_text())["items"]
    assert items["good"]["value"] == items["seen"]["good"] == 1 and "no room" in items["large"]["failed"]
    assert "ZeroDivisionError" in items["wrong"]["failed"] and "skipped" in items["late"]
    with pytest.raises(SystemExit, match="wrong"):
        kit.finish()


def test_what_every_token_is_multiplied_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from limits import product_weights

    tied, apart = make_model(tie_word_embeddings=True), make_model(tie_word_embeddings=False)
    embedding = tied.get_input_embeddings().weight.numel()
    assert product_weights(tied) == sum(p.numel() for p in tied.parameters()) - embedding
    assert product_weights(apart) == product_weights(tied) + embedding
    assert torch.equal(tied.get_output_embeddings().weight, tied.get_input_embeddings().weight)


def test_what_a_training_pass_multiplies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from limits import training_flop

    model = with_adapters(make_model(attn_implementation="eager")).train()
    model.enable_input_require_grads()  # else the first layer's inputs get no gradient
    with FlopCounterMode(display=False) as counter:
        model(input_ids=torch.arange(20)[None]).logits.sum().backward()
    causal = training_flop(model, [20], 20)
    attention = 6 * 20**2 * 2 * 4 * 8  # layers, heads, their size; eager attention multiplies what is masked, too
    assert counter.get_total_flops() == causal + attention
    assert training_flop(model, [20, 20], 40) == 2 * causal


def test_what_completions_that_share_a_prompt_multiply(monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt counts once: against torch's count and, as that one has no causal attention, against what tokens see."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from limits import training_flop

    model = with_adapters(make_model(attn_implementation="eager")).train()
    model.enable_input_require_grads()
    (group,) = make_groups((3,))
    batch = collate_shared([group], 0)
    prompt, lengths, width = group[0].utterance_starts[0], [len(t) for t in group], batch.input_ids.shape[1]
    with FlopCounterMode(display=False) as counter:
        output_logits(model, hidden_states(model, batch)).sum().backward()
    visible = shared_prompt_masks(model, batch) == 0
    heads = 2 * 4 * 8  # layers, heads, their size
    seen = 2 * int(visible.sum()) - width  # of causal attention half of a square, without its diagonal
    everything = counter.get_total_flops() - 12 * heads * width**2 + 6 * heads * seen
    assert training_flop(model, lengths, width, [prompt] * 2) == everything
    assert training_flop(model, lengths, width) > everything


def test_both_sides_of_the_episodes_say_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading everything anew is slower and nothing else."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from episodes import RereadingGenerator

    model, sampling = make_model(), SamplingSettings(7)
    sides: list[Any] = [kind(model, 2, sampling, num_slots=3) for kind in (ConversationGenerator, RereadingGenerator)]
    turns = [{0: [5, 6, 7], 1: list(range(8, 30))}, {1: [40]}, {0: [41, 42], 1: [9]}]
    said = []
    for generator in sides:
        slots = [generator.open(name) for name in "ab"]
        found = [generator.sample({slots[slot]: ids for slot, ids in turn.items()}) for turn in turns]
        said.append([[found[n][slots[slot]].ids for slot in turn] for n, turn in enumerate(turns)])
    assert said[0] == said[1]
    assert sides[1].tokens_read > sides[0].tokens_read and sides[1].tokens_sampled == sides[0].tokens_sampled


def test_a_power_law_and_its_plot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import growth

    found: list[dict[str, float]] = [
        {"value": n, "trainable": n, "seconds": 3 * n**2, "peak_gb": 5, "added_gb": n} for n in (8, 2, 4)
    ]
    everything = {"value": 0, "trainable": 100, "seconds": 1, "peak_gb": 9, "added_gb": 9}  # all weights
    cases: dict[str, list[dict[str, float]]] = {"length": found, "rank": [*found, everything], "episodes": found}
    laws = growth.exponents(cases)
    assert laws == {case: {"seconds": pytest.approx(2), "gb": float(case == "episodes")} for case in cases}
    kept: list[Any] = []
    monkeypatch.setattr(growth, "save_figure", lambda figure, name: kept.append((figure, name)))
    growth.plot(cases)
    ((figure, name),) = kept
    assert name == "growth.png" and len(figure.axes) == 6
    drawn = [(list(axes.lines[0].get_xdata()), list(axes.lines[0].get_ydata())) for axes in figure.axes]
    assert drawn[:3] == [
        ([8, 2, 4], [192, 12, 48]),
        ([8, 2, 4], [5, 5, 5]),
        ([8, 2, 4, 100], [192, 12, 48, 1]),
    ] and drawn[5] == ([8, 2, 4], [8, 2, 4])
    for length in (256, 1000):
        made = growth.transcript(length, random.Random(0))
        assert len(made) == length and made.num_decisions == length // 102


@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels of a GPU do not say what they are part of")
def test_softmaxes_of_attention_are_no_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from limits import shares

    x = torch.randn(512, 512)
    for work, part in (
        (lambda: x.softmax(-1), "attention"),
        (lambda: x.log_softmax(-1), "logits"),
        (lambda: x @ x, "matrix products"),
    ):
        with shares() as found:
            work()
        assert max(found, key=lambda name: found[name]) == part
