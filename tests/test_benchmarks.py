"""The benchmark that is made for a GPU runs without one, at a tiny size; a limit is what it says."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import make_model

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_the_gpu_benchmark_runs_anywhere(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), "--size", "tiny", "--rounds", "1", "--output", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())
    step = found["grpo_step"]["median"]["lit-rft"]
    assert 0 < step["completion_tokens"] <= 2 * 8 * 8 and step["seconds"] > 0
    assert set(found["training_step"]["median"]) == {"lit-rft", "plain"}
    assert sum(found["training_step"]["shares"].values()) == pytest.approx(1)
    rollouts = found["rollout"]
    assert rollouts["tokens_per_second"]["equal, 8 rows"]["ratio"] > 0
    for row in rollouts["decoding"].values():
        assert 0 < row["of_copy_bandwidth"] < 1 and 0 < row["of_matrix_peak"] < 1


def test_what_every_token_is_multiplied_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from limits import product_weights

    tied, apart = make_model(tie_word_embeddings=True), make_model(tie_word_embeddings=False)
    embedding = tied.get_input_embeddings().weight.numel()
    assert product_weights(tied) == sum(p.numel() for p in tied.parameters()) - embedding
    assert product_weights(apart) == product_weights(tied) + embedding
    assert torch.equal(tied.get_output_embeddings().weight, tied.get_input_embeddings().weight)
