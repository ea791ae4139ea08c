"""The command line: subcommands, and how errors leave it."""

import logging
import os
import sys
import warnings
from collections.abc import Iterable
from importlib import import_module
from typing import Any, NoReturn

import typer

from ditquant import distributed
from ditquant.errors import DitQuantError
from ditquant.registry import unknown

COMMANDS = ("inspect", "search", "quantize", "generate", "compare", "bench", "recipes", "env", "demo")
_QUIET = {
    "DIFFUSERS_VERBOSITY": "error",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
    # threads that spin while they wait make a run on a busy machine many times slower
    "OMP_WAIT_POLICY": "PASSIVE",
    "KINETO_LOG_LEVEL": "6",  # torch's profiler tells when it starts and stops
}
# typer may bring a click of its own; its base class is found from the one that it exports
_UsageError: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")


def build(commands: Iterable[str] = COMMANDS) -> typer.Typer:
    """Make the application of some commands; a module is imported only if it is among them, as torch takes seconds."""
    app = typer.Typer(
        help="Quantize diffusion transformers, and see what it costs.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    app.callback()(lambda: None)  # keeps the name of a single command
    for name in commands:
        app.command(name)(getattr(import_module(f"ditquant.cli.{name}"), name))
    return app


def main() -> None:
    """Run a command; a user's mistake is one line on standard error and exit code 2."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    logging.basicConfig(level=logging.ERROR, format="%(message)s")
    logging.getLogger("ditquant").setLevel(logging.WARNING)
    asked = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if asked not in COMMANDS and not asked.startswith("-"):
        fail(f"{unknown('command', asked, COMMANDS)} See ditquant --help.")
    with warnings.catch_warnings():
        if not sys.warnoptions:
            warnings.simplefilter("ignore")  # those of the libraries, which a user of the commands cannot mend
        with distributed.ranks():
            _run([asked] if asked in COMMANDS else COMMANDS)


def _run(commands: Iterable[str]) -> None:
    try:
        result = build(commands)(prog_name="ditquant", standalone_mode=False)
    except DitQuantError as error:
        fail(str(error))
    except _UsageError as error:
        context = getattr(error, "ctx", None)
        if not error.format_message():  # no arguments at all: the help was printed
            sys.exit(error.exit_code)
        fail(f"{error.format_message().rstrip('.')}. See {context.command_path if context else 'ditquant'} --help.")
    except (KeyboardInterrupt, typer.Abort):
        fail("interrupted, nothing was saved.", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left to flush has no reader
        sys.exit(1)
    except MemoryError:
        fail_of_memory()
    except OSError as error:
        fail(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}")
    except RuntimeError as error:
        if not any(words in str(error) for words in ("out of memory", "allocate memory")):
            raise
        fail_of_memory()
    else:
        if result == 130:
            fail("interrupted, nothing was saved.", 130)
        sys.exit(result)


def fail(message: str, code: int = 2) -> NoReturn:
    """Print one line on standard error and exit."""
    distributed.say_error("error: " + " ".join(message.split()))
    sys.exit(code)


def fail_of_memory() -> NoReturn:
    """Say what helps against too little memory."""
    fail("out of memory. Use a smaller dtype (--dtype bfloat16), a smaller batch or a machine with more memory.")
