"""Methods by name: two processes equal one, and a stopped run continues exactly."""

from pathlib import Path

import pytest
import torch
import variants_in_processes
from process_pair import ProcessPair
from test_two_processes import check_close


@pytest.mark.parametrize("kind", list(variants_in_processes.KINDS))
def test_two_processes_equal_one(kind: str, pair: ProcessPair, tiny_model_folder: Path, tmp_path: Path) -> None:
    alone, together = tmp_path / "alone", tmp_path / "together"
    for folder in (alone, together):
        folder.mkdir()
    variants_in_processes.main([kind, str(tiny_model_folder), str(alone), "1", "4"])
    expected = torch.load(alone / "rank0.pt", weights_only=True)
    assert any(weight.abs().max() > 1e-3 for name, weight in expected.items() if "lora_B" in name)  # it did train
    arguments = [kind, str(tiny_model_folder), str(together), "2"]
    pair.run("variants_in_processes", [*arguments, "2"])
    last = str(together / "checkpoints" / "last.ckpt")
    pair.run("variants_in_processes", [*arguments, "4", "--ckpt_path", last])
    first, second = (torch.load(together / f"rank{rank}.pt", weights_only=True) for rank in range(2))
    check_close(first, expected)
    assert all(torch.equal(weight, second[name]) for name, weight in first.items())
