"""The house rules, as tests: who may import whom, what a core may touch, what never stands in the tree.

Imports point one way (DESIGN: base <- cores <- kv, transport <- client <- servers, fsspec, kvcache, loader <- trainer),
a client never imports a server, and the storage layer imports and runs without torch.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {
    "fs3": ROOT / "fs3",
    "fs3_loader": ROOT / "loader" / "fs3_loader",
    "fs3_trainer": ROOT / "trainer" / "fs3_trainer",
}
BASE = [
    "errors",
    "ids",
    "routing",
    "sessions",
    "layout",
    "checksum",
    "block_file",
    "page_cache",
    "clock",
    "runtime",
    "config",
    "metrics",
    "url",
    "inode",
    "user",
    "pb",
]

# room -> rooms it may import, itself aside. `base` is every module of BASE and the package's version.
MAY_IMPORT = {
    "base": set(),
    "kv": {"base"},
    "transport": {"base"},
    "client": {"base", "transport"},
    "mgmtd": {"base", "kv", "transport", "client"},
    "meta": {"base", "kv", "transport", "client"},
    "storage": {"base", "transport", "client"},
    "filesystem": {"base", "client"},
    "usrbio": {"base", "client", "transport"},
    "kvcache": {"base", "client", "usrbio"},
    "bench": {"base", "client"},
    "cluster": {"base", "client", "transport", "mgmtd", "meta", "storage"},
    "cli": {
        "base",
        "client",
        "transport",
        "mgmtd",
        "meta",
        "storage",
        "filesystem",
        "usrbio",
        "kvcache",
        "bench",
        "cluster",
    },
    "fs3_loader": {"base", "client", "filesystem", "usrbio"},
    "fs3_trainer": {"base", "client", "filesystem", "kvcache", "fs3_loader"},
}
DEMO_MAY_IMPORT = MAY_IMPORT["fs3_trainer"] | {"cluster", "cli"}

CORE_MAY_NOT_IMPORT = {
    "asyncio",
    "socket",
    "threading",
    "time",
    "os",
    "random",
    "secrets",
    "grpc",
    "subprocess",
    "select",
}
CORE_THIRD_PARTY = {"numpy"}


def sources() -> Iterator[tuple[str, str, Path]]:
    """(room, module name, path) of every product module that is not generated."""
    for package, folder in PACKAGES.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            if package == "fs3" and parts[0] == "pb":
                continue
            module = ".".join((package, *parts)).removesuffix(".__init__")
            yield room_of(module), module, path


def room_of(module: str) -> str:
    top, _, rest = module.partition(".")
    if top != "fs3":
        return top
    head = rest.partition(".")[0]
    return "base" if head in BASE or head in ("", "__init__", "__version__") else head


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, absolute module) of every import anywhere in the file, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            assert node.module
            for alias in node.names:
                yield node.lineno, f"{node.module}.{alias.name}"


def test_imports_point_one_way() -> None:
    wrong = []
    for room, module, path in sources():
        assert room in MAY_IMPORT, f"{module}: a room that the house does not have; add it to DESIGN's map and here"
        allowed = DEMO_MAY_IMPORT if module.startswith("fs3_trainer.demo") else MAY_IMPORT[room]
        for line, name in imports(path):
            if name.partition(".")[0] in PACKAGES and room_of(name) not in allowed | {room}:
                wrong.append(f"{path.relative_to(ROOT)}:{line}: {room} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_cores_are_pure() -> None:
    """A *_core.py imports the standard library without sockets, clocks and threads, numpy, fs3's pure modules."""
    wrong = []
    for _, _, path in sources():
        if not path.stem.endswith("_core"):
            continue
        for line, name in imports(path):
            top = name.partition(".")[0]
            third_party = top not in sys.stdlib_module_names and top not in CORE_THIRD_PARTY and top not in PACKAGES
            impure_own = top in PACKAGES and name.startswith(("fs3.clock", "fs3.metrics", "fs3.transport.rpc"))
            if top in CORE_MAY_NOT_IMPORT or third_party or impure_own:
                wrong.append(f"{path.relative_to(ROOT)}:{line}: {name}")
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if any(isinstance(node, ast.AsyncFunctionDef) for node in ast.walk(tree)):
            wrong.append(f"{path.relative_to(ROOT)}: async in a core")
    assert not wrong, "\n".join(wrong)


def test_every_module_says_what_it_is_for() -> None:
    mute = []
    for _, _, path in sources():
        if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))):
            mute.append(str(path.relative_to(ROOT)))
    assert not mute, f"no module docstring: {mute}"


def test_no_placeholders_and_no_vague_names() -> None:
    vague = {"utils", "util", "common", "helpers", "manager", "misc"}
    wrong = [f"{path.relative_to(ROOT)}: name says nothing" for _, _, path in sources() if path.stem in vague]
    for _, _, path in sources():
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if any(word in line for word in ("TODO", "FIXME", "XXX", "HACK", "NotImplementedError")):
                wrong.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    assert not wrong, "\n".join(wrong)


def test_tests_do_not_sleep() -> None:
    wrong = []
    for path in sorted((ROOT / "tests").rglob("*.py")):
        if path.parent.name == "sim":
            continue  # time is virtual there
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("time.sleep", "asyncio.sleep"):
                argument = ast.unparse(node.args[0]) if node.args else ""
                if argument != "0":
                    wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)}")
    assert not wrong, "\n".join(wrong)


STORAGE_MODULES = [
    "fs3.cli.main",
    "fs3.filesystem.spec",
    "fs3.storage.server",
    "fs3.meta.server",
    "fs3.mgmtd.server",
    "fs3.usrbio",
    "fs3.kvcache",
]


def refusing(module: str, *packages: str) -> None:
    """Import a module in a fresh interpreter in which these packages cannot be imported."""
    code = (
        "import sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.partition('.')[0] in {packages!r}:\n"
        "            raise ImportError('not to be imported here: ' + name)\n"
        "sys.meta_path.insert(0, Refuse())\n"
        f"import {module}\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("module", STORAGE_MODULES)
def test_storage_layer_needs_no_torch(module: str) -> None:
    refusing(module, "torch", "pyarrow", "tokenizers", "pandas", "fs3_loader")


@pytest.mark.parametrize("module", ["fs3.cli.main", "fs3.filesystem.spec", "fs3.usrbio", "fs3.kvcache", "fs3_loader"])
def test_clients_need_no_grpc(module: str) -> None:
    """Its threads do not live through a fork, and loading it takes longer than many a command."""
    refusing(module, "grpc")
