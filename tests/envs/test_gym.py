"""Suites of any gymnasium environment: seeds or rows as episodes."""

import dataclasses
import functools
import gzip
import json
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from lit_rft.envs import EpisodeEnv, EpisodeSpec, GymSuite
from lit_rft.envs.base import describe, expert_of, problem_key
from lit_rft.envs.games import GuessNumber, rooms

GUESS = "lit_rft.envs.games.GuessNumber"


def test_seeds_are_episodes_and_splits_share_none() -> None:
    suite = GymSuite(GUESS, step_limit=3, seeds={"train": 4, "dev": 3})
    train, dev = suite.episodes("train"), suite.episodes("dev")
    assert [spec.seed for spec in train] == [0, 1, 2, 3]
    assert not {spec.seed for spec in train} & {spec.seed for spec in dev}
    assert len({spec.id for spec in train + dev}) == len({problem_key(spec) for spec in train + dev}) == 7
    assert (train[1].id, train[1].task, train[1].split) == ("GuessNumber/train/1", "GuessNumber", "train")
    assert {(spec.step_limit, spec.meta["seed"] == spec.seed) for spec in train} == {(3, True)}
    more = GymSuite(GUESS, step_limit=3, seeds={"train": 400, "dev": 3})
    assert more.episodes("dev") == dev  # whatever the size of the training split


def test_splits_whose_names_would_share_seeds_are_refused() -> None:
    with pytest.raises(ValueError, match=r"the splits 'part57' and 'part74' would have the same seeds: rename one"):
        GymSuite(GUESS, seeds={"train": 3, "part57": 3, "part74": 3})


def test_a_seed_is_the_same_problem_again() -> None:
    suite = GymSuite(GUESS, {"highest": 1000})
    env = EpisodeEnv(suite.make_env())
    numbers = []
    for spec in [*suite.episodes("train", limit=3), *suite.episodes("train", limit=3)]:
        env.reset(spec)
        numbers.append(env.env.unwrapped.number)  # type: ignore[attr-defined]
    assert numbers[:3] == numbers[3:] and len(set(numbers)) > 1


def test_limits_and_halves() -> None:
    suite = GymSuite(GUESS, seeds={"train": 20})
    first, second = suite.episodes("train", half="first"), suite.episodes("train", half="second")
    assert [spec.seed for spec in first] == list(range(0, 20, 2)) and second[0].seed == 1
    few = suite.episodes("train", limit=4, half="first", seed=1)
    assert len(few) == 4 and all(spec in first for spec in few)
    assert suite.episodes("train", limit=4, seed=1) != suite.episodes("train", limit=4, seed=2)


def test_rows_of_a_file_become_options(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"task": "easy", "number": 3}\n\n{"task": "hard", "number": 30}\n{"number": 1}\n')
    suite = GymSuite(GUESS, name="mine", rows={"train": str(file), "dev": ""}, seeds={"dev": 2, "test": 2})
    specs = suite.episodes("train")
    assert [(spec.task, spec.options["number"]) for spec in specs] == [("easy", 3), ("hard", 30), ("mine", 1)]
    assert [spec.id for spec in specs] == ["mine/train/easy/0", "mine/train/hard/1", "mine/train/mine/2"]
    assert specs[0].meta == {"options": {"task": "easy", "number": 3}}
    assert suite.episodes("train", tasks=["hard"]) == [specs[1]]
    assert [spec.seed for spec in suite.episodes("dev")] == [1_000_000, 1_000_001]
    with pytest.raises(ValueError, match="unknown task 'hrad'; the split 'train' of 'mine' has easy, hard, mine"):
        suite.episodes("train", tasks=["hrad"])
    message = "'mine' has rows for train, dev, and none for 'test': set rows.test to a file ('' for seeds)"
    with pytest.raises(ValueError, match=re.escape(message)):
        suite.episodes("test")
    with pytest.raises(ValueError, match="has the splits dev, got 'test'"):
        GymSuite(GUESS, seeds={"dev": 2}).episodes("test")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"rows.jsonl: expected rows, one object per episode, got none"),
        ("{}\n[1]", r"rows.jsonl:2: expected an object, got list"),
        ("{", r"rows.jsonl:1: not a line of JSON: .*the file ends in the middle of a line"),
        ('{"a": NaN}', r"rows.jsonl:1: expected values that JSON can hold"),
        ('{"seed": "three"}', r"rows.jsonl:1: seed must be a whole number >= 0, got 'three' \(str\)"),
        ('{"seed": "-3"}', r"rows.jsonl:1: seed must be a whole number >= 0, got '-3' \(str\)"),
        ('{"seed": -1}', r"rows.jsonl:1: seed must be a whole number >= 0, got -1"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "rows.jsonl").write_text(text)
    with pytest.raises(ValueError, match=message):
        GymSuite(GUESS, rows={"train": str(tmp_path / "rows.jsonl")}).episodes("train")


def specs_of(path: Path) -> list[EpisodeSpec]:
    return GymSuite(GUESS, rows={"train": str(path)}).episodes("train")


def test_seeds_in_csv_and_empty_ones(tmp_path: Path) -> None:
    table, lines, plain = tmp_path / "rows.csv", tmp_path / "rows.jsonl", tmp_path / "plain.jsonl"
    table.write_text("x,seed\na,3\nb,\n")
    lines.write_text('{"x": "a", "seed": 3}\n{"x": "b", "seed": ""}\n')
    plain.write_text('{"x": "a", "seed": 3}\n{"x": "b"}\n')
    expected = [spec.seed for spec in GymSuite(GUESS, rows={"train": str(plain)}).episodes("train")]
    for file in (table, lines):
        specs = GymSuite(GUESS, rows={"train": str(file)}).episodes("train")
        assert [spec.seed for spec in specs] == [spec.options["seed"] for spec in specs] == expected


def test_a_rows_seed_is_its_own_or_follows_from_its_content(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"a": 1, "b": 2}\n{"a": 1, "b": 3}\n{"b": 2, "a": 1}\n{"seed": 7}\n{"seed": 0}\n')
    seeds = [spec.seed for spec in specs_of(file)]
    assert seeds[3:] == [7, 0]
    assert seeds[0] == seeds[2] != seeds[1]  # wherever the row stands
    assert all(isinstance(seed, int) and 0 <= seed < 2**31 for seed in seeds)
    env = EpisodeEnv(GuessNumber(highest=10**6))
    numbers = []
    for spec in specs_of(file):
        env.reset(dataclasses.replace(spec, options={}))
        numbers.append(env.env.unwrapped.number)  # type: ignore[attr-defined]
    assert numbers[0] == numbers[2] != numbers[1]


@pytest.mark.parametrize("kind", ["rows.json", "rows.csv", "rows.parquet", "rows.jsonl.gz", "saved"])
def test_rows_come_from_every_kind_of_data_set(kind: str, tmp_path: Path) -> None:
    rows = Dataset.from_list([{"task": "easy", "number": 3}, {"task": "hard", "number": 5}])
    path = tmp_path / kind
    if kind == "saved":
        rows.save_to_disk(str(path))
    elif kind.endswith("csv"):
        rows.to_csv(str(path), index=False)
    elif kind.endswith("parquet"):
        rows.to_parquet(str(path))
    else:
        text = "".join(json.dumps(row) + "\n" for row in rows)
        path.write_bytes(gzip.compress(text.encode()) if kind.endswith("gz") else text.encode())
    expected = [{"task": "easy", "number": 3}, {"task": "hard", "number": 5}]
    if kind.endswith("csv"):  # cells are texts
        expected = [{"task": row["task"], "number": str(row["number"])} for row in expected]
    assert [spec.options for spec in specs_of(path)] == expected
    folder = tmp_path if kind != "saved" else path
    assert [spec.task for spec in specs_of(folder)] == ["easy", "hard"]


def test_a_missing_file_of_rows_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no rows at .*none\.jsonl: no such file"):
        specs_of(tmp_path / "none.jsonl")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"env": "Guess"}, "must be an import path such as my_envs.Guess, got 'Guess'"),
        ({"env": "./my_envs.py"}, r"env must be an import path such as my_envs.Guess, got '\./my_envs\.py'"),
        ({"env": "./my_envs.Guess"}, r"an import path such as my_envs.Guess, got '\./my_envs\.Guess'"),
        ({"env": "./my_envs.py:Guess"}, "an import path such as my_envs.Guess"),
        ({"env": "my_envs.py"}, "an import path such as my_envs.Guess"),
        ({"env": "folder/my_envs.Guess"}, "an import path such as my_envs.Guess"),
        ({"env": "my-envs.Guess"}, "No module named 'my-envs'"),
        ({"env": "nowhere.Guess"}, "No module named 'nowhere'; add its folder to PYTHONPATH"),
        ({"env": "lit_rft.envs.games.Gess"}, "has no attribute 'Gess'"),
        ({"env": "lit_rft.envs.gym._SEEDS_PER_SPLIT"}, r"must be a class or a function, got 1000000 \(int\)"),
        ({"env": GUESS, "step_limit": -1}, "step_limit must be >= 0, got -1"),
        ({"env": GUESS, "seeds": {"train": 0}}, "seeds.train must be in 1..1000000, got 0"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GymSuite(**settings)


def script(spec: EpisodeSpec) -> list[str]:
    return [str(spec.seed)]


def test_a_script_is_the_expert() -> None:
    suite = GymSuite(GUESS, script=script)
    expert = expert_of(suite)
    assert (expert.kind, expert.actions(suite.episodes("train")[0], {})) == ("scripted", ["0"])
    with pytest.raises(ValueError, match="the suite 'GuessNumber' has no expert"):
        expert_of(GymSuite(GUESS))


class Level:
    """A part that is no dataclass."""

    def __init__(self, height: int) -> None:
        self.height, self._cache = height, object()


class Tower:
    """A suite that is no dataclass."""

    def __init__(self, *heights: int) -> None:
        self.levels = [Level(height) for height in heights]


def test_suites_that_are_no_dataclasses_are_described_by_their_public_attributes() -> None:
    described = describe(Tower(1, 2))  # type: ignore[arg-type]
    assert described == describe(Tower(1, 2)) != describe(Tower(1, 3))  # type: ignore[arg-type]
    tower = json.loads(described)
    assert tower["class_path"] == f"{__name__}.Tower"
    assert tower["init_args"]["levels"][1] == {"class_path": f"{__name__}.Level", "init_args": {"height": 2}}


def test_suites_are_described_by_their_settings_and_sent_to_workers() -> None:
    suite = GymSuite(GUESS, step_limit=4)
    assert describe(suite) == describe(GymSuite(GUESS, step_limit=4)) != describe(GymSuite(GUESS, step_limit=5))
    assert describe(GymSuite(GuessNumber)) == describe(GymSuite(GuessNumber)) != describe(GymSuite(GUESS))
    partials = [functools.partial(GuessNumber, highest=highest) for highest in (5, 5, 6)]
    assert describe(GymSuite(partials[0])) == describe(GymSuite(partials[1])) != describe(GymSuite(partials[2]))
    assert isinstance(pickle.loads(pickle.dumps(GymSuite(GuessNumber).make_env))(), GuessNumber)


def test_an_expert_policy_is_the_expert() -> None:
    suite = GymSuite("lit_rft.envs.games.KeyRooms", expert_policy=rooms.expert)
    assert expert_of(suite).kind == "expert"
    with pytest.raises(ValueError, match="expected script or expert_policy, got both"):
        GymSuite(GUESS, script=lambda spec: [], expert_policy=rooms.expert)


def test_seeds_of_a_split_depend_on_its_name_alone() -> None:
    """A suite for testing only must not play the seeds that another one trained on."""

    def seeds(split: str, **sizes: int) -> list[int]:
        suite = GymSuite("lit_rft.envs.games.GuessNumber", seeds=sizes)
        return [spec.seed for spec in suite.episodes(split)]

    assert seeds("test", test=5) == seeds("test", train=9, dev=2, test=5) == seeds("test", test=5, train=9)
    splits = ["train", "dev", "test", "hard", "easy"]
    together = [seed for split in splits for seed in seeds(split, **dict.fromkeys(splits, 4))]
    assert len(set(together)) == 20
