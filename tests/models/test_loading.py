"""What cannot be the policy is refused when it is loaded."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lit_rft.models import load_backbone
from lit_rft.testing.tiny import make_model, with_adapters
from lit_rft.testing.tiny_stage import make_stage


@pytest.mark.parametrize("name", ["/nowhere/model", "./model", "~/model"])
def test_a_folder_that_is_not_there(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lit_rft.models.backbone._hub_answers", lambda: False)
    with pytest.raises(ValueError, match="there is no such folder"):
        load_backbone(name)


def test_missing_weights_do_not_become_random_ones(tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    kept = {name: weight for name, weight in weights.items() if "layers.1." not in name}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 9 weights of LlamaForCausalLM \(first: model\.layers\.1\."):
        load_backbone(str(tmp_path))


@pytest.mark.parametrize("damage", ["cut", "shape"])
def test_damaged_weights_name_the_model(damage: str, tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:1000])
    else:
        save_file(load_file(file) | {"model.norm.weight": torch.ones(7)}, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"cannot load model '{tmp_path}'"):
        load_backbone(str(tmp_path))


def test_an_adapter_is_no_model(tiny_model_folder: Path, tmp_path: Path) -> None:
    """Transformers would load it on its base model, and new adapters would take its place."""
    from transformers import AutoTokenizer

    with_adapters(load_backbone(str(tiny_model_folder))).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_model_folder).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"got the adapter {tmp_path}: set policy.model to its base .*start_from"):
        make_stage(tmp_path).configure_model()


@pytest.mark.parametrize("damage", ["missing weights", "other names", "no file", "other sizes"])
def test_an_adapter_that_does_not_fit_the_model(damage: str, tiny_model_folder: Path, tmp_path: Path) -> None:
    """PEFT would begin with new adapters, which have no effect."""
    with_adapters(load_backbone(str(tiny_model_folder))).save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    weights = load_file(file)
    changed = {
        "missing weights": {name: weight for name, weight in weights.items() if "layers.1." not in name},
        "other names": {name.replace("self_attn", "attention"): weight for name, weight in weights.items()},
        "no file": {},
        "other sizes": {name: torch.cat([weight, weight]) for name, weight in weights.items()},
    }
    file.unlink()
    if damage != "no file":
        save_file(changed[damage], file)
    with pytest.raises(ValueError, match=f"cannot load the adapter {tmp_path}: .*layers of LlamaForCausalLM"):
        load_backbone(str(tiny_model_folder), adapter=tmp_path)
