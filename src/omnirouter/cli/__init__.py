"""The `omnirouter` command: picks a command, runs it, and turns every error into one line.

Exit status: 0 done, 1 failed on the way, 2 bad arguments or input. Each command is a typed
function, whose signature and docstring become a parser (`parser`). Only the module of the command
that is run is imported, and what needs torch inside its function, so that help and most errors come
at once.
"""

from __future__ import annotations

import ctypes
import inspect as introspection
import io
import os
import platform
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module

from omnirouter.cli import console
from omnirouter.cli.options import BAD, DONE, FAILED
from omnirouter.config import BadInput, OmnirouterError

COMMANDS = {  # in the order of the overview, with the module that holds the function of that name
    "demo": "train",
    "presets": "models",
    "corpora": "prepare",
    "prepare": "prepare",
    "pseudo-label": "pseudo_label",
    "relabel": "pseudo_label",
    "shar": "prepare",
    "inspect": "inspect",
    "tokenizer": "prepare",
    "train": "train",
    "evaluate": "evaluate",
    "analyze": "report",
    "tables": "evaluate",
    "report": "report",
    "transcribe": "transcribe",
    "align": "align",
    "serve": "serve",
    "models": "models",
    "average": "models",
    "upcycle": "models",
    "export": "models",
    "bench": "bench",
    "plan": "plan",
    "completion": "completion",
}
SPELLINGS = {"analyse": "analyze"}  # accepted, not shown


def load_command(name: str) -> Callable[..., int]:
    """The function behind a command."""
    module = import_module(f"omnirouter.cli.{COMMANDS[name]}")
    function: Callable[..., int] = getattr(module, name.replace("-", "_"))
    return function


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: arguments; those of the process if None.

    Returns:
        The exit status.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    command = arguments[0] if arguments else ""
    command = SPELLINGS.get(command, command)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file's name may be no UTF-8
    try:
        if command in COMMANDS:
            tune_allocator()
            status = _run(command, arguments[1:])
        else:
            status = _without_command(arguments)
        if sys.stdout is not None:  # as it is where it was closed before the start
            sys.stdout.flush()
        return status
    except BrokenPipeError:  # the reader, such as `head`, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except BadInput as error:
        return _fail(command, str(error), BAD)
    except KeyboardInterrupt:
        return _fail(command, "interrupted", FAILED)
    except (OmnirouterError, OSError, MemoryError, RuntimeError, ModuleNotFoundError) as error:
        if (reason := _reason(error)) is None:
            raise
        return _fail(command, reason, FAILED)


def _reason(error: Exception) -> str | None:
    """The reason of a failure in one line; None for a mistake of ours."""
    if isinstance(error, OmnirouterError):
        return str(error)
    if isinstance(error, OSError):
        return _describe(error)
    if isinstance(error, ModuleNotFoundError):
        if (error.name or "omnirouter").startswith("omnirouter"):
            return None
        install = "pip install -c constraints.txt '.' (in the folder of omnirouter's source)"
        return f"needs {error.name}, which is not installed: {install}"
    lacking = ("can't allocate memory", "out of memory")  # torch's words, which says no more
    if isinstance(error, MemoryError) or any(words in str(error) for words in lacking):
        return "out of memory; give it less audio at once (--batch-seconds, where it has that)"
    return None


def _run(command: str, arguments: list[str]) -> int:
    from omnirouter.cli.parser import run

    return run(command, load_command(command), arguments)


def _without_command(arguments: list[str]) -> int:
    """`--help`, `--version`, or something that is no command."""
    match arguments:
        case ["-h" | "--help", *_]:
            print(overview())
            return DONE
        case ["--version" | "-V", *_]:
            import omnirouter

            print(f"omnirouter {omnirouter.__version__}")
            return DONE
        case []:
            print(overview(), file=sys.stderr)
            return BAD
    from omnirouter.cli.spelling import did_you_mean

    near = did_you_mean(arguments[0], COMMANDS) or ";"
    raise BadInput(f"there is no command {arguments[0]}{near} there are {', '.join(COMMANDS)}")


def overview() -> str:
    """The text of `omnirouter --help`."""
    rows = [f"  {name:<14}{summary(name)}" for name in COMMANDS]
    return "\n".join(
        [
            "usage: omnirouter COMMAND ... | --help | --version",
            "",
            "Speech recognition with sparse mixture-of-experts encoders.",
            "",
            "  omnirouter transcribe talk.mp3     audio to text, with the model that comes along",
            "  omnirouter serve                   OpenAI-compatible API and web page",
            "  omnirouter demo                    train and compare three models in ten minutes",
            "",
            "commands:",
            *rows,
            "",
            "omnirouter COMMAND --help shows a command's arguments.",
            "Exit status: 0 done, 1 failed on the way, 2 bad arguments or input.",
        ]
    )


def summary(command: str) -> str:
    """The first line of a command's help."""
    return (introspection.getdoc(load_command(command)) or "").split("\n", 1)[0]


def _fail(command: str, message: str, status: int) -> int:
    line = " ".join(message.split())
    if console.is_verbose():
        traceback.print_exc()
    name = f"omnirouter {command}" if command in COMMANDS else "omnirouter"
    print(f"{name}: {line}", file=sys.stderr)
    return status


def _describe(error: OSError) -> str:
    reason = error.strerror or str(error) or type(error).__name__
    return f"{error.filename}: {reason}" if error.filename else reason


def tune_allocator() -> bool:
    """Let glibc keep large blocks instead of giving them back, and torch ask for huge pages.

    By default every large activation is a fresh mapping whose pages fault in anew at each step,
    which costs training on a CPU some ten percent. The process holds on to its peak memory instead.
    Huge pages (where the system gives them to those who ask) spare the compiled experts a few
    percent more. To be called before torch takes memory.

    Returns:
        True if there is a glibc to tell.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch reads it at its first large block
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return False
    trim_threshold, top_pad, mmap_max = -1, -2, -4  # names of the settings in malloc.h
    mallopt = ctypes.CDLL(None).mallopt
    settings = ((mmap_max, 0), (trim_threshold, 2**31 - 1), (top_pad, 64 * 2**20))
    return all(mallopt(name, value) == 1 for name, value in settings)
