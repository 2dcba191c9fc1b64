"""`fs3 cp|ls|cat|rm|mv|mkdir|stat|du`: what coreutils do, over fs3:// URLs and local paths alike.

Options, messages and exit codes follow coreutils: 0 when all went well, 1 when an operand failed (`ls`: 2).
"""

from __future__ import annotations

import json
import posixpath
import stat as stat_bits
import sys
import time
from typing import Any

import click

from fs3.cli import copy
from fs3.cli.places import Failures, Place, check_trash, place, walk
from fs3.config import parse_bytes, parse_seconds
from fs3.errors import Invalid
from fs3.layout import Durability, LayoutChoice

PIECE_BYTES = 8 << 20


def human(count: int) -> str:
    """A size as `ls -h` shows it."""
    value = float(count)
    for unit in ("", "K", "M", "G", "T", "P"):
        if value < 1024 or unit == "P":
            return f"{count}" if not unit else f"{value:.1f}{unit}" if value < 10 else f"{value:.0f}{unit}"
        value /= 1024
    raise AssertionError("unreachable")


def _targets(sources: tuple[str, ...], destination: str, failures: Failures) -> list[tuple[Place, Place]]:
    """Which source goes exactly where, by the rules of cp and mv: into an existing directory, else to that name."""
    with failures.of("cannot access", destination):
        target = place(destination)
        kind = target.kind()
        if kind != "directory" and len(sources) > 1:
            failures.say(f"target '{destination}' is not a directory")
            return []
        if kind is None and target.says_directory and place(sources[0]).kind() == "file":
            failures.say(f"cannot create '{destination}': no such directory")
            return []
        pairs: dict[str, tuple[Place, Place]] = {}
        for text in sources:
            with failures.of("cannot access", text):
                source = place(text)
                at = target.child(source.name) if kind == "directory" else target
                if at.path in pairs:
                    failures.say(f"will not overwrite just-created '{at.text}' with '{text}'")
                    continue
                pairs[at.path] = source, at
        return list(pairs.values())
    return []


@click.command()
@click.option("-r", "-R", "--recursive", is_flag=True, help="Copy directories with all that is in them.")
@click.option("-q", "--quiet", is_flag=True, help="No progress bar.")
@click.argument("sources", nargs=-1, required=True)
@click.argument("destination")
def cp(sources: tuple[str, ...], destination: str, recursive: bool, quiet: bool) -> int:
    """Copy SOURCES to DESTINATION, each a local path or an fs3:// URL."""
    failures = Failures("cp")
    plan = copy.Plan()
    for source, target in _targets(sources, destination, failures):
        copy.plan_tree(source, target, recursive=recursive, failures=failures, plan=plan)
    if plan.files or plan.directories:
        copy.run(plan, failures, quiet=quiet)
    return failures.exit_code()


@click.command()
@click.argument("sources", nargs=-1, required=True)
@click.argument("destination")
def mv(sources: tuple[str, ...], destination: str) -> int:
    """Rename SOURCES to DESTINATION, or move them there: atomic within a cluster, by copying between filesystems."""
    failures = Failures("mv")
    for source, target in _targets(sources, destination, failures):
        with failures.of("cannot move", source.text):
            if source.shares_filesystem(target):
                if source.is_local:
                    source.info()
                    source.fs.mv(source.path, target.path)
                else:
                    source.fs.rename(source.path, target.path)
                continue
            before = failures.count
            plan = copy.Plan()
            copy.plan_tree(source, target, recursive=True, failures=failures, plan=plan)
            copy.run(plan, failures)
            if failures.count == before:
                source.fs.rm(source.path, recursive=True)
    return failures.exit_code()


@click.command()
@click.option("-l", "--long", "long_form", is_flag=True, help="Mode, owner, size and time beside each name.")
@click.option("-h", "--human", "human_sizes", is_flag=True, help="Sizes such as 1.5M, with -l.")
@click.option("-a", "--all", "hidden", is_flag=True, help="Names that begin with a dot, too.")
@click.option("-d", "--directory", "itself", is_flag=True, help="A directory itself, not what is in it.")
@click.argument("places", nargs=-1, required=True)
def ls(places: tuple[str, ...], long_form: bool, human_sizes: bool, hidden: bool, itself: bool) -> int:
    """List files and directories."""
    failures = Failures("ls")
    several = len(places) > 1
    for number, text in enumerate(places):
        with failures.of("cannot access", text):
            at = place(text)
            info = at.info()
            if itself or info["type"] != "directory":
                _print_entries([(at.text, info)], long_form, human_sizes)
                continue
            found = at.fs.ls(at.path, detail=True)
            named = [(entry["name"].rstrip("/").rpartition("/")[2], entry) for entry in found]
            entries = sorted(named, key=lambda pair: str(pair[0]))
            if several:
                print(f"{'' if number == 0 else chr(10)}{text}:")
            shown = [(name, entry) for name, entry in entries if hidden or not name.startswith(".")]
            _print_entries(shown, long_form, human_sizes)
    return failures.exit_code(2)


def _print_entries(entries: list[tuple[str, dict[str, Any]]], long_form: bool, human_sizes: bool) -> None:
    if not long_form:
        for name, _ in entries:
            print(name)
        return
    rows = []
    for name, entry in entries:
        if entry["type"] == "other" and "destination" in entry:
            name = f"{name} -> {entry['destination']}"
        kind = {"directory": stat_bits.S_IFDIR, "file": stat_bits.S_IFREG}.get(entry["type"], stat_bits.S_IFLNK)
        mode = stat_bits.filemode(kind | stat_bits.S_IMODE(entry.get("mode", 0)))
        size = human(entry["size"]) if human_sizes else str(entry["size"])
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.get("mtime") or 0))
        rows.append(
            (mode, str(entry.get("nlink", 1)), str(entry.get("uid", 0)), str(entry.get("gid", 0)), size, when, name)
        )
    widths = [max(len(row[column]) for row in rows) for column in range(5)] if rows else []
    for row in rows:
        print(row[0], *(row[column].rjust(widths[column]) for column in range(1, 5)), row[5], row[6])


@click.command()
@click.argument("places", nargs=-1, required=True)
def cat(places: tuple[str, ...]) -> int:
    """Write files to standard output."""
    failures = Failures("cat")
    buffer = memoryview(bytearray(PIECE_BYTES))
    for text in places:
        with failures.of("cannot read", text):
            at = place(text)
            if at.info()["type"] == "directory":
                raise IsADirectoryError(21, "Is a directory", text)
            with at.fs.open(at.path, "rb") as reader:
                while count := reader.readinto(buffer):
                    sys.stdout.buffer.write(buffer[:count])
    sys.stdout.buffer.flush()
    return failures.exit_code()


@click.command()
@click.option("-r", "-R", "--recursive", is_flag=True, help="Remove directories with all that is in them.")
@click.option("-f", "--force", is_flag=True, help="Do not complain about names that do not exist.")
@click.option("--trash", "to_trash", is_flag=True, help="Put them into the trash; `fs3 trash` restores them.")
@click.option("--keep", metavar="TIME", help="How long they stay there, such as 12h or 2w.  [default: 3d]")
@click.argument("places", nargs=-1, required=True)
def rm(places: tuple[str, ...], recursive: bool, force: bool, to_trash: bool, keep: str | None) -> int:
    """Remove files, and directories with -r."""
    if keep is not None and not to_trash:
        raise click.UsageError("--keep is for what goes into the trash; say --trash")
    keep_s = None if keep is None else parse_seconds(keep)
    failures = Failures("rm")
    for text in places:
        with failures.of("cannot remove", text):
            at = place(text)
            if at.path == "/":
                raise Invalid("the root directory stays; name what is in it")
            if to_trash:
                check_trash(at)
            if hasattr(at.fs, "islink") and at.fs.islink(at.path):
                at.fs.trash(at.path, keep_s) if to_trash else at.fs.rm_file(at.path)
                continue
            kind = at.kind()
            if kind is None:
                if not force:
                    raise FileNotFoundError(2, "No such file or directory", text)
            elif kind == "directory" and not recursive:
                raise IsADirectoryError(21, "Is a directory; say -r to remove it with all that is in it", text)
            elif to_trash:
                at.fs.trash(at.path, keep_s)
            else:
                at.fs.rm(at.path, recursive=kind == "directory")
    return failures.exit_code()


@click.command()
@click.option("-p", "--parents", is_flag=True, help="Make missing parents; an existing directory is no error.")
@click.option("-m", "--mode", default="755", show_default=True, help="Permission bits, octal.")
@click.option("--replicas", type=click.IntRange(min=1), help="Copies of each new file in the directory.")
@click.option("--chunk-size", help="Chunk size of new files: a power of two from 64KiB to 64MiB.")
@click.option("--stripe", type=click.IntRange(min=1), help="Number of chains a new file's chunks go round.")
@click.option(
    "--durability",
    type=click.Choice([kind.name.lower() for kind in Durability]),
    help="What an acknowledged write has reached: stable storage (sync) or the page cache (os).",
)
@click.argument("places", nargs=-1, required=True)
def mkdir(
    places: tuple[str, ...],
    parents: bool,
    mode: str,
    replicas: int | None,
    chunk_size: str | None,
    stripe: int | None,
    durability: str | None,
) -> int:
    """Make directories. The layout options say what new files in them get; the rest is inherited."""
    failures = Failures("mkdir")
    try:
        bits = int(mode, 8)
    except ValueError:
        raise click.BadParameter(f"{mode!r} is not an octal number", param_hint="--mode") from None
    choice = LayoutChoice(
        replicas=replicas,
        chunk_bytes=parse_bytes(chunk_size) if chunk_size else None,
        stripe=stripe,
        durability=Durability[durability.upper()] if durability else None,
    )
    chosen = choice != LayoutChoice()
    for text in places:
        with failures.of("cannot create directory", text):
            at = place(text)
            options: dict[str, Any] = {} if at.is_local else {"mode": bits, "layout": choice if chosen else None}
            if at.is_local and chosen:
                raise Invalid("a local directory has no layout; the layout options are for fs3:// URLs")
            if parents:
                at.fs.makedirs(at.path, exist_ok=True, **options)
            else:
                at.fs.mkdir(at.path, create_parents=False, **options)
    return failures.exit_code()


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line.")
@click.argument("places", nargs=-1, required=True)
def stat(places: tuple[str, ...], as_json: bool) -> int:
    """Show everything known of files and directories."""
    failures = Failures("stat")
    for text in places:
        with failures.of("cannot stat", text):
            facts = _facts(place(text))
            if as_json:
                print(json.dumps(facts))
                continue
            widest = max(map(len, facts))
            for key, value in facts.items():
                print(f"{key:{widest}}  {value}")
    return failures.exit_code()


def _facts(at: Place) -> dict[str, Any]:
    info = at.info()
    facts = {
        "path": at.text,
        "type": info["type"],
        "size": info["size"],
        "inode": info.get("ino"),
        "links": info.get("nlink"),
        "mode": f"{stat_bits.S_IMODE(info.get('mode', 0)):04o}",
        "uid": info.get("uid"),
        "gid": info.get("gid"),
    }
    if info.get("islink"):
        facts["leads_to"] = info["destination"]
    for name, key in (("modified", "mtime"), ("created", "created")):
        facts[name] = time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(info.get(key) or 0))
    layout = info.get("layout")
    if layout is not None:
        routing = at.fs.client.mgmtd.routing
        facts["chunk_size"] = layout.chunk_bytes
        facts["replicas"] = routing.table(layout.chain_table, layout.chain_table_version).replicas
        facts["stripe"] = layout.stripe
        facts["chain_table"] = f"{layout.chain_table} version {layout.chain_table_version}"
        facts["durability"] = Durability(layout.durability).name.lower()
    return facts


@click.command()
@click.option("-s", "--summarize", is_flag=True, help="Only a total for each operand.")
@click.option("-h", "--human", "human_sizes", is_flag=True, help="Sizes such as 1.5M.")
@click.option("-b", "--bytes", "in_bytes", is_flag=True, help="Sizes in bytes, not in KiB.")
@click.argument("places", nargs=-1, required=True)
def du(places: tuple[str, ...], summarize: bool, human_sizes: bool, in_bytes: bool) -> int:
    """Sum up the lengths of files (in KiB, rounded up), directory by directory."""
    failures = Failures("du")

    def show(count: int, name: str) -> None:
        print(f"{human(count) if human_sizes else count if in_bytes else -(-count // 1024)}\t{name}")

    for text in places:
        with failures.of("cannot access", text):
            at = place(text)
            info = at.info()
            if info["type"] != "directory":
                show(info["size"], text)
            elif summarize:
                show(at.fs.du(at.path), text)
            else:
                for name, count in _tree_sizes(at, failures):
                    show(count, name)
    return failures.exit_code()


def _tree_sizes(at: Place, failures: Failures) -> list[tuple[str, int]]:
    """(directory as the user would write it, bytes below it), children before parents."""
    sizes = {".": 0}
    for inside, entry in walk(at, failures):
        if entry["type"] == "directory":
            sizes.setdefault(inside, 0)
            continue
        while inside not in ("", "."):
            inside = posixpath.dirname(inside) or "."
            sizes[inside] = sizes.get(inside, 0) + int(entry["size"] or 0)
            if inside == ".":
                break
    order = sorted(sizes, key=lambda name: name.split("/"), reverse=True)
    order.remove(".")
    return [(at.child(name).text, sizes[name]) for name in order] + [(at.text, sizes["."])]
