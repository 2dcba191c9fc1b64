"""The `fs3` command: finds the sub-commands, and is the one place where an error becomes a line and an exit status.

Sub-commands are imported when they are asked for, so that `fs3 --version` is quick and a daemon loads nothing of the
client's. Exit status: 0 done, 1 failed, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

import click

from fs3 import __version__
from fs3.errors import Fs3Error, line_of

# name -> (module, attribute, one line for `fs3 --help`)
COMMANDS = {
    "up": ("fs3.cli.up", "up", "Start a whole cluster on this machine."),
    "down": ("fs3.cli.up", "down", "Stop a cluster that `fs3 up` started."),
    "status": ("fs3.cli.status", "status", "Show nodes, targets, chains and space of a cluster."),
    "admin": ("fs3.cli.admin", "admin", "Drain, replace, repair and grow a running cluster."),
    "cp": ("fs3.cli.files", "cp", "Copy files and directories, to, from and within a cluster."),
    "ls": ("fs3.cli.files", "ls", "List files and directories."),
    "cat": ("fs3.cli.files", "cat", "Print files."),
    "rm": ("fs3.cli.files", "rm", "Remove files and directories."),
    "trash": ("fs3.cli.trash", "trash", "Restore what `fs3 rm --trash` has put away."),
    "mv": ("fs3.cli.files", "mv", "Move or rename files and directories."),
    "mkdir": ("fs3.cli.files", "mkdir", "Make directories, and choose the layout of what goes in."),
    "ln": ("fs3.cli.inodes", "ln", "Make symlinks and hard links."),
    "chmod": ("fs3.cli.inodes", "chmod", "Change permission bits."),
    "chown": ("fs3.cli.inodes", "chown", "Change owner and group."),
    "stat": ("fs3.cli.files", "stat", "Show all that is known of a file or directory."),
    "du": ("fs3.cli.files", "du", "Sum up the sizes of files."),
    "df": ("fs3.cli.room", "df", "Show how much room there is, by disks and quotas."),
    "bench": ("fs3.cli.bench", "bench", "Measure how fast a cluster is from here."),
    "kv": ("fs3.cli.kv", "kv", "Show or clear what the KV cache holds."),
    "usrbio": ("fs3.cli.usrbio", "usrbio", "Read and write for the applications of this host."),
    "mgmtd": ("fs3.cli.daemons", "mgmtd", "Run the cluster manager."),
    "meta": ("fs3.cli.daemons", "meta", "Run a metadata daemon."),
    "storage": ("fs3.cli.daemons", "storage", "Run a storage daemon."),
}
SECTIONS = {
    "Clusters": ("up", "down", "status", "bench", "admin"),
    "Files": ("cp", "ls", "cat", "rm", "trash", "mv", "mkdir", "ln", "chmod", "chown", "stat", "du", "df"),
    "KV cache": ("kv",),
    "Daemons, one by one": ("mgmtd", "meta", "storage", "usrbio"),
}


class LazyGroup(click.Group):
    """Imports a sub-command's module when the command is used, and only then."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[cmd_name]
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        longest = max(map(len, COMMANDS))
        for title, names in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(longest), COMMANDS[name][2]) for name in names])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="fs3", message="%(prog)s %(version)s")
def fs3() -> None:
    """A distributed chunk store for training and inference.

    Paths in a cluster are written fs3://HOST:PORT/path; `fs3 up` prints the address of the one it starts.
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and leave the process with its exit status."""
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None, command: click.Command = fs3) -> int:
    """The exit status of the command line; never raises for a user's mistake."""
    try:
        status = command.main(
            args=list(arguments) if arguments is not None else None, prog_name="fs3", standalone_mode=False
        )
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return 2
    except click.UsageError as error:
        error.show()
        return 2
    except click.ClickException as error:
        return _failed(error.format_message())
    except (KeyboardInterrupt, click.Abort):
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nobody reads on, so nothing is left to flush
        return 141
    except (Fs3Error, OSError) as error:
        return _failed(line_of(error))
    return status if isinstance(status, int) else 0


def _failed(message: str) -> int:
    print(f"fs3: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    main()
