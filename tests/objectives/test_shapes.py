"""Every objective names an argument whose shape is wrong: broadcasting would give a number, and not the right one."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from lit_rft import objectives

ROW, GRID = torch.zeros(3), torch.zeros(3, 4)
LAST = torch.tensor([False, False, True])
# the function, its tensors, its options
CALLS: list[tuple[Callable[..., Any], dict[str, torch.Tensor], dict[str, Any]]] = [
    (objectives.advantage_weights, {"q_values": ROW, "values": ROW}, {"advantage_temperature": 1.0}),
    (objectives.weighted_likelihood_loss, {"log_likelihood": ROW, "weights": ROW}, {}),
    (
        objectives.td_target,
        {"rewards": ROW, "next_values": ROW, "terminated": LAST, "steps": ROW.long()}, {"discount": 0.9},
    ),
    (objectives.q_loss, {"q_values": ROW, "targets": ROW, "mask": LAST}, {}),
    (objectives.expectile_value_loss, {"values": ROW, "target_q_values": ROW}, {"expectile": 0.5}),
    (
        objectives.generalized_advantages,
        {"rewards": ROW, "values": ROW, "last": LAST, "final_values": ROW, "steps": ROW},
        {"discount": 0.9, "gae_lambda": 0.9},
    ),
    (objectives.clipped_value_loss, {"values": ROW, "old_values": ROW, "returns": ROW}, {}),
    (
        objectives.group_advantages, {"rewards": ROW, "group": ROW.long(), "off_policy_mask": LAST},
        {"on_policy_statistics": True},
    ),
    (objectives.utterance_log_likelihood, {"token_log_probs": GRID, "utterance_mask": GRID.bool()}, {}),
    (objectives.expected_utterance_length, {"end_log_probs": GRID, "utterance_mask": GRID.bool()}, {}),
    (objectives.clipped_surrogate, {"log_probs": GRID, "old_log_probs": GRID, "advantages": GRID}, {}),
    (objectives.off_policy_losses, {"log_probs": GRID, "advantages": GRID, "behaviour_log_probs": GRID}, {}),
    (
        objectives.mixed_policy_loss,
        {"log_probs": GRID, "advantages": GRID, "completion_mask": GRID.bool(), "off_policy_mask": LAST,
         "old_log_probs": GRID, "behaviour_log_probs": GRID, "token_weights": GRID}, {},
    ),
    (objectives.preference_loss, {"chosen_log_ratios": ROW, "rejected_log_ratios": ROW}, {"beta": 0.1}),
    (
        objectives.trajectory_log_probs,
        {"token_log_probs": GRID, "trajectory": ROW.long(), "mask": GRID.bool()}, {"number": 2},
    ),
    (objectives.next_token_values, {"values": ROW, "last": LAST, "final_values": ROW}, {}),
    (objectives.conservative_q_loss, {"q_values": GRID, "actions": ROW.long()}, {}),
    (objectives.perturbed_logits, {"log_probs": GRID, "q_values": GRID, "values": ROW}, {"weight": 1.0}),
]  # fmt: skip
NAMES = [function.__name__ for function, _, _ in CALLS]


@pytest.mark.parametrize("call", CALLS, ids=NAMES)
def test_one_argument_that_is_shorter(call: Any) -> None:
    function, tensors, options = call
    function(**tensors, **options)
    for name, tensor in tensors.items():
        with pytest.raises(ValueError, match=r"must have the shape of \w+: expected \(\d"):
            function(**{**tensors, name: tensor[:2]}, **options)


@pytest.mark.parametrize("call", CALLS, ids=NAMES)
def test_one_dimension_too_many(call: Any) -> None:
    function, tensors, options = call
    first, tensor = next(iter(tensors.items()))
    with pytest.raises(ValueError, match=rf"{first} must have {tensor.dim()} dimension\(s\), got shape \(1, 3"):
        function(**{name: tensor[None] for name, tensor in tensors.items()}, **options)
