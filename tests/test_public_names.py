"""What users import: every public name is there, says what it is, and is listed."""

import ast
import dataclasses
import importlib
import inspect
import re
import types
from pathlib import Path
from typing import Any

import pytest

import lit_rft

ROOT = Path(__file__).parents[1]
PACKAGES = [name for name in lit_rft._SUBPACKAGES if name != "metrics"]


@pytest.mark.parametrize("name", lit_rft.__all__)
def test_every_flat_name_resolves_is_listed_and_documented(name: str) -> None:
    value: Any = getattr(lit_rft, name)
    assert name in dir(lit_rft)
    if name in PACKAGES or name == "metrics":
        assert isinstance(value, types.ModuleType) and value.__name__ == f"lit_rft.{name}"
    if name == "RewardFunction":  # an alias of a type has no docstring
        return
    assert value.__doc__
    if dataclasses.is_dataclass(value):  # else Python writes the signature there
        assert not value.__doc__.startswith(f"{name}(")


@pytest.mark.parametrize("package", PACKAGES)
def test_every_name_of_a_package_resolves(package: str) -> None:
    module = importlib.import_module(f"lit_rft.{package}")
    assert module.__doc__
    for name in getattr(module, "__all__", []):
        value = getattr(module, name)
        if inspect.isclass(value) or inspect.isfunction(value):  # the others are constants and aliases of types
            assert inspect.getdoc(value), f"lit_rft.{package}.{name}"
        assert name in dir(module)


def test_what_most_programs_need_is_flat() -> None:
    wanted = {
        "HierarchicalSFT", "OfflineHierarchicalRL", "OnlineHighLevelFinetune", "MixedPolicyGRPO", "LoraSettings",
        "SamplingSettings", "PolicySettings", "OptimizerSettings", "TrajectoryDataModule", "MathPromptDataModule",
    }  # fmt: skip
    assert wanted <= set(lit_rft.__all__)
    assert lit_rft.HierarchicalSFT is lit_rft.stages.HierarchicalSFT


def test_type_checkers_see_every_flat_name() -> None:
    (block,) = (
        node for node in ast.parse(Path(str(lit_rft.__file__)).read_text()).body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )  # fmt: skip
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    seen = {alias.asname: str(node.module) for node in imports for alias in node.names}
    assert seen == {**dict.fromkeys(lit_rft._SUBPACKAGES, "lit_rft"), **lit_rft._NAMES}


def test_the_example_of_testing_ones_own_parts(tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "testing.md").read_text(), flags=re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(code, "docs/testing.md", "exec"), names)
    names["test_my_callback"](tmp_path)


def test_the_table_of_testing_names_everything_public() -> None:
    text = (ROOT / "docs" / "testing.md").read_text()
    assert {name for name in lit_rft.testing.__all__ if name not in text} == set()
