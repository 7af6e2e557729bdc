"""The model card of an exported policy: contents, training, results, loading."""

import datetime
import importlib.metadata
import inspect
import json
import re
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

import lit_rft

_PACKAGES = ("torch", "transformers", "peft", "lightning")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def public_name(model: str) -> str:
    """Return a model's public name: the hub id for a folder of the hub's cache, else the name itself."""
    cached = re.search(r"models--([^/\\]+?)--([^/\\]+)[/\\]snapshots[/\\]", model)
    return f"{cached[1]}/{cached[2]}" if cached else model


def name_base_model(folder: Path, model: str) -> None:
    """Write the base model's public name, not a local path, into all adapter configurations of a folder."""
    for path in folder.rglob("adapter_config.json"):
        config = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps(config | {"base_model_name_or_path": public_name(model)}, indent=2) + "\n")
    for path in folder.glob("*config.json"):
        config = json.loads(path.read_text(encoding="utf-8"))
        if not {"_name_or_path", "name_or_path"}.isdisjoint(config):
            kept = {key: value for key, value in config.items() if key not in ("_name_or_path", "name_or_path")}
            path.write_text(json.dumps(kept, indent=2) + "\n")


def model_card(
    stage: Any, datamodule: Any | None, step: int, model: str, adapter: bool, metrics: Mapping[str, Any]
) -> str:
    """Return the text of README.md.

    Args:
        stage: a LightningModule with hyper-parameters.
        datamodule: the training data; None if unknown.
        step: number of optimiser steps.
        model: name of the base model.
        adapter: true for an adapter, false for a full model.
        metrics: by name, as they were logged last.
    """
    name, kind = public_name(model), type(stage).__name__
    summary = (inspect.getdoc(type(stage)) or kind).strip().splitlines()[0]
    shown = name if not PurePath(name).is_absolute() else PurePath(name).name
    head = [f"base_model: {json.dumps(shown)}", f"library_name: {'peft' if adapter else 'transformers'}", "tags:"]
    lines = ["---", *head, "- lit-rft", "- text-generation", "---", "", f"# {kind} of {shown}", "", summary, ""]
    versions = ", ".join(f"{package} {importlib.metadata.version(package)}" for package in _PACKAGES)
    facts = {
        "Stage": kind,
        "Base model": shown,
        "What is here": "a PEFT adapter and the tokenizer" if adapter else "the full model and the tokenizer",
        "Optimiser steps": step,
        "Date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "Made with": f"lit-rft {lit_rft.__version__} ({versions})",
    }
    lines += [f"- {key}: {value}" for key, value in facts.items()]
    lines += ["", "## Load", "", *_loading(name, adapter), "", "## Results", "", *_results(metrics)]
    lines += ["", "## Data", "", *_data(datamodule)]
    settings = json.dumps(_without_folders(dict(stage.hparams)), indent=2)
    return "\n".join([*lines, "", "## Settings", "", "```json", settings, "```", ""])


def _loading(name: str, adapter: bool) -> list[str]:
    """Return how to load the folder, by PEFT and transformers where these find the base model by its name."""
    ours = f'load_backbone({json.dumps(name)}, adapter="FOLDER")' if adapter else 'load_backbone("FOLDER")'
    lines = ["```python", "from lit_rft.models import load_backbone, load_tokenizer", "", f"policy = {ours}.eval()",
             'tokenizer = load_tokenizer("FOLDER")', "```"]  # fmt: skip
    if not adapter or _HUB_ID.fullmatch(name):
        package, loader = ("peft", "AutoPeftModelForCausalLM") if adapter else ("transformers", "AutoModelForCausalLM")
        lines += ["", "Without lit-rft:", "", "```python", f"from {package} import {loader}",
                  "from transformers import AutoTokenizer", "", f'policy = {loader}.from_pretrained("FOLDER").eval()',
                  'tokenizer = AutoTokenizer.from_pretrained("FOLDER")', "```"]  # fmt: skip
    return [*lines, "", "Another stage starts from it with `--model.init_args.policy.start_from FOLDER`."]


def _results(metrics: Mapping[str, Any]) -> list[str]:
    """List metrics as they were logged last, without those of speed."""
    values = {name: float(value) for name, value in sorted(metrics.items()) if name.startswith(("train/", "val/"))}
    if not values:
        return ["None were logged."]
    rows = [f"| `{name}` | {value:.4g} |" for name, value in values.items()]
    text = "As logged last: `val/` of the last evaluation, `train/` of the last batch, which may be far from a mean."
    return [text, "", "| metric | value |", "|---|---:|", *rows]


def _data(datamodule: Any | None) -> list[str]:
    """List the data module's plain settings."""
    if datamodule is None:
        return ["A user-defined data loader."]
    names = [name for name in inspect.signature(type(datamodule)).parameters if hasattr(datamodule, name)]
    values = {name: getattr(datamodule, name) for name in names}
    plain = {name: value for name, value in values.items() if _is_plain(value)}
    text = json.dumps(_without_folders(plain), indent=2)
    return [f"`{type(datamodule).__name__}` with", "", "```json", text, "```"]


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, (bool, int, float, str, PurePath))


def _without_folders(value: Any) -> Any:
    """Shorten local paths to the file's name."""
    if isinstance(value, Mapping):
        return {key: _without_folders(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_folders(item) for item in value]
    if isinstance(value, (str, PurePath)):
        text = public_name(str(value))
        return PurePath(text).name if PurePath(text).is_absolute() or text.startswith("~") else text
    return value
