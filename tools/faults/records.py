"""Fuzzed records and files: refused with file and field, or of the same meaning; nonsense is never accepted."""

from __future__ import annotations

import copy
import functools
import json
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from faults.trial import Tally, Trial
from lit_rft._records import RecordError
from lit_rft.episodes import read_episodes, write_episodes
from lit_rft.episodes.demonstrations import read_demonstrations
from lit_rft.problems import read_problems
from lit_rft.records import Conversation, GroupRecord, RolloutRecord, Turn, read_rollouts
from lit_rft.records.files import SCHEMA
from lit_rft.testing import make_episode

_HEAD = {"rollouts": SCHEMA, "share": 1.0}
# values that may stand in the place of any other; of numbers that JSON's grammar allows, 1e999 is read as infinite
_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 1.5, 10**30, "", "x", " ", "1", [], {}, [1], ["x"], {"x": 1}, [[]], math.nan, math.inf,
    -math.inf, "\ud800", "NaN", "1e999",
)  # fmt: skip
_NUMBER = {"integer", "number"}


@dataclass(frozen=True)
class Target:
    """A format of files.

    Attributes:
        read: reads a file.
        records: makes valid records.
        name: of the file.
        free: fields in which anything of JSON's is allowed.
        also: field -> further kinds of values that it takes; where null is one, so are an empty list and object.
        surrogates: whether texts may hold halves of surrogate pairs.
        any_number: whether numbers in the free fields may be infinite or NaN.
        first: a line before the records.
    """

    read: Callable[[Path], Any]
    records: Callable[[random.Random], list[Any]]
    name: str
    free: tuple[str, ...] = ()
    also: dict[str, set[str]] | None = None
    surrogates: bool = False
    first: str = ""
    any_number: bool = False


def episodes(rng: random.Random) -> list[Any]:
    """Make the records of two episodes."""
    return [make_episode(rng.randrange(100), rng.randint(1, 4)).to_dict() | {"id": name} for name in ("a", "b")]


def problems(rng: random.Random) -> list[Any]:
    """Make rows of problems with traces and their log-probabilities."""
    prompt = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1 + 1?"}]
    row = {"id": "a", "prompt": prompt, "ground_truth": "2", "traces": ["two", "2"], "source": "sums", "repeats": 2,
           "trace_log_probs": [[-0.5, -1.0], [-2.0]], "level": {"grade": 1}}  # fmt: skip
    return [row, {"id": "b", "prompt": "2 + 2?", "ground_truth": "4"}]


def rollouts(rng: random.Random) -> list[Any]:
    """Make a group of a completion and an episode."""
    turns = [Turn("Question?", ["an", " answer"]), Turn("More?", ["no"])]
    numbers = [-0.5, -1.0, -0.25]
    conversation = Conversation("completion", turns, numbers, numbers, numbers, [1.0, 0.5, 0.5], [0.1, 0.2, 0.3], [1])
    sampled = RolloutRecord("p1", "an answer", False, True, 1.0, {"math": 1.0}, 0.5, [conversation], "4")
    expert = RolloutRecord("e1", "look", True, False, 0.0, episode=make_episode(0, 2))
    return [GroupRecord("train", 3 * n, n, 0, 0, "chain_sum", [sampled, expert]).to_dict() for n in (1, 2)]


def demonstrations(rng: random.Random) -> list[Any]:
    """Make lines of one demonstrated episode."""
    line = {"observation": "a door", "action": "open door", "episode": "a", "task": "leave"}
    return [line | {"task_description": "Leave the room."}, line | {"observation": "a way", "action": "go"}]


_ANY = {"text", "integer", "number", "true or false", "list", "object", "null"}
_PROBLEMS = {
    "id": _NUMBER | {"null"}, "ground_truth": _NUMBER | {"list"}, "source": _ANY | {"no number"},
    "traces": {"text", "null"}, "traces[]": _NUMBER | {"list"}, "repeats": {"null", "text"},
    "trace_log_probs": {"null", "text"},
    # a system message without content is left out; other columns are the reward function's, where NaN may be no value
    "prompt": {"text"}, "prompt[].content": {"list", "null"}, "level": _ANY | {"no number"},
}  # fmt: skip
_FREE = ("source", "meta", "extra")
TARGETS = {
    "episodes": Target(read_episodes, episodes, "episodes.jsonl", _FREE),
    "problems": Target(read_problems, problems, "problems.jsonl", ("level",), _PROBLEMS, any_number=True),
    "rollouts": Target(read_rollouts, rollouts, "train.jsonl", (*_FREE, "reward_parts"),
                       {"rollouts[].episode": {"null"}}, True, json.dumps(_HEAD)),
    "demonstrations": Target(read_demonstrations, demonstrations, "pairs.jsonl"),
}  # fmt: skip


def trials(shared: Path, seed: int, short: bool) -> Iterator[Trial]:
    """Yield mutated fields and mutated bytes of each format."""
    for name in TARGETS:
        number = 150 if short else 2000
        yield Trial(
            "records", f"{number} fields of {name}", functools.partial(fuzz_fields, name, number, f"{seed}/{name}")
        )
        number = 50 if short else 500
        yield Trial(
            "records",
            f"{number} damaged files of {name}",
            functools.partial(fuzz_bytes, name, number, f"{seed}/{name}"),
        )
    if not short:
        yield Trial("records", "500 damaged files of Parquet", functools.partial(fuzz_parquet, 500, str(seed)))


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every value within a value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from places(item, (*path, key))


def kind_of(value: Any) -> str:
    """Return the kind of a JSON value."""
    if isinstance(value, bool) or value is None:
        return "null" if value is None else "true or false"
    if isinstance(value, int):
        return "integer"
    if isinstance(value, float):
        return "number" if math.isfinite(value) else "no number"
    return {str: "text", list: "list", dict: "object"}[type(value)]


def pattern(path: tuple[Any, ...]) -> str:
    """Return a path with list indices left out: ``prompt[].content``."""
    return "".join("[]" if isinstance(key, int) else f".{key}" for key in path).removeprefix(".")


def is_free(target: Target, path: tuple[Any, ...]) -> bool:
    """Return whether a value is within a field in which anything of JSON's is allowed."""
    return any(isinstance(key, str) and key in target.free for key in path[:-1])


def is_nonsense(target: Target, path: tuple[Any, ...], old: Any, new: Any) -> bool:
    """Return whether a value cannot stand in the place of another one."""
    if is_free(target, path):
        return kind_of(new) == "no number" and not target.any_number
    kinds = {kind_of(old)} | (target.also or {}).get(pattern(path), set())
    if "number" in kinds:
        kinds = kinds | {"integer"}
    if "null" in kinds and new in ([], {}):  # as good as nothing
        return False
    if isinstance(new, str) and "\ud800" in new and not target.surrogates:
        return True
    return kind_of(new) not in kinds


def fuzz_fields(name: str, number: int, seed: str, folder: Path) -> Tally:
    """Replace, remove and add fields of valid records, every field in turn."""
    rng, target = random.Random(seed), TARGETS[name]
    faults: list[str] = []
    file = folder / target.name
    for count in range(number):
        records = target.records(rng)
        record = rng.choice(records)
        paths = list(places(record))
        path = paths[count % len(paths)]
        holder = functools.reduce(lambda value, key: value[key], path[:-1], record)
        old, nonsense = holder[path[-1]], False
        action = rng.choice(["replace", "replace", "replace", "add"])
        if action == "replace":
            new = copy.deepcopy(rng.choice(_VALUES))
            nonsense = is_nonsense(target, path, old, new)
            holder[path[-1]] = new
        elif isinstance(holder, dict):
            holder["unheard_of"] = new = 1
            nonsense = name != "problems" and not is_free(target, path)
        file.write_text(_text(target, records))
        where = f"{pattern(path)} = {new!r:.40} ({action})"
        faults += _fault(target, file, where, nonsense)
    return _tally(number, faults)


def _text(target: Target, records: list[Any]) -> str:
    lines = [target.first] if target.first else []
    return "\n".join([*lines, *(json.dumps(record) for record in records), ""])


def _tally(number: int, faults: list[str]) -> Tally:
    return Tally(number, number - len(faults), "; ".join(sorted(set(faults))[:5])[:900])


def _fault(target: Target, file: Path, where: str, nonsense: bool) -> list[str]:
    try:
        target.read(file)
    except RecordError as error:
        unclear = str(file) not in str(error) or not (error.field or "not a line of JSON" in str(error))
        return [f"{where}: without file or field: {error!s:.120}"] if unclear else []
    except Exception as error:
        clear = isinstance(error, ValueError | OSError) and str(file) in str(error) and type(error) is not UnicodeError
        return [] if clear else [f"{where}: {type(error).__name__}: {error!s:.80}"]
    return [f"{where} is accepted"] if nonsense else []


def damaged(rng: random.Random, data: bytes) -> bytes:
    """Return bytes that are cut, flipped, doubled, inserted, or moved."""
    place, other = sorted(rng.randrange(len(data)) for _ in range(2))
    match rng.randrange(6):
        case 0:
            return data[:place]
        case 1:
            return data[:place] + bytes([data[place] ^ (1 << rng.randrange(8))]) + data[place + 1 :]
        case 2:
            return data[:other] + data[place:]
        case 3:
            return data[:place] + rng.randbytes(rng.randint(1, 9)) + data[place:]
        case 4:
            return data[place:other] + data
        case _:
            return (
                data[:place]
                + rng.choice([b"\n", b"\x00", b"\xef\xbb\xbf", b"NaN", b"[" * 5000, b"1e999", b"}"])
                + data[place:]
            )


def fuzz_bytes(name: str, number: int, seed: str, folder: Path) -> Tally:
    """Damage the bytes of files: they are read, or refused with the file's name."""
    rng, target = random.Random(seed), TARGETS[name]
    faults: list[str] = []
    for _ in range(number):
        file = folder / target.name
        file.write_bytes(damaged(rng, _text(target, target.records(rng)).encode()))
        faults += _file_fault(target, file)
    return _tally(number, faults)


def fuzz_parquet(number: int, seed: str, folder: Path) -> Tally:
    """Damage Parquet files of episodes."""
    rng, file, faults = random.Random(seed), folder / "episodes.parquet", []
    write_episodes(file, [make_episode(n, 3) for n in range(3)])
    undamaged = file.read_bytes()
    for _ in range(number):
        file.write_bytes(damaged(rng, undamaged))
        faults += _file_fault(TARGETS["episodes"], file)
    return _tally(number, faults)


def _file_fault(target: Target, file: Path) -> list[str]:
    try:
        target.read(file)
    except (RecordError, ValueError, OSError) as error:
        return [] if str(file) in str(error) else [f"without file: {type(error).__name__}: {error!s:.120}"]
    except Exception as error:
        return [f"{type(error).__name__}: {error!s:.100}"]
    return []
