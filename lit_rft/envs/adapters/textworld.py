"""Games of TextWorld (Côté et al., 2018, arXiv 1806.11532), from game files."""

from __future__ import annotations

import glob
import json
import re
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym

from lit_rft.envs.base import EpisodeSpec, Expert, Half, ScriptedExpert, check_split, choose, choose_tasks

_SUFFIXES = (".z8", ".json", ".ulx")
_PROMPT = re.compile(r"\n>[^\n]*\Z")  # the interpreter's prompt, and the status line on it
_END = re.compile(r"\*\*\* (?:The End|You lost!) \*\*\*.*", re.DOTALL)
_SEVERAL = re.compile(r"[.;]|\bthen\b")  # the game would split them into commands, and so evade the step limit
# Verbs of every game's parser beside those in its file. Others are not passed on: "save" and "transcript" write files,
# "restart" and "quit" change the game behind its tracker.
_VERBS = frozenset(
    ["take", "get", "pick", "carry", "hold", "drop", "throw", "discard", "put", "insert", "eat", "examine", "x",
     "check", "watch", "look", "l", "inventory", "inv", "i", "go", "walk", "run", "open", "close", "shut", "lock",
     "unlock", "north", "n", "south", "s", "east", "e", "west", "w"]
)  # fmt: skip


@dataclass(frozen=True)
class TextWorldSuite:
    """Game files made with TextWorld; a `TaskSuite`. Each file is one episode.

    A game is a ``.z8`` file with the ``.json`` file of the same name beside it, as TextWorld writes them, or the
    ``.json`` file alone, which is compiled in the worker at its first episode (about 2 s). A ``.ulx`` file, which
    TextWorld 1.7 cannot run, is played from the ``.json`` file beside it.

    Attributes:
        games: a folder whose subfolders are the splits; or split -> a file, a folder (with its subfolders) or a pattern
            (``games/*.z8``), or a list of these. The subfolders within a split are its tasks.
        name: for reports; the task of games that are in no subfolder.
        step_limit: actions per episode.

    Raises:
        ValueError: `step_limit` is below 1.
    """

    games: str | Mapping[str, str | list[str]]
    name: str = "textworld"
    step_limit: int = 50

    def __post_init__(self) -> None:
        if self.step_limit < 1:
            raise ValueError(f"step_limit must be at least 1, got {self.step_limit}")

    @property
    def expert(self) -> Expert:
        """An expert that follows the walkthrough in a game's file."""
        return ScriptedExpert(walkthrough, kind="walkthrough")

    def make_env(self) -> gym.Env[str, str]:
        """Make an environment for game files."""
        return TextWorldEnv()

    def episodes(
        self,
        split: str,
        *,
        tasks: Sequence[str] | None = None,
        limit: int | None = None,
        half: Half | None = None,
        seed: int = 0,
    ) -> list[EpisodeSpec]:
        """Return the games of a split, task by task, sorted by path; see `TaskSuite.episodes`.

        Raises:
            ValueError: unknown split or task, a limit below 1, no games, or a file that TextWorld cannot play.
        """
        tasks_of: dict[str, str] = {}  # each game once, also where two sources have it
        for source in self._sources(split):
            tasks_of = {path: task or self.name for path, task in _find_games(source).items()} | tasks_of
        games: dict[str, list[str]] = {}
        for path in sorted(tasks_of):
            games.setdefault(tasks_of[path], []).append(path)
        return [
            self._episode(task, path, split)
            for task in choose_tasks(sorted(games), tasks, f"the split {split!r} of {self.name!r}")
            for path in choose(games[task], limit, half, f"{seed}/{task}/{split}")
        ]

    def _sources(self, split: str) -> list[str]:
        splits = self.games
        if isinstance(splits, str):
            folders = sorted(Path(splits).expanduser().glob("*"))
            splits = {path.name: str(path) for path in folders if path.is_dir()}
        check_split(split, splits, repr(self.name))
        sources = splits[split]
        return [sources] if isinstance(sources, str) else list(sources)

    def _episode(self, task: str, path: str, split: str) -> EpisodeSpec:
        name = Path(path).with_suffix("").as_posix().lstrip("/")
        options = {"game": str(Path(path).absolute())}
        return EpisodeSpec(f"{self.name}/{split}/{name}", task, split, 0, options, self.step_limit, {"game": path})


class TextWorldEnv(gym.Env[str, str]):
    """Plays game files; rewards and scores are TextWorld's points divided by the maximum of the game.

    An action is one command of the game. Several at once (``go east. take key``), and commands of the interpreter, such
    as ``save`` and ``restart``, do nothing and count as invalid.

    Raises:
        ImportError: textworld is not installed (lit-rft[textworld]).
    """

    def __init__(self) -> None:
        try:
            import textworld
            import textworld.version
        except ImportError as error:
            raise ImportError("this environment needs TextWorld: pip install 'lit-rft[textworld]'") from error
        self._textworld: Any = textworld
        self._version: str = textworld.version.__version__
        self._game: Any = None  # TextWorld's environment of the last game
        self._path, self._running = "", False
        self._compiled: dict[str, tempfile.TemporaryDirectory[str]] = {}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Start the game ``options["game"]``.

        Raises:
            ValueError: there is no such file, TextWorld cannot play it, or this is not the main thread of its process.
        """
        super().reset(seed=seed)
        path = (options or {}).get("game")
        if threading.current_thread() is not threading.main_thread():  # its parsers share state
            raise ValueError("TextWorld cannot run in threads: set acting.pool.threads to false")
        if not isinstance(path, str):
            raise ValueError(f"expected the path of a game file as options['game'], got {path!r}")
        self._running = False
        self._load(path)
        if seed is not None:
            self._game.seed(seed)
        self._state = self._game.reset()
        self._score, self._moves, self._running = 0.0, self._state["moves"], True
        self._verbs = _VERBS.union(self._state["verbs"])
        text, objective = self._state["feedback"], " ".join(self._state["objective"].split())
        info = {
            "env": "textworld",
            "env_version": self._version,
            **({"task_description": objective} if objective else {}),
            "admissible": self._state["admissible_commands"],
        }
        return _clean(text[max(text.find("-= "), 0) :]), info  # without title and objective

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Execute a command.

        Raises:
            RuntimeError: no episode is in progress, or the game has crashed.
        """
        if not self._running:
            raise RuntimeError("no episode is being played: call reset first")
        command = self._command(action)
        if command:
            self._state, _, _ = self._game.step(command)
        text = self._state["feedback"] if command else "That is not a command of this game."
        if "Emulator halted" in text:
            raise RuntimeError(f"{self._path}: the game has crashed at {command!r}")
        valid, self._moves = self._state["moves"] > self._moves, self._state["moves"]
        won, lost = bool(self._state["won"]), bool(self._state["lost"])
        before, self._score = self._score, self._points(won)
        self._running = not (won or lost)
        info = {
            "score": self._score,
            "success": won,
            "valid": valid,
            "admissible": self._state["admissible_commands"] if self._running else [],
        }
        return _clean(text), self._score - before, won or lost, False, info

    def close(self) -> None:
        """Close the game, and remove what was compiled."""
        if self._game is not None:
            self._game.close()
            self._game, self._path = None, ""
        for folder in self._compiled.values():
            folder.cleanup()
        self._compiled.clear()

    def _load(self, path: str) -> None:
        if path == self._path:
            return
        if self._game is not None:
            self._game.close()
            self._game, self._path = None, ""
        file = playable_file(Path(path))
        wanted = ("admissible_commands", "score", "max_score", "moves", "won", "lost", "objective", "verbs")
        infos = self._textworld.EnvInfos(**dict.fromkeys(wanted, True))
        try:
            self._game = self._textworld.start(str(self._compile(file) if file.suffix == ".json" else file), infos)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{file}: not a game of TextWorld ({type(error).__name__}: {error})") from error
        self._path = path

    def _compile(self, file: Path) -> Path:
        """Compile the game of a ``.json`` file into a temporary folder, once."""
        if str(file) not in self._compiled:
            options = self._textworld.GameOptions()
            folder = tempfile.TemporaryDirectory(prefix="lit-rft-textworld-")
            options.path = str(Path(folder.name) / "game.z8")
            self._textworld.generator.compile_game(self._textworld.Game.load(str(file)), options)
            self._compiled[str(file)] = folder
        return Path(self._compiled[str(file)].name) / "game.z8"

    def _command(self, action: str) -> str:
        """Return an action as one command of the game, or nothing."""
        command = " ".join(action.split()).rstrip(".!").lower()
        printable = command.isascii() and command.isprintable()
        allowed = command.partition(" ")[0] in self._verbs and not _SEVERAL.search(command)
        return command if printable and allowed else ""

    def _points(self, won: bool) -> float:
        maximum = self._state["max_score"]
        return self._state["score"] / maximum if maximum else float(won)


def playable_file(path: Path) -> Path:
    """Return the file with which a game is played: the ``.z8`` file, else the ``.json`` file.

    Raises:
        ValueError: the game has no ``.json`` file, which holds its goal and its score.
    """
    information, compiled = (path.with_name(path.stem + suffix) for suffix in (".json", ".z8"))
    if path.suffix not in _SUFFIXES:
        raise ValueError(f"expected a game file of TextWorld ({', '.join(_SUFFIXES)}), got {path}")
    if not information.is_file():
        reason = "; TextWorld 1.7 does not run .ulx files themselves" if path.suffix == ".ulx" else ""
        raise ValueError(
            f"{path}: expected {information.name} beside it, which holds the game's goal and score{reason}. Games that "
            "were not made with TextWorld have none, and cannot be played"
        )
    return compiled if compiled.is_file() else information


def walkthrough(spec: EpisodeSpec) -> list[str]:
    """Return the commands that win a game, by its file.

    Raises:
        ValueError: the file has none.
    """
    path = Path(spec.options["game"])
    path = path.with_name(f"{path.stem}.json")
    try:
        commands = json.loads(path.read_text(encoding="utf-8"))["metadata"]["walkthrough"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: the game has no walkthrough ({type(error).__name__}: {error})") from error
    if not isinstance(commands, list) or not commands or not all(isinstance(command, str) for command in commands):
        raise ValueError(f"{path}: expected a list of commands as metadata.walkthrough, got {commands!r}")
    return commands


def _find_games(source: str) -> dict[str, str]:
    """Return the paths of a source's games, with their tasks: the subfolders, empty where they are in none."""
    root = Path(source).expanduser()
    if root.is_dir():
        files = [path for path in root.rglob("*") if path.suffix in _SUFFIXES]
    elif root.exists() or not glob.has_magic(source):
        files = [root]
    else:
        files = [Path(name) for name in glob.glob(str(root), recursive=True)]
    if not files:
        raise ValueError(f"no games at {source}: expected files of TextWorld ({', '.join(_SUFFIXES)})")
    games = {playable_file(path) for path in files}
    parents = {path: path.parent.relative_to(root).as_posix() if root.is_dir() else "." for path in games}
    return {str(path): "" if parent == "." else parent for path, parent in parents.items()}


def _clean(text: str) -> str:
    """Remove prompt, status line, the menu after the end, and empty lines beyond one."""
    return re.sub(r"\n{3,}", "\n\n", _END.sub("", _PROMPT.sub("", text))).strip()
