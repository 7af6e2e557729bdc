"""Command line interface: Lightning's commands for the stages.

lit-rft fit -c glider/scienceworld/sft.yaml --trainer.max_epochs 1
"""

import contextlib
import importlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

VERBS = ("fit", "validate", "test", "predict")
# other commands: module and function
COMMANDS = {
    "check-env": ("lit_rft.env_commands", "run_check_env"),
    "collect": ("lit_rft.env_commands", "run_collect"),
    "completion": ("lit_rft.completion_command", "run_completion"),
    "configs": ("lit_rft.configs_command", "run_configs"),
    "doctor": ("lit_rft.doctor_command", "run_doctor"),
    "eto": ("lit_rft.eto", "run_eto"),
    "make-model": ("lit_rft.model_command", "run_make_model"),
    "show": ("lit_rft.show_command", "run_show"),
}

USAGE = """\
lit-rft: reinforcement fine-tuning of language models with PyTorch Lightning

usage: lit-rft VERB [-c CONFIG]... [--ckpt_path last|FILE] [--KEY VALUE]...
       lit-rft check-env ENV [--options JSON]...
       lit-rft collect ENV --expert FUNCTION --out FILE [--KEY VALUE]...
       lit-rft make-model FILE... --out FOLDER [--KEY VALUE]...
       lit-rft eto -c CONFIG [--folder FOLDER] [--iterations N] [--KEY VALUE]...
       lit-rft show RUN... [--out FILE]
       lit-rft configs [list|show|copy ...]
       lit-rft doctor
       lit-rft completion bash|zsh|fish|tcsh|powershell

verbs:
  fit       train a stage; --ckpt_path last resumes an interrupted run
  validate  play the evaluation episodes, or answer the evaluation problems
  test      the same on all of them, with a table by task or benchmark
  predict   play episodes, or answer problems, and write them to files for the next stage

  check-env play episodes of an environment, given by its import path, and report errors; check-env --help
  collect   write episodes to learn from: an expert's, or pairs of observations and actions; collect --help
  make-model
            write a small untrained model for the words of stored episodes; make-model --help
  eto       explore, pair with experts' episodes and train by DPO, several times; eto --help
  show      write curves, rollouts and settings of runs as one HTML file; show --help
  configs   list, show and copy the shipped configs; configs --help
  doctor    check versions, devices, memory, Java and caches
  completion
            write a script that completes verbs and keys in a shell

configs: files of your own, or shipped ones by name; several are read in order, over base.yaml:
{configs}

  lit-rft VERB --help                     keys of the trainer, with their meaning
  lit-rft VERB --model.help CLASS         keys of a stage; --data.help CLASS: of a data module
  lit-rft VERB -c CONFIG --print_config   the full configuration
  lit-rft VERB ... --debug                errors with their traceback (or LIT_RFT_DEBUG=1)
  lit-rft --version
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; usage and version are printed without importing anything heavy."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    if not argv or argv[0] in ("-h", "--help", "help"):
        with _open_pipe():
            print(USAGE.format(configs="\n".join(f"  {name}" for name in shipped_configs())))
        return
    if argv[0] == "--version":
        from lit_rft import __version__

        print(f"lit-rft {__version__}")
        return
    argv = take_debug(argv)
    if argv and argv[0] in COMMANDS:
        run_command(*argv)
        return
    argv = resolve_configs(argv)
    if argv[:1] and argv[0] not in VERBS:
        from lit_rft.error_messages import did_you_mean

        near = did_you_mean(argv[0], (*VERBS, *COMMANDS))
        names = f"one of the verbs {', '.join(VERBS)} or one of the commands {', '.join(COMMANDS)}"
        stop(f"expected {names} first, got {argv[0]!r}{near}")
    from lit_rft.error_messages import one_line_errors

    with one_line_errors():
        from lit_rft.command_line import build

        build(argv, run=True)


def run_command(command: str, *argv: str) -> None:
    """Run a command that builds no stage itself; its module is imported here, no other one."""
    from lit_rft.error_messages import one_line_errors

    with one_line_errors(), _open_pipe():
        module, function = COMMANDS[command]
        getattr(importlib.import_module(module), function)(argv)


@contextlib.contextmanager
def _open_pipe() -> Iterator[None]:
    """Exit without a message when the reader of the output, such as `head`, has closed its pipe."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        import select

        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)  # errors are always reported
        if not poll.poll(0):  # the pipe of a worker process, for example
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes once more
        sys.exit(1)


def stop(message: str) -> NoReturn:
    """Exit with an error message for an invalid command."""
    print(f"lit-rft: error: {message}", file=sys.stderr)
    sys.exit(2)


def take_debug(argv: list[str]) -> list[str]:
    """Move `--debug` from the arguments to LIT_RFT_DEBUG, which the processes of a run inherit."""
    if "--debug" in argv:
        os.environ["LIT_RFT_DEBUG"] = "1"
    return [argument for argument in argv if argument != "--debug"]


def config_folder() -> Path:
    """Return the folder of the shipped configs."""
    import lit_rft.configs

    return Path(next(iter(lit_rft.configs.__path__)))


def shipped_configs() -> list[str]:
    """Return the names of the shipped configs for `-c`."""
    folder = config_folder()
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.yaml"))


def resolve_configs(argv: list[str]) -> list[str]:
    """Replace names of shipped configs after -c and --config by their paths; the user's files take precedence.

    `--KEY null` becomes a separate config: as a plain value it would not undo the setting of an earlier config.
    """
    resolved: list[Any] = []
    previous = ""
    for argument in _split_nulls(argv):
        if argument == "null" and previous.startswith("--"):
            value: Any = None
            for key in reversed(_full_key(resolved.pop().removeprefix("--")).split(".")):
                value = {key: value}
            resolved += ["-c", json.dumps(value)]
            previous = ""
            continue
        name = argument.split("=", 1)[1] if argument.startswith(("-c=", "--config=")) else argument
        if previous in ("-c", "--config") or name is not argument:
            path = _find_config(name)
            argument = argument.replace(name, path) if name is not argument else path
        resolved.append(argument)
        previous = argument
    return resolved


def _full_key(key: str) -> str:
    """Return a key of the stage or the data with `init_args`, which may be left out before an argument's name."""
    part, _, rest = key.partition(".")
    named = rest.partition(".")[0] in ("", "class_path", "init_args", "dict_kwargs")
    return f"{part}.init_args.{rest}" if part in ("model", "data") and not named else key


def _split_nulls(argv: list[str]) -> list[str]:
    parts: list[str] = []
    for argument in argv:
        parts += [argument.removesuffix("=null"), "null"] if argument.endswith("=null") else [argument]
    return parts


def _find_config(name: str) -> str:
    if name.lstrip().startswith("{") or Path(name).is_file():  # settings as text, or a user's file
        return name
    shipped = config_folder() / name
    if shipped.is_file():
        return str(shipped)
    stop(unknown_config(name))


def unknown_config(name: str) -> str:
    """Return the error message for a config that does not exist, with the shipped ones of similar names."""
    from difflib import get_close_matches

    names = shipped_configs()
    same_file = [other for other in names if Path(other).name == Path(name).name]
    near = list(dict.fromkeys([*get_close_matches(name, names, n=3), *same_file]))[:3]
    advice = f"did you mean {' or '.join(near)}? " if near else ""
    return f"there is no config {name!r}, neither a file nor a shipped one; {advice}`lit-rft configs` lists them"


if __name__ == "__main__":
    main()
