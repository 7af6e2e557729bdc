"""Random states in checkpoints."""

from types import SimpleNamespace
from typing import Any

import torch

from lit_rft.callbacks import RandomState


def test_a_checkpoint_before_the_first_batch_of_a_resumed_run_has_the_states_it_was_resumed_with() -> None:
    """An evaluation that is repeated before that batch may save the best checkpoint."""
    before, after = RandomState(), RandomState()
    torch.manual_seed(3)
    saved = before.state_dict()
    expected = torch.rand(4)
    after.load_state_dict(saved)
    torch.manual_seed(5)
    trainer: Any = SimpleNamespace(global_rank=0)
    module: Any = None
    after.on_train_start(trainer, module)
    again = RandomState()
    again.load_state_dict(after.state_dict())
    again.on_train_batch_start(trainer, module, None, 0)
    assert torch.equal(torch.rand(4), expected)
