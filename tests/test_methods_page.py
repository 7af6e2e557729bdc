"""docs/methods.md lists every method by name, and each method's file names its equation and its paper."""

import inspect
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import lit_rft.advantages
import lit_rft.losses
import lit_rft.sources

PAGE = (Path(__file__).parents[1] / "docs" / "methods.md").read_text()
PACKAGES = (lit_rft.losses, lit_rft.advantages, lit_rft.sources)
PAPER = r"arXiv \d{4}\.\d{4,5}|\d{4}\.\d{4,5}\)"
PARTS = {"ImportanceWeights", "WrappedSource"}  # interface and base class: no methods
# published as reports without a number in arXiv
OTHER_SOURCES = {
    "TruncatedWeights": "Yao et al. 2025", "MaskedWeights": "Ling team 2025",
    "SequenceWeights": "Li et al. 2025", "SamplerCorrected": "in place of",
}  # fmt: skip


def exported() -> list[Any]:
    return [getattr(package, name) for package in PACKAGES for name in package.__all__ if name not in PARTS]


def missing(page: str, packages: tuple[ModuleType, ...]) -> list[str]:
    """Names that packages export and the page does not have."""
    return [name for package in packages for name in package.__all__ if not re.search(rf"\b{name}\b", page)]


def test_the_page_lists_every_exported_class() -> None:
    assert missing(PAGE, PACKAGES) == []


def test_a_missing_class_is_noticed() -> None:
    assert missing(PAGE.replace("TwoSidedClip", ""), PACKAGES) == ["TwoSidedClip"]


@pytest.mark.parametrize("method", exported(), ids=lambda m: m.__name__)
def test_a_methods_file_names_equation_and_paper(method: Any) -> None:
    module = sys.modules[method.__module__]
    functions = [f for f in vars(module).values() if inspect.isfunction(f) and f.__module__ == module.__name__]
    texts = [inspect.getdoc(thing) or "" for thing in (module, method, *functions)]
    source = OTHER_SOURCES.get(method.__name__)
    assert re.search(PAPER, texts[0]) if source is None else source in "\n".join(texts)
    if not method.__module__.startswith("lit_rft.sources"):
        assert re.search(r"^ {4}\S.*( = |  ).", "\n".join(texts), re.MULTILINE), "no equation"


def imported_methods(module: ModuleType) -> set[str]:
    """Modules of other methods that a method's module takes names from."""
    methods = {method.__module__ for method in exported()}
    return {getattr(thing, "__module__", "") for thing in vars(module).values()} & methods - {module.__name__}


@pytest.mark.parametrize("name", sorted({method.__module__ for method in exported()}))
def test_a_method_is_one_short_file_that_uses_no_other_method(name: str) -> None:
    """Each can be read, changed or removed by itself."""
    assert imported_methods(sys.modules[name]) == set()
    assert len(inspect.getsource(sys.modules[name]).splitlines()) <= 150


def test_a_method_that_uses_another_is_noticed() -> None:
    module = ModuleType("lit_rft.losses.other")
    vars(module)["RLOO"] = lit_rft.advantages.RLOO
    assert imported_methods(module) == {"lit_rft.advantages.rloo"}
