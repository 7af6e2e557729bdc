"""The recipes on the built-in games: medium-quality episodes, an untrained model, SFT, then GRPO."""

import json
from pathlib import Path

import pytest
from command import flags, main

from lit_rft.models import load_tokenizer

GAMES = {
    "guess_number": ("GuessNumber", "guess", 3),
    "key_rooms": ("KeyRooms", "rooms", 20),
    "price_lookup": ("PriceLookup", "prices", 4),
}


@pytest.mark.parametrize("name", GAMES)
def test_sft_on_medium_play_then_grpo(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the documented commands and default paths, with fewer episodes."""
    monkeypatch.chdir(tmp_path)
    game, module, step_limit = GAMES[name]
    path, file, model = f"lit_rft.envs.games.{game}", f"data/games/{name}.jsonl", f"data/games/{name}"
    expert = f"lit_rft.envs.games.{module}.expert"
    Path("data/games").mkdir(parents=True)
    collected = {"random": 0.6, "episodes": 8, "step_limit": step_limit, "workers": 1}
    main(["collect", path, "--expert", expert, "--out", file, *flags(**collected)])
    main(["make-model", file, "--out", model, *flags(hidden_size=16, layers=1, heads=2)])
    short = flags(trainer__max_steps=1, trainer__limit_val_batches=0)
    main(["fit", "-c", f"grpo/{name}_sft.yaml", *short])
    groups = flags(data__init_args__batch_size=2, model__init_args__objective__group_size=2)
    main(["fit", "-c", f"grpo/{name}.yaml", *short, *groups])
    main(["test", "-c", f"grpo/{name}.yaml", "--ckpt_path", "last", *flags(data__init_args__eval_episodes_per_task=2)])
    scores = json.loads(Path(f"runs/grpo/{name}/scores.json").read_text())
    assert set(scores) == {game, "mean"} and scores["mean"]["env_errors"] == 0


@pytest.mark.slow
def test_gliders_three_stages_on_errands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the documented commands and default paths, with fewer episodes, hierarchical and flat."""
    monkeypatch.chdir(tmp_path)
    path, file, model = "lit_rft.envs.games.Errands", "data/games/errands.jsonl", "data/games/errands"
    Path("data/games").mkdir(parents=True)
    collected = {"expert": "lit_rft.envs.games.errands.expert", "random": 0.3, "episodes": 8, "workers": 1}
    main(["collect", path, "--out", file, "--step_limit", "40", *flags(**collected)])
    main(["make-model", file, "--out", model, *flags(hidden_size=16, layers=1, heads=2)])
    short = flags(trainer__max_steps=1, trainer__limit_val_batches=0)
    online = flags(
        data__init_args__rounds=1,
        data__init_args__episodes_per_round=2,
        data__init_args__suite__init_args__step_limit=2,
    )
    for overlay in ("", "flat_"):
        for stage in ("sft", "offline_rl", "online"):
            configs = [f"glider/games/{stage}.yaml"] + ([f"glider/games/{overlay}{stage}.yaml"] if overlay else [])
            arguments = [part for config in configs for part in ("-c", config)]
            main(["fit", *arguments, *short, *(online if stage == "online" else [])])
            assert Path(f"runs/glider/games/{overlay}{stage}/adapter").is_dir()


def test_the_words_of_a_hierarchy_are_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The flags of a hierarchical agent's actions, where the episodes have subgoals."""
    monkeypatch.chdir(tmp_path)
    arguments = ["lit_rft.envs.games.KeyRooms", "--expert", "lit_rft.envs.games.rooms.expert", "--episodes", "3"]
    main(["collect", *arguments, "--out", "rooms.jsonl", "--workers", "1"])
    main(["make-model", "rooms.jsonl", "--out", "model", *flags(hidden_size=16, layers=1, heads=2)])
    tokenizer = load_tokenizer("model")
    assert tokenizer.tokenize("east\ndone") == ["east", "Ċ", "done"]


def test_an_invalid_size_is_one_line(tmp_path: Path) -> None:
    file = str(tmp_path / "episodes.jsonl")
    main(["collect", "--pairs", _pairs(tmp_path), "--out", file])
    with pytest.raises(ValueError, match="make-model: vocab_size must be at least 261"):
        main(["make-model", file, "--out", str(tmp_path / "model"), "--vocab_size", "3"])
    with pytest.raises(ValueError, match="make-model: the following arguments are required: --out"):
        main(["make-model", file])


def test_a_model_of_no_words_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(ValueError, match=r"make-model: .*empty\.jsonl: expected episodes with .* got none"):
        main(["make-model", str(tmp_path / "empty.jsonl"), "--out", str(tmp_path / "model")])
    assert not (tmp_path / "model").exists()


def _pairs(folder: Path) -> str:
    path = folder / "pairs.jsonl"
    path.write_text('{"observation": "1 + 1", "action": "2"}\n')
    return str(path)
