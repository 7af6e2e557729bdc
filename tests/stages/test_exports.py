"""The exported adapter or model: what it holds, how it loads, what its card says."""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from saved_run import fit_and_save

from lit_rft import __version__
from lit_rft.callbacks.model_card import model_card, public_name
from lit_rft.models import LoraSettings, causal_lm, load_backbone
from lit_rft.testing.tiny import make_tokenizer
from lit_rft.testing.tiny_stage import ADAPTERS, make_stage


def test_the_exported_adapter_is_the_policy(tiny_model_folder: Path, tmp_path: Path) -> None:
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoTokenizer

    stage = make_stage(tiny_model_folder)
    fit_and_save(stage, tiny_model_folder, tmp_path, 2)
    loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter").eval()
    ids = torch.arange(5, 25)[None]
    policy: Any = stage.policy
    with torch.no_grad():
        torch.testing.assert_close(loaded(input_ids=ids).logits, policy.eval()(input_ids=ids).logits)
        with policy.disable_adapter():
            assert not torch.allclose(loaded(input_ids=ids).logits, policy(input_ids=ids).logits)
    assert AutoTokenizer.from_pretrained(tmp_path / "adapter").get_vocab() == make_tokenizer().get_vocab()


def test_without_lora_the_whole_model_is_exported(tiny_model_folder: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    stage = make_stage(tiny_model_folder, lora=None)
    fit_and_save(stage, tiny_model_folder, tmp_path, 1)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "adapter")
    expected = dict(causal_lm(stage.policy).named_parameters())  # type: ignore[arg-type]
    assert all(torch.equal(p, expected[name]) for name, p in loaded.named_parameters())


@pytest.mark.parametrize("lora", [ADAPTERS, None], ids=["adapter", "whole model"])
def test_what_is_exported_names_no_path_of_this_machine(
    lora: LoraSettings | None, tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And our own loader takes it, by the name that it has."""
    monkeypatch.setattr("lit_rft.models.smollm2.smollm2_135m_instruct", lambda: tiny_model_folder)
    name = "smollm2-135m-instruct"
    first = make_stage(Path(name), lora=lora)
    fit_and_save(first, Path(name), tmp_path / "first", 1)
    start = {"start_from": str(tmp_path / "first" / "checkpoints" / "last.ckpt")}
    stage = make_stage(Path(name), lora=lora, policy=start)
    fit_and_save(stage, Path(name), tmp_path, 2)
    folder = tmp_path / "adapter"
    for path in folder.rglob("*"):
        if path.suffix in (".json", ".md", ".jinja"):
            for place in (str(tiny_model_folder), str(tmp_path), str(Path.home())):
                assert place not in path.read_text(), path
    if lora is not None:
        assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == name
    loaded: Any = load_backbone(name, adapter=folder) if lora is not None else load_backbone(str(folder))
    ids = torch.arange(5, 25)[None]
    policy: Any = stage.policy
    with torch.no_grad():
        torch.testing.assert_close(loaded.eval()(input_ids=ids).logits, policy.eval()(input_ids=ids).logits)


def test_the_model_card_says_what_was_trained_and_how(tiny_model_folder: Path, tmp_path: Path) -> None:
    fit_and_save(make_stage(tiny_model_folder), tiny_model_folder, tmp_path, 2)
    card = (tmp_path / "adapter" / "README.md").read_text()
    expected = ["HierarchicalSFT", "Optimiser steps: 2", "load_backbone", '"learning_rate": 0.005', __version__, "Date"]
    assert all(text in card for text in expected), card
    assert "More Information Needed" not in card and card.startswith("---\nbase_model:")
    assert re.search(r"^\| `train/loss` \| [\d.]+ \|$", card, re.MULTILINE) and "perf/" not in card
    assert "AutoPeftModelForCausalLM" not in card  # PEFT would look for the folder of this machine


@pytest.mark.parametrize(
    ("name", "adapter", "loader"),
    [
        ("Qwen/Qwen2.5-1.5B", True, "AutoPeftModelForCausalLM"),
        ("smollm2-135m-instruct", True, None),
        ("smollm2-135m-instruct", False, "AutoModelForCausalLM"),
    ],
)
def test_the_model_card_loads_without_lit_rft_where_that_works(name: str, adapter: bool, loader: str | None) -> None:
    stage = SimpleNamespace(hparams={})
    card = model_card(stage, None, 3, name, adapter, {})
    assert ("Without lit-rft" in card) == (loader is not None)
    assert loader is None or f'{loader}.from_pretrained("FOLDER")' in card
    assert "None were logged." in card


def test_the_code_of_the_card_loads_the_policy(tiny_model_folder: Path, tmp_path: Path) -> None:
    stage = make_stage(tiny_model_folder, lora=None)
    fit_and_save(stage, tiny_model_folder, tmp_path, 1)
    folder = tmp_path / "adapter"
    card = (folder / "README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert len(blocks) == 2
    ids = torch.arange(5, 25)[None]
    policy: Any = stage.policy
    for block in blocks:
        names: dict[str, Any] = {}
        exec(block.replace("FOLDER", str(folder)), names)
        with torch.no_grad():
            logits = names["policy"](input_ids=ids).logits
            torch.testing.assert_close(logits, policy.eval()(input_ids=ids).logits)
        assert len(names["tokenizer"]) == len(make_tokenizer())


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("/home/me/.cache/huggingface/hub/models--Qwen--Qwen2.5-1.5B/snapshots/8faed761d45a/", "Qwen/Qwen2.5-1.5B"),
        ("Qwen/Qwen2.5-1.5B", "Qwen/Qwen2.5-1.5B"),
        ("models/mine", "models/mine"),
    ],
)
def test_the_hubs_cache_is_named_by_the_hubs_id(model: str, name: str) -> None:
    assert public_name(model) == name
