"""What a user installs is what stands in the repository: package list, wheel, import names, pins."""

import ast
import configparser
import importlib
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
ENVIRONMENTS = {"scienceworld", "alfworld", "textworld", "openenv"}
EXTRAS = ENVIRONMENTS | {"browser", "completion", "docs", "plots", "math", "bench", "mutants", "demo", "vllm"}
EXTRAS |= {"loggers", "test", "dev"}


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


def test_wheel_has_the_files_of_the_viewer(wheel: Path) -> None:
    shipped = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("lit_rft/viewer/static/")}
    written = {str(path.relative_to(ROOT)) for path in (ROOT / "lit_rft" / "viewer" / "static").iterdir()}
    assert len(written) > 10 and shipped == written


@pytest.mark.slow  # half a minute
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
    assert f"ImportError: expected to be imported as lit_rft.{name}, got {name}" in done.stderr


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


LAZY = ("callbacks", "datamodules", "models", "rewards", "stages", "testing")


@pytest.mark.parametrize("package", LAZY)
def test_type_checkers_see_every_lazy_name(package: str) -> None:
    module = importlib.import_module(f"lit_rft.{package}")
    if not hasattr(module, "_EXPORTS"):
        pytest.skip("its names are imported at once")
    (block,) = (
        node for node in ast.parse(Path(str(module.__file__)).read_text()).body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )  # fmt: skip
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    seen = {alias.asname: str(node.module) for node in imports for alias in node.names}
    assert seen == module._EXPORTS  # `as` makes them exports


USERS_SCRIPT = """\
from lit_rft.callbacks import EpisodeText
from lit_rft.datamodules import MathPromptDataModule, TrajectoryDataModule
from lit_rft.models import LoraSettings, load_tokenizer
from lit_rft.stages import HierarchicalSFT, MixedPolicyGRPO, OptimizerSettings, PolicySettings

policy = PolicySettings(model="some/model", lora=LoraSettings(rank=8))
HierarchicalSFT(policy, OptimizerSettings(learning_rate=1e-3), level_weights={"high": 2.0})
MixedPolicyGRPO(policy, reward=lambda completions, rows: [0.0 for _ in completions], seed=3)
MathPromptDataModule(train_tasks={"chain_sum": 8}, batch_size=4)
TrajectoryDataModule(train_files=["a.jsonl"])
EpisodeText(number=2)
load_tokenizer("some/model")
"""
WRONG = {
    'HierarchicalSFT("model")': "arg-type",
    "HierarchicalSFT(hig_weight=1.0)": "call-arg",
    'MixedPolicyGRPO(seed="x")': "arg-type",
    "MathPromptDataModule(batch_size=None)": "arg-type",
    "OptimizerSettings(learning_rate='fast')": "arg-type",
}


def test_mypy_knows_the_types_in_a_users_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The packages as a wheel installs them; other libraries are left out, which keeps it quick."""
    api = pytest.importorskip("mypy.api")
    (tmp_path / "lit_rft").mkdir()
    for part in (*(ROOT / "lit_rft").iterdir(), *(ROOT / name for name in TOP_LEVEL[1:])):
        (tmp_path / "lit_rft" / part.name).symlink_to(part)
    (tmp_path / "script.py").write_text(USERS_SCRIPT + "".join(f"{line}\n" for line in WRONG))
    others = "torch lightning transformers peft numpy torchmetrics tokenizers jinja2 datasets pyarrow gymnasium rich"
    skipped = "follow_imports = skip\nignore_missing_imports = true\n"
    sections = "".join(f"[mypy-{name}.*]\n{skipped}" for name in others.split())
    (tmp_path / "mypy.ini").write_text(f"[mypy]\nignore_missing_imports = true\n{sections}")
    monkeypatch.chdir(tmp_path)
    arguments = ["--config-file", "mypy.ini", "--follow-imports", "silent", "--cache-dir", ".cache", "script.py"]
    out, _, _ = api.run(arguments)
    lines = USERS_SCRIPT.count("\n")
    found = {line.split(":")[1]: line for line in out.splitlines() if ": error:" in line}
    assert sorted(map(int, found)) == [lines + 1 + index for index in range(len(WRONG))], out
    assert all(code in found[str(lines + 1 + index)] for index, code in enumerate(WRONG.values())), out
