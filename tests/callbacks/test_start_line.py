"""The line that tells what is about to train."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from lit_rft.callbacks.run_config import start_line


@pytest.mark.parametrize(("processes", "devices"), [(1, "cpu"), (2, "2 x cpu")])
def test_it_has_devices_weights_step_and_folder(processes: int, devices: str) -> None:
    layer: Any = nn.Linear(4, 3)
    layer.bias.requires_grad_(False)
    trainer: Any = SimpleNamespace(
        strategy=SimpleNamespace(root_device=torch.device("cpu")), world_size=processes, precision="bf16-mixed",
        global_step=7, default_root_dir="runs/mine",
    )  # fmt: skip
    expected = f"Linear on {devices}, bf16-mixed: 15 weights, 12 train; from step 7, in runs/mine"
    assert start_line(trainer, layer) == expected
