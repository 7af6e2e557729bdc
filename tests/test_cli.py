"""The command line: quick help, configs that compose, errors that say what is allowed."""

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import docstring_parser
import pytest

from lit_rft import callbacks, datamodules
from lit_rft.cli import config_folder, main, resolve_configs, shipped_configs
from lit_rft.command_line import build
from lit_rft.generation import SamplingSettings, ServerSettings
from lit_rft.models import LoraSettings
from lit_rft.rewards import MathReward
from lit_rft.stages import (
    ActingSettings,
    AnsweringSettings,
    CriticSettings,
    HierarchicalSFT,
    MixedPolicyGRPO,
    ObjectiveSettings,
    OfflineHierarchicalRL,
    OnlineHighLevelFinetune,
    OnlineSettings,
    OptimizerSettings,
    PolicySettings,
)

SFT = "glider/scienceworld/sft.yaml"
OFFLINE, ONLINE = "glider/scienceworld/offline_rl.yaml", "glider/scienceworld/online.yaml"
LUFFY, MATHEMATICS = "luffy/arithmetic.yaml", "glider/mathematics"
# what recipes build on, each with one of these
BASES = {
    "games.yaml": ["grpo/guess_number.yaml"],
    "mathematics.yaml": ["glider/mathematics/sft.yaml"],
    **{base: [SFT] for base in ("base.yaml", "policy.yaml", "episodes.yaml", "short_tasks.yaml")},
    "prompts.yaml": [LUFFY],
    "households.yaml": ["glider/alfworld/sft.yaml"],
    **{
        f"glider/alfworld/{overlay}.yaml": [f"glider/alfworld/{config}.yaml", f"glider/alfworld/{overlay}.yaml"]
        for overlay, config in (
            ("debug", "sft"),
            ("flat_sft", "sft"),
            ("flat_offline_rl", "offline_rl"),
            ("flat_online", "online"),
            ("official", "sft"),
        )
    },
    "glider/games/common.yaml": ["glider/games/sft.yaml"],
    "glider/scienceworld/llama3_8b_common.yaml": ["glider/scienceworld/llama3_8b.yaml"],
    "glider/alfworld/demo.yaml": [f"glider/alfworld/{name}.yaml" for name in ("sft", "flat_sft", "demo")],
}
OVERLAYS = {
    **BASES,
    "fsdp.yaml": [SFT, "fsdp.yaml"],
    "baselines/chat_server.yaml": ["baselines/alfworld/react.yaml", "baselines/chat_server.yaml"],
    "baselines/sage_server.yaml": ["baselines/alfworld/swift_sage.yaml", "baselines/sage_server.yaml"],
    **{
        f"glider/games/flat_{stage}.yaml": [f"glider/games/{stage}.yaml", f"glider/games/flat_{stage}.yaml"]
        for stage in ("sft", "offline_rl", "online")
    },
    "glider/scienceworld/debug.yaml": [SFT, "glider/scienceworld/debug.yaml"],
    **{
        f"glider/scienceworld/{overlay}.yaml": [config, f"glider/scienceworld/{overlay}.yaml"]
        for overlay, config in (
            ("flat_sft", SFT), ("flat_offline_rl", OFFLINE), ("flat_online", ONLINE), ("without_sft", OFFLINE),
            ("without_offline_rl", ONLINE), ("release", OFFLINE), ("smollm2_360m", SFT),
        )
    },
    **{
        f"{MATHEMATICS}/flat_{stage}.yaml": [f"{MATHEMATICS}/{stage}.yaml", f"{MATHEMATICS}/flat_{stage}.yaml"]
        for stage in ("sft", "offline_rl", "online")
    },
    **{
        f"luffy/{overlay}.yaml": [LUFFY, f"luffy/{overlay}.yaml"]
        for overlay in (
            "gsm_symbolic", "release", "on_policy", "without_shaping", "sft_then_rl", "rl_with_sft_loss", "vllm",
            "vllm_in_process", "dapo", "dr_grpo", "hpt", "chord", "srft", "rl_plus", "relift",
            "exgrpo", "prefix_rft", "gspo", "cispo", "rloo", "reinforce_plus_plus", "two_sided", "sampler_corrected",
        )
    },
    "baselines/nat_meaningless.yaml": ["baselines/alfworld/nat.yaml", "baselines/nat_meaningless.yaml"],
    "baselines/eto_later.yaml": ["baselines/scienceworld/eto.yaml", "baselines/eto_later.yaml"],
    **{f"grpo/{overlay}.yaml": ["grpo/text_env.yaml", f"grpo/{overlay}.yaml"] for overlay in ("gigpo",)},
    "grpo/hae.yaml": ["baselines/scienceworld/ppo.yaml", "grpo/hae.yaml"],
}  # fmt: skip


def _arguments(name: str, *more: str) -> list[str]:
    return resolve_configs([a for config in OVERLAYS.get(name, [name]) for a in ("-c", config)] + list(more))


@pytest.mark.parametrize("arguments", [[], ["--help"], ["--version"]])
def test_help_and_version_import_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys; from lit_rft.cli import main; main(sys.argv[1:])\n"
        "heavy = {'torch', 'lightning', 'transformers', 'jsonargparse', 'pyarrow'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    result = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert "lit-rft" in result.stdout


def test_help_names_verbs_and_configs(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--help"])
    out = capsys.readouterr().out
    assert all(word in out for word in ("fit", "validate", "test", "predict", SFT))


@pytest.mark.parametrize("name", shipped_configs())
def test_every_shipped_config_parses_and_builds(name: str, tiny_model_folder: Path, tmp_path: Path) -> None:
    model = ["--model.init_args.policy.model", str(tiny_model_folder), "--model.init_args.policy.start_from", "null"]
    cli = build(_arguments(name, "--trainer.default_root_dir", str(tmp_path), *model), run=False)
    assert cli.model.model_name == str(tiny_model_folder)
    assert cli.datamodule.model is None  # the data module takes the stage's tokenizer
    assert getattr(cli.datamodule, "agent", None) is None  # the data module takes the stage's
    assert cli.trainer.default_root_dir == str(tmp_path) and cli.trainer.logger.save_dir == str(tmp_path)
    check_callbacks(cli)
    check_decays(name, cli)
    cli.model.configure_model()
    assert any(p.requires_grad for p in cli.model.parameters())


def check_callbacks(cli: Any) -> None:
    """All of base.yaml's are there, each once, with those of what is learnt from: episodes or answers."""
    names = [type(callback).__name__ for callback in cli.trainer.callbacks]
    assert len(names) == len(set(names))
    of_all = {"RunProgressBar", "RandomState", "RunCheckpoint", "Throughput"}
    of_all |= {"TrainingCosts", "AdapterExport", "ScoreTable"}
    episodes, prompts = {"EpisodeText", "EpisodeFiles"}, {"CompletionText", "CompletionFiles"}
    answers = hasattr(cli.model, "answering")
    assert of_all | (prompts if answers else episodes) <= set(names)
    assert not (episodes if answers else prompts) & set(names)


def check_decays(name: str, cli: Any) -> None:
    """What decays ends within the run."""
    parts = [getattr(cli.model, "loss", None), getattr(getattr(cli.model, "source", None), "settings", None)]
    steps = [part.decay_steps for part in parts if hasattr(part, "decay_steps")]
    assert all(step <= cli.trainer.max_steps for step in steps)
    assert steps or name not in ("luffy/chord.yaml", "luffy/prefix_rft.yaml")


def test_later_configs_and_arguments_win(tiny_model_folder: Path) -> None:
    cli = build(_arguments("glider/scienceworld/debug.yaml", "--data.init_args.batch_size", "7"), run=False)
    assert cli.trainer.max_epochs == 1  # debug over sft
    assert cli.model.optimizer_settings.learning_rate == 1e-3  # sft
    assert cli.trainer.num_sanity_val_steps == 0  # base
    assert cli.datamodule.batch_size == 7


def test_null_on_the_command_line_takes_back_what_a_config_named() -> None:
    keys = ("--model.init_args.policy.start_from", "null", "--model.init_args.critic.cache_dir=null")
    lora = ("--model.init_args.policy.lora.dropout", "0.3", "--model.init_args.policy.lora", "null")
    cli = build(_arguments(OFFLINE, *keys, *lora), run=False)
    assert cli.model.policy_settings.start_from is None and cli.model.critic_settings.cache_dir is None
    assert cli.model.policy_settings.lora is None and cli.model.policy_settings.model == "smollm2-135m-instruct"
    short = build(_arguments(OFFLINE, "--model.policy.start_from", "null", "--model.policy.lora=null"), run=False)
    assert short.model.policy_settings.start_from is None and short.model.policy_settings.lora is None
    assert "CriticCalibration" in [
        type(callback).__name__ for callback in cli.trainer.callbacks
    ]  # added to base.yaml's


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--model.init_args.lenght_coef", "1"], ["lenght_coef", "level_weights", "did you mean 'length_coef'"]),
        (["--model.init_args.policy.modle", "x"], ["modle", "start_from", "did you mean 'model'"]),
        (["--model.init_args.length_coef", "much"], ["length_coef", "float"]),
        (["--model.init_args.optimizer.schedule", "square"], ["constant", "linear", "cosine"]),
        (["--data.init_args.suite.init_args.step_limt", "9"], ["step_limt", "did you mean 'step_limit'"]),
        (
            ["--model.init_args.acting.pool.step_timeout", "2"],
            ["model.init_args.acting: no key 'pool.step_timeout'; allowed: pool.call_timeout, pool.reset_timeout"],
        ),
        (["--model.init_args.acting.pol.threads", "true"], ["acting: no key 'pol'", "did you mean 'pool'"]),
        (["--trainer.max_epochs", "many"], ["max_epochs"]),
        (["--trainer.max_epohs", "1"], ["trainer.max_steps", "did you mean 'trainer.max_epochs'"]),
        (["--nonsense", "1"], ["nonsense", "seed_everything", "trainer"]),
    ],
)
def test_wrong_keys_and_values_say_so(
    arguments: list[str], expected: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises((SystemExit, ValueError)) as stopped:
        build(_arguments(SFT, *arguments), run=False)
    text = capsys.readouterr().err + str(stopped.value)
    assert all(word in text for word in expected), text


def test_an_unknown_config_names_a_similar_one(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        resolve_configs(["fit", "-c", "glider/alfworld/stf.yaml"])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and "no config 'glider/alfworld/stf.yaml'" in error
    assert "did you mean glider/alfworld/sft.yaml or " in error and "`lit-rft configs` lists them" in error
    assert error.count(".yaml") <= 4
    with pytest.raises(SystemExit):
        resolve_configs(["fit", "-c", "qqq"])
    assert "shipped one; `lit-rft configs` lists them" in capsys.readouterr().err


def test_configs_of_the_users_own_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("base.yaml").write_text("{}")
    assert resolve_configs(["fit", "-c", "base.yaml", "--config=" + SFT]) == [
        "fit", "-c", "base.yaml", f"--config={config_folder() / SFT}",
    ]  # fmt: skip


def _public() -> list[Any]:
    settings = [LoraSettings, PolicySettings, OptimizerSettings, ActingSettings, SamplingSettings]
    settings += [CriticSettings, OnlineSettings, ObjectiveSettings, AnsweringSettings, ServerSettings]
    stages = [HierarchicalSFT, OfflineHierarchicalRL, OnlineHighLevelFinetune]
    stages += [MixedPolicyGRPO, MathReward]
    stages += [datamodules.TrajectoryDataModule, datamodules.OnlineDataModule, datamodules.MathPromptDataModule]
    return settings + stages + [getattr(callbacks, name) for name in callbacks.__all__]


@pytest.mark.parametrize("thing", _public(), ids=lambda thing: thing.__name__)
def test_every_field_has_help(thing: Any) -> None:
    # with what is inherited
    owners = thing.__mro__[:-1] if isinstance(thing, type) else [thing]
    docs = [docstring_parser.parse(inspect.cleandoc(owner.__doc__ or "")) for owner in owners]
    documented = {p.arg_name for doc in docs for p in doc.params if p.description}
    parameters = set(inspect.signature(thing).parameters) - {"self", "args", "kwargs", "stage", "trajectories"}
    assert parameters <= documented


def test_the_paper_scale_configs_have_their_releases_settings(tiny_model_folder: Path, tmp_path: Path) -> None:
    def built(name: str) -> Any:
        model = ("--model.init_args.policy.model", str(tiny_model_folder))
        model = (*model, "--model.init_args.policy.start_from", "null")
        return build(_arguments(name, "--trainer.default_root_dir", str(tmp_path), *model), run=False)

    glider = built("glider/scienceworld/llama3_8b.yaml")
    lora = glider.model.policy_settings.lora
    assert (lora.rank, lora.alpha, lora.dropout) == (16, 32, 0.05)
    assert set(lora.target_modules) == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert glider.model.optimizer_settings.learning_rate == 1e-4
    assert (glider.trainer.max_epochs, glider.datamodule.batch_size, glider.trainer.num_devices) == (5, 32, 8)
    rates = {}
    for stage in ("offline_rl", "online"):
        later = built(f"glider/scienceworld/llama3_8b_{stage}.yaml")
        assert later.model.policy_settings.lora == lora and later.model.agent == glider.model.agent
        assert later.trainer.num_devices == 8 and later.datamodule.suite == glider.datamodule.suite
        critic = later.model.critic_settings
        assert (critic.discount, critic.polyak_rate) == (0.99, 0.2)
        rates[stage] = (later.model.optimizer_settings.learning_rate, critic.learning_rate, later.trainer.max_epochs)
    assert rates == {"offline_rl": (1e-5, 1e-4, 4), "online": (1e-6, 1e-5, 1)}
    assert later.model.online.buffer_episodes * later.model.online.updates_per_episode == 16  # per refill
    assert len({spec.task for spec in glider.datamodule.suite.episodes("train", limit=1)}) == 24
    luffy = built("luffy/openr1_math.yaml")
    assert luffy.model.policy_settings.lora is None and luffy.model.optimizer_settings.learning_rate == 1e-6
    assert (luffy.datamodule.batch_size, luffy.trainer.num_devices) == (128, 8)
    assert luffy.model.verifier is luffy.model.reward  # its `after_thinking` holds in evaluation, too


@pytest.mark.parametrize("arguments", [["configs"], ["--help"], ["configs", "show", "base.yaml"]])
def test_a_reader_that_closes_its_pipe_ends_a_command_without_a_message(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "lit_rft.cli", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1
