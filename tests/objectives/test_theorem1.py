"""LUFFY's Theorem 1 in small: benchmarks/luffy_theorem1.py does the whole."""

import importlib.util
from pathlib import Path
from typing import Any

import torch


def load() -> Any:
    path = Path(__file__).parents[2] / "benchmarks" / "luffy_theorem1.py"
    spec = importlib.util.spec_from_file_location("luffy_theorem1", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_mixed_gradient_is_unbiased() -> None:
    """On- and off-policy samples, weighted by LUFFY's objective without shaping, give the exact gradient on average."""
    theorem = load()
    logits = torch.tensor([[0.5, -0.3, 0.1, 0.0]], dtype=torch.float64).repeat(200_000, 1)
    found = theorem.sampled_gradient(logits, torch.Generator().manual_seed(0)).mean(0)
    torch.testing.assert_close(found, theorem.exact_gradient(logits[:1])[0], rtol=0, atol=5e-3)


def test_the_best_gradient_falls_with_the_root_of_the_steps() -> None:
    theorem = load()
    numbers = [128, 512, 2048]
    values = [theorem.best_squared_norm(number, runs=128) for number in numbers]
    assert -0.65 < theorem.slope(numbers, values) < -0.35
