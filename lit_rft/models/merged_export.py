"""Export of a policy as a plain model, adapters merged, for engines that load one from files."""

import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lit_rft.models.backbone import causal_lm
from lit_rft.models.merging import MergedWeights
from lit_rft.models.sharding import sharded_parts


@torch.no_grad()
def save_merged(policy: nn.Module, folder: Path, *, adapter: str = "default", dtype: torch.dtype) -> None:
    """Write all weights of a policy, with an adapter merged, as transformers writes a model.

    The policy does not change. `config.json` also names the model that the policy was loaded from (`_name_or_path`).

    Args:
        policy: with or without adapters.
        folder: to write into.
        adapter: name of the adapter, if there are any.
        dtype: of the written weights; adapters are merged in the policy's own.

    Raises:
        ValueError: The weights are sharded, or an output layer tied to the embedding differs from it.
    """
    if sharded_parts(policy):
        raise ValueError(
            "sharded weights cannot be merged: use a strategy that does not shard (trainer.strategy: auto)"
        )
    lm = causal_lm(policy)
    device = next(policy.parameters()).device.type
    with torch.autocast(device, enabled=False), MergedWeights(policy, adapter).active():
        state = _plain_state(lm, adapter)
        _check_tied(lm, state)
        copies = {id(weight): _copy(weight, dtype) for weight in state.values()}  # tied weights stay one tensor
        lm.save_pretrained(folder, state_dict={name: copies[id(weight)] for name, weight in state.items()})
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    changes = {"dtype": str(dtype).removeprefix("torch."), "_name_or_path": lm.config._name_or_path}
    path.write_text(json.dumps(config | changes), encoding="utf-8")


def _copy(weight: Tensor, dtype: torch.dtype) -> Tensor:
    return weight.detach().to("cpu", dtype if weight.is_floating_point() else weight.dtype)


def _plain_state(lm: nn.Module, adapter: str) -> dict[str, Tensor]:
    """Return the weights by their names in the model without adapters."""
    state, trained = {}, {}
    for name, weight in lm.state_dict(keep_vars=True).items():
        layer, separator, rest = name.partition(".modules_to_save.")
        if separator:  # layers trained in full have a copy for each adapter
            trainer, _, weight_name = rest.partition(".")
            if trainer == adapter:
                trained[f"{layer}.{weight_name}"] = weight
        elif "lora_" not in name:
            state[re.sub(r"\.(base_layer|original_module)(?=\.)", "", name)] = weight
    return state | trained


def _check_tied(lm: Any, state: dict[str, Tensor]) -> None:
    """Check that an output layer that the model's settings tie to the embedding is the same weight.

    Raises:
        ValueError: It is another one: engines would use the embedding in its place.
    """
    if not getattr(lm.config.get_text_config(), "tie_word_embeddings", False):
        return
    names = {module: name for name, module in lm.named_modules()}
    embedding, head = (names[layer] for layer in (lm.get_input_embeddings(), lm.get_output_embeddings()))
    if state[f"{embedding}.weight"] is not state[f"{head}.weight"]:
        raise ValueError(
            f"the model ties {head} to {embedding}, but only one of them is adapted or trained in full: leave both out "
            "of lora.target_modules and lora.modules_to_save, or use another sampler"
        )
