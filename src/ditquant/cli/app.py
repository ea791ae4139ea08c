"""The command line: subcommands, and how errors leave it."""

import logging
import sys

import typer

from ditquant.cli.compare import compare
from ditquant.cli.demo import demo
from ditquant.cli.env import env
from ditquant.cli.generate import generate
from ditquant.cli.inspect import inspect
from ditquant.cli.quantize import quantize
from ditquant.cli.recipes import recipes
from ditquant.errors import DitQuantError

app = typer.Typer(
    help="Quantize diffusion transformers, and see what it costs.", no_args_is_help=True, add_completion=False
)
for command in (inspect, quantize, generate, compare, recipes, env, demo):
    app.command()(command)


def main() -> None:
    """Run a command; prints errors that a user can mend in one line."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        app()
    except DitQuantError as error:
        fail(str(error))
    except MemoryError:
        fail("out of memory. Use a smaller dtype (--dtype bfloat16) or a machine with more memory.")
    except OSError as error:
        fail(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}")


def fail(message: str) -> None:
    """Print one line on standard error and exit with 2."""
    print("error: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(2)
