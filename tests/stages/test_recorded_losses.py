"""The metrics of each stage in its first steps are those of tests/reference/stage_metrics.json: a change of structure
changes none of them. After an intended change of the arithmetic, record them again and say so in the commit:

    LIT_RFT_RECORD=1 python -m pytest tests/stages/test_recorded_losses.py
"""

import json
import math
import os
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from every_stage import STAGES, make

from lit_rft.testing.tiny import let_adapters_act
from lit_rft.testing.tiny_stage import fit

RECORD = Path(__file__).parents[1] / "reference" / "stage_metrics.json"
STEPS = 3


class Recorder(L.Callback):
    """Keeps what is logged after each batch; the adapters are set, so that they change the outputs from the start."""

    def __init__(self) -> None:
        self.logged: list[dict[str, float]] = []

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        L.seed_everything(3, verbose=False)
        let_adapters_act(pl_module.policy, std=0.1)

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        kept = {name: value for name, value in metrics.items() if "seconds" not in name and math.isfinite(value)}
        self.logged.append(dict(sorted(kept.items())))


@pytest.mark.parametrize("kind", STAGES)
def test_first_metrics_are_the_recorded_ones(kind: str, tiny_model_folder: Path, tmp_path: Path) -> None:
    stage, data = make(kind, tiny_model_folder, tmp_path)
    recorder = Recorder()
    fit(stage, data, STEPS, callbacks=[recorder], default_root_dir=tmp_path)
    recorded: dict[str, Any] = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    if os.environ.get("LIT_RFT_RECORD"):
        RECORD.write_text(json.dumps(dict(sorted((recorded | {kind: recorder.logged}).items())), indent=1) + "\n")
        return
    assert len(recorder.logged) == len(recorded[kind]) > 0
    for found, expected in zip(recorder.logged, recorded[kind], strict=True):
        known = {name: found[name] for name in expected}  # further metrics may have been added since
        assert known == pytest.approx(expected, rel=1e-4, abs=1e-6)
