"""What an environment raises reaches its author with the call, the type and the line."""

from __future__ import annotations

import functools
import inspect
import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import bad_envs
import pytest
from fake_envs import FakeEnv
from playing import QUICK

from lit_rft.envs import EnvPool, EpisodeSpec, GymSuite
from lit_rft.envs.games import GuessNumber
from lit_rft.envs.raised import describe_error, name_of
from lit_rft.envs.worker import with_text
from lit_rft.error_messages import is_meant_for_users, one_line


def line_of(function: Any, text: str) -> str:
    """Return the place of a line of a function, by its text."""
    lines, first = inspect.getsourcelines(function)
    return f"{inspect.getsourcefile(function)}:{first + next(i for i, line in enumerate(lines) if text in line)}"


def raised(make_env: Callable[[], Any], threads: bool = True, **options: Any) -> Exception:
    """Return the exception that reaches the consumer of a pool."""
    with EnvPool(make_env, 1, replace(QUICK, call_timeout=60.0, threads=threads)) as pool:
        pool.submit(EpisodeSpec("a", options=options))
        try:
            pool.wait()
        except Exception as error:
            return error
    raise AssertionError("nothing was raised")


@pytest.mark.parametrize("threads", [True, False], ids=["thread", "process"])
@pytest.mark.parametrize("env", ["bad_envs.NoSize", bad_envs.NoSize], ids=["path", "class"])
def test_a_bug_in_a_constructor(env: Any, threads: bool) -> None:
    error = raised(GymSuite(env).make_env if isinstance(env, str) else env, threads)
    place = line_of(bad_envs.NoSize, '["SIZE"]')
    assert str(error) == f"making the environment NoSize raised KeyError: 'SIZE' ({place})"
    assert isinstance(error, LookupError)  # a KeyError would put its message in quotes
    assert is_meant_for_users(error) and one_line(error) == str(error)
    assert "Traceback (most recent call last)" in str(error.__cause__)  # for --debug


def test_a_value_error_of_reset_is_not_bad_options_alone() -> None:
    """The line is that of the author, who did not write `json.loads`."""
    error = raised(bad_envs.NoLevel)
    message = "Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"
    place = line_of(bad_envs.NoLevel, "json.loads")
    assert str(error) == f"NoLevel.reset raised JSONDecodeError: {message} ({place})"
    assert type(error) is ValueError  # JSONDecodeError needs more than a message


def test_options_that_are_refused() -> None:
    """In the words of the library as they are, in those of others with the place."""
    assert str(raised(GuessNumber, number=99)).startswith("number must be ")
    assert str(raised(FakeEnv, do="bad")).startswith("FakeEnv.reset raised ValueError: the fake refuses (")


@pytest.mark.parametrize(
    ("env", "arguments", "message"),
    [
        ("NoSize", {"size": 3}, r"NoSize\(\).* does not take env_args \{'size': 3\}: got an unexpected .* 'size'"),
        ("NoEnv", {}, r"expected a gymnasium\.Env, got NoEnv: derive it from gymnasium\.Env"),
    ],
)
def test_an_environment_that_cannot_be_made(env: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        raise raised(GymSuite(f"bad_envs.{env}", arguments).make_env)


def test_wrong_arguments_of_a_class_come_with_the_place_of_the_class() -> None:
    error = raised(functools.partial(bad_envs.NoSize, size=3))  # type: ignore[call-arg]
    place = line_of(bad_envs.NoSize, "class NoSize")
    assert f"unexpected keyword argument 'size' ({place}): the keyword arguments (env_args)" in str(error)


def test_a_reset_of_the_wrong_signature(caplog: pytest.LogCaptureFixture) -> None:
    """No line of it is reached, and the library's own would be no help."""
    with EnvPool(bad_envs.OldReset, 1, replace(QUICK, threads=True, max_attempts=1)) as pool:
        pool.submit(EpisodeSpec("a"))
        (event,) = pool.wait()
    assert event.payload.startswith("OldReset.reset raised TypeError: OldReset.reset() got an unexpected keyword")
    assert event.payload.endswith(f"({line_of(bad_envs.OldReset.reset, 'def')}): reset must take seed and options")
    assert event.payload in caplog.text


def test_an_error_of_step_has_its_place() -> None:
    with EnvPool(functools.partial(bad_envs.Plain, "raise"), 1, replace(QUICK, threads=True, max_attempts=1)) as pool:
        pool.submit(EpisodeSpec("a"))
        pool.wait()
        pool.step(0, "go")
        (event,) = pool.wait()
    place = line_of(bad_envs.Plain, 'raise KeyError("lost")')
    assert event.payload == f"Plain.step raised KeyError: 'lost' ({place})"


def test_types_that_cannot_have_another_message() -> None:
    for error, kind in (
        (bad_envs.Detailed(3, "a.txt"), LookupError),
        (KeyError("a"), LookupError),
        (FileNotFoundError(2, "no such file", "a.txt"), FileNotFoundError),
        (UnicodeDecodeError("utf-8", b"a", 0, 1, "bad"), UnicodeError),
        (Exception("a"), RuntimeError),
    ):
        copy = pickle.loads(pickle.dumps(with_text(error, "another")))
        assert type(copy) is kind and str(copy) == "another"


def test_names_and_messages_without_a_traceback() -> None:
    assert describe_error(KeyError("two\nlines"), "step") == r"KeyError: 'two\nlines'"
    assert describe_error(RuntimeError("two\nlines"), "step") == "RuntimeError: two lines"
    assert describe_error(RuntimeError(), "step") == "RuntimeError"
    assert name_of(GymSuite("bad_envs.Plain", name="mine").make_env) == "mine"
    assert name_of(functools.partial(bad_envs.Plain, fault="none")) == "Plain"
