"""The benchmark that is made for a GPU runs without one, at a tiny size; a limit is what it says."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import make_model, with_adapters
from torch.utils.flop_counter import FlopCounterMode

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_the_gpu_benchmark_runs_anywhere(tmp_path: Path) -> None:
    # supervised fine-tuning goes the way of offline RL
    options = ["--size", "tiny", "--rounds", "1", "--items", "grpo_step", "offline_rl", "rollout"]
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), *options, "--output", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())
    step = found["grpo_step"]["median"]["lit-rft"]
    assert 0 < step["completion_tokens"] <= 2 * 8 * 8 and step["seconds"] > 0
    training = found["offline_rl"]
    assert training["median"]["lit-rft"]["tokens"] == training["median"]["plain"]["tokens"] > 0
    assert sum(training["shares"].values()) == pytest.approx(1) and training["shares"]["attention"] > 0
    rollouts = found["rollout"]
    assert {"equal, 8 rows", "ragged, 16 rows"} <= set(rollouts["tokens_per_second"])
    assert len(rollouts["runs"]["generate"]) == len(rollouts["runs"]["lit-rft"]) == 1
    for name, row in rollouts["decoding"].items():
        assert row["of_copy_bandwidth"] > 0 and row["of_matrix_peak"] > 0
        assert name == "1 rows" or sum(rollouts["shares"][name].values()) == pytest.approx(1)


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
