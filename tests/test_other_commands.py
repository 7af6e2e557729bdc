"""`lit-rft configs` and `lit-rft doctor`."""

import re
from pathlib import Path

import pytest
import yaml
from command import main
from packaging.requirements import Requirement

from lit_rft import cli, doctor_command
from lit_rft.cli import config_folder, shipped_configs
from lit_rft.config_files import read_configs


def test_configs_are_listed_with_their_purpose(capsys: pytest.CaptureFixture[str]) -> None:
    main(["configs", "list"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == shipped_configs()
    assert all(len(line.split()) > 1 for line in lines), [line for line in lines if len(line.split()) == 1]
    main(["configs"])  # no action
    assert capsys.readouterr().out.splitlines() == lines
    main(["configs", "list", "key_rooms"])
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [
        "grpo/key_rooms.yaml", "grpo/key_rooms_sft.yaml"
    ]  # fmt: skip
    main(["configs", "list", "dr_grpo"])
    assert capsys.readouterr().out == "luffy/dr_grpo.yaml  An overlay: Dr. GRPO\n"
    with pytest.raises(ValueError, match="no config has 'nothing at all'"):
        main(["configs", "list", "nothing at all"])


def test_a_config_is_shown_with_its_bases_or_as_written(capsys: pytest.CaptureFixture[str]) -> None:
    main(["configs", "show", "grpo/key_rooms.yaml"])
    settings = yaml.safe_load(capsys.readouterr().out)
    assert "base" not in settings and settings["trainer"]["max_steps"] == 60
    assert settings["data"]["init_args"]["suite"]["class_path"]  # of guess_number.yaml
    main(["configs", "show", "grpo/key_rooms.yaml", "--file"])
    assert capsys.readouterr().out == (config_folder() / "grpo" / "key_rooms.yaml").read_text()
    with pytest.raises(ValueError, match=r"there is no config 'keyrooms\.yaml'.* did you mean grpo/key_rooms\.yaml"):
        main(["configs", "show", "keyrooms.yaml"])


@pytest.mark.parametrize("name", shipped_configs())
def test_a_copy_means_the_same(name: str, tmp_path: Path) -> None:
    main(["configs", "copy", name, str(tmp_path)])
    (copy,) = read_configs(["-c", str(tmp_path / Path(name).name)])
    (shipped,) = read_configs(["-c", str(config_folder() / name)])
    assert copy.content == shipped.content
    with pytest.raises(ValueError, match="exists already; name another file"):
        main(["configs", "copy", name, str(tmp_path)])


def test_completion_names_verbs_and_keys(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("shtab")
    with pytest.raises(SystemExit) as ended:
        cli.main(["completion", "bash"])
    script = capsys.readouterr().out
    assert ended.value.code == 0 and "complete " in script.splitlines()[-1]
    assert "(fit validate test predict)" in script and " --trainer.max_steps " in script and "--ckpt_path" in script


def test_completion_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs shtab: pip install 'lit-rft\[completion\]'"):
        main(["completion", "zsh"])
    with pytest.raises(ValueError, match="invalid choice: 'cmd'"):
        main(["completion", "cmd"])


def test_the_doctor_reports_versions_devices_and_caches(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LIT_RFT_CACHE", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")
    main(["doctor"])
    report = capsys.readouterr().out
    for text in ("torch", "memory", "GPU", "Java", "default model", "extra scienceworld", str(tmp_path)):
        assert text in report, text


def test_the_doctor_says_what_is_missing_and_how_to_get_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = {"torch": "2.0", "peft": ""}
    monkeypatch.setattr(
        doctor_command, "package_version", lambda name: versions.get(name, "" if name == "vllm" else "99")
    )
    wanted = ["torch>=2.6", "peft>=0.18", 'vllm>=0.10.2; extra == "vllm"', 'numpy>=1; extra == "plots"']
    monkeypatch.setattr(
        doctor_command, "_requirements", lambda package="lit-rft": [Requirement(text) for text in wanted]
    )
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(ValueError):  # exit code 1
        main(["doctor"])
    report = capsys.readouterr().out
    assert "torch 2.0, needs >=2.6" in report and "pip install 'torch>=2.6'" in report
    assert "peft is missing" in report and "pip install 'lit-rft[vllm]'" in report
    assert "lit-rft[plots]" not in report


def test_the_doctor_checks_every_extra_of_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    project = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    section = project.split("[project.optional-dependencies]")[1].split("\n[")[0]
    extras = re.findall(r"^(\w+) = \[", section, re.MULTILINE)
    monkeypatch.setattr(doctor_command, "package_version", lambda name: "")
    findings = {finding.name: finding for finding in doctor_command.extras()}
    assert list(findings) == [f"extra {name}" for name in extras]
    assert set(doctor_command.PURPOSES) == set(extras)
    assert "matplotlib is missing" in findings["extra demo"].state  # of plots, which demo names
    assert "lit-rft is missing" not in findings["extra demo"].state
    assert findings["extra loggers"].advice == "for W&B and MLflow: pip install 'lit-rft[loggers]'"


def test_a_cache_without_permission_names_its_variable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor_command.os, "access", lambda path, mode: False)
    monkeypatch.setenv("LIT_RFT_CACHE", str(tmp_path))
    finding = next(iter(doctor_command.caches()))
    assert "no permission to write" in finding.state and finding.advice == "set LIT_RFT_CACHE to another folder"
