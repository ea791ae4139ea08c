"""The `ditquant` command: one file per subcommand; a user's mistake is one line and exit code 2."""

from ditquant.cli.app import main

__all__ = ["main"]
