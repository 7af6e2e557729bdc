"""What a user installs is what stands in the repository: package list, wheel, import names, pins."""

import configparser
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import lit_rft

ROOT = Path(__file__).parents[1]
TOP_LEVEL = ("lit_rft", "datamodules", "callbacks", "configs")
EXTRAS = {"plots", "scienceworld", "alfworld", "math", "bench", "demo", "vllm", "test", "dev"}


def import_name(path: Path) -> str:
    """datamodules/episodes.py -> lit_rft.datamodules.episodes; packages by their folder."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts[:-1] if parts[-1] == "__init__" else parts
    return ".".join(parts if parts[0] == "lit_rft" else ("lit_rft", *parts))


def sources() -> list[Path]:
    return [path for top in TOP_LEVEL for path in (ROOT / top).rglob("*.py")]


def python(*arguments: str, cwd: Path, path: str = "") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.run([sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy, so that neither an old build/ helps nor a new one is left."""
    tree = tmp_path_factory.mktemp("tree")
    for name in ("pyproject.toml", "setup.cfg", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    for name in TOP_LEVEL:
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    out = tmp_path_factory.mktemp("wheel")
    built = python("-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(out), ".", cwd=tree)
    assert built.returncode == 0, built.stdout + built.stderr
    (result,) = out.glob("*.whl")
    return result


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("elsewhere")
    install = ("-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", str(target), str(wheel))
    done = python(*install, cwd=target)
    assert done.returncode == 0, done.stdout + done.stderr
    return target


def test_every_folder_with_an_init_is_a_listed_package() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    listed = config["options"]["packages"].split()
    assert sorted(listed) == sorted(import_name(path) for path in sources() if path.name == "__init__.py")


def test_every_module_lies_in_a_package() -> None:
    orphans = [str(path.relative_to(ROOT)) for path in sources() if not (path.parent / "__init__.py").exists()]
    assert orphans == []


def test_wheel_puts_everything_inside_lit_rft(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"lit_rft", f"lit_rft-{lit_rft.__version__}.dist-info"}
    assert "lit_rft/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_wheel_has_every_config(wheel: Path) -> None:
    shipped = {name for name in zipfile.ZipFile(wheel).namelist() if name.endswith((".yaml", ".yml"))}
    written = {f"lit_rft/{path.relative_to(ROOT)}" for path in (ROOT / "configs").rglob("*.y*ml")}
    assert written and shipped == written


def test_installed_wheel_imports_everything_from_outside_the_root(installed: Path, tmp_path: Path) -> None:
    modules = sorted(import_name(path) for path in sources())
    script = f"import importlib\nfor name in {modules}: print(importlib.import_module(name).__file__)"
    # -S: without it the editable install would stand in for what the wheel lacks
    dependencies = sysconfig.get_path("purelib")
    done = python("-S", "-W", "ignore", "-c", script, cwd=tmp_path, path=f"{installed}{os.pathsep}{dependencies}")
    assert done.returncode == 0, done.stderr
    files = done.stdout.split()
    assert len(files) == len(modules)
    assert [file for file in files if not file.startswith(str(installed))] == []


@pytest.mark.parametrize("name", ["datamodules", "callbacks", "configs"])
def test_bare_import_is_refused(name: str) -> None:
    done = python("-c", f"import {name}", cwd=ROOT)
    assert done.returncode == 1
    assert f"ImportError: this package is lit_rft.{name}, but it was imported as {name}" in done.stderr


def test_import_is_light(tmp_path: Path) -> None:
    script = "import sys, lit_rft; print(*{name.split('.')[0] for name in sys.modules})"
    done = python("-c", script, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    assert "lit_rft" in loaded
    assert loaded & {"torch", "lightning", "transformers", "peft", "numpy", "torchmetrics", "rich"} == set()


def test_lazy_names() -> None:
    assert lit_rft.episodes.__name__ == "lit_rft.episodes"
    assert {"envs", "objectives", "datamodules"} <= set(dir(lit_rft))
    with pytest.raises(AttributeError, match=r"'lit_rft' has no attribute 'environments'; it has: .*envs"):
        lit_rft.environments  # noqa: B018


def test_metadata() -> None:
    metadata = importlib.metadata.metadata("lit-rft")
    assert metadata["Version"] == lit_rft.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert set(metadata.get_all("Provides-Extra") or []) == EXTRAS


def test_every_dependency_is_pinned_to_a_version_it_allows() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    pins = [Requirement(line) for line in lines]
    for requirement in map(Requirement, importlib.metadata.requires("lit-rft") or []):
        if requirement.name in ("lit-rft", "vllm"):  # vllm brings its own torch
            continue
        found = [pin for pin in pins if re.sub(r"[-_.]+", "-", requirement.name).lower() == pin.name]
        assert found, f"constraints.txt has no {requirement.name}"
        for pin in found:
            (specifier,) = pin.specifier
            assert requirement.specifier.contains(specifier.version), f"{pin} is not {requirement}"


def test_pins_are_free_of_cuda() -> None:
    text = (ROOT / "constraints.txt").read_text()
    assert re.findall(r"^(?:nvidia|cuda|triton).*", text, flags=re.MULTILINE) == []
    assert re.search(r"^torch==2\.13\.0$", text, flags=re.MULTILINE)
