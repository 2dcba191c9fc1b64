"""The importer: text comes back as it was, nothing half-written stays, and bad input is one clear line."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from numpy.typing import NDArray

from fs3.errors import Conflict, Exists, Fs3Error, Invalid, NotADirectory, NotFound, PermissionDenied
from fs3_loader import Dataset
from fs3_loader.formats.manifest import Manifest, SourceEntry
from fs3_loader.importer import ImportOptions, Silent, import_dataset
from fs3_loader.location import Location
from fs3_loader.sources import PIECE_BYTES, NotText, SourceFile, find_sources, read_text
from fs3_loader.tokenizing import DatasetTokenizer
from fs3_loader.writer import DatasetWriter, Destination

MakeDataset = Callable[..., tuple[Manifest, NDArray[np.uint32]]]

TEXTS = {
    "a.py": "def f(x):\n    return x + 1\n" * 30,
    "b/c.py": "# gr\u00fc\u00dfe \u4f60\u597d \U0001f600 <|endoftext|> as text\r\n\ttabs\n" * 20,
    "b/notes.txt": "plain words, and more of them\n" * 25,
}


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    root = tmp_path / "src"
    for name, text in TEXTS.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(text.encode())
    (root / "binary.py").write_bytes(b"\xff\xfe\x00")
    (root / "nul.py").write_bytes(b"a\0b")
    (root / "empty.py").write_bytes(b"")
    (root / ".git").mkdir()
    (root / ".git" / "config.py").write_text("hidden")
    return root


def options(source: Path | str, url: str, **changes: object) -> ImportOptions:
    return ImportOptions(
        **{"sources": [str(source)], "url": url, "tokenizer": "bpe:400", "seq_len": 16, "shard_bytes": 900} | changes
    )


def text_of(url: str) -> list[str]:
    """The documents of a dataset, put together again from all its samples."""
    ds = Dataset.open(url)
    samples = ds.read_tokens(range(len(ds))).astype(np.int64)
    stream = np.concatenate([samples[0, :1], samples[:, 1:].reshape(-1)])
    ends = np.flatnonzero(stream == ds.manifest.tokenizer.end_of_document)
    tokenizer = ds.tokenizer()
    return [tokenizer.decode(part[part != 0].tolist()) for part in np.split(stream, ends)]


def test_text_comes_back_as_it_was(url: str, sources: Path) -> None:
    manifest = import_dataset(options(sources, url))
    documents = text_of(url)
    assert documents[:2] == [TEXTS["a.py"], TEXTS["b/c.py"]]
    assert TEXTS["b/notes.txt"].startswith(documents[2])
    assert manifest.source.files == 3
    assert manifest.source.skipped_files == 2
    assert manifest.num_tokens == 1 + 16 * manifest.num_samples + manifest.source.dropped_tokens
    assert len(manifest.shards) > 1
    assert sorted(Location.parse(url).names()) == sorted(
        [*(shard.file for shard in manifest.shards), "manifest.json", "tokenizer.json"]
    )


def test_glob_chooses_by_name(tmp_path: Path, sources: Path) -> None:
    manifest = import_dataset(options(sources, str(tmp_path / "c"), glob="*.txt"))
    assert (manifest.source.files, manifest.source.skipped_files) == (1, 0)


def test_the_same_sources_make_the_same_bytes(tmp_path: Path, sources: Path) -> None:
    for name in ("one", "two"):
        import_dataset(options(sources, str(tmp_path / name)))
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name
    other = import_dataset(options(sources, str(tmp_path / "three"), shard_bytes=5000))
    assert other.fingerprint == Dataset.open(str(tmp_path / "one")).fingerprint
    longer = import_dataset(options(sources, str(tmp_path / "four"), seq_len=17))
    assert longer.fingerprint != other.fingerprint


@pytest.mark.parametrize("name", ["a.bin", "z.bin"])
def test_a_tokenizer_is_learned_from_text_beside_large_files_that_are_none(tmp_path: Path, name: str) -> None:
    """Each of the two is the first that is chosen, once."""
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / name).write_bytes(b"\0" * 5000)
    (tmp_path / "src" / "m.txt").write_text("plain words, and more of them\n" * 25)
    manifest = import_dataset(options(tmp_path / "src", str(tmp_path / "c"), tokenizer="bpe:270", train_bytes=1000))
    assert manifest.vocab_size == 270


@pytest.mark.parametrize(("train_bytes", "learned"), [(1001, False), (1100, True)])
def test_a_tokenizer_is_learned_from_bytes_and_not_from_characters(
    tmp_path: Path, train_bytes: int, learned: bool
) -> None:
    (tmp_path / "m.txt").write_text("\u4f60\u597d" * 167 + " dog" * 500, encoding="utf-8")
    import_dataset(options(tmp_path / "m.txt", str(tmp_path / "c"), train_bytes=train_bytes))
    tokens = Dataset.open(str(tmp_path / "c")).tokenizer().encode(" dog").tokens
    assert (len(tokens) == 1) == learned


def test_an_existing_tokenizer_is_taken(tmp_path: Path, sources: Path) -> None:
    import_dataset(options(sources, str(tmp_path / "one")))
    file = f"file:{tmp_path / 'one' / 'tokenizer.json'}"
    import_dataset(options(sources, str(tmp_path / "two"), tokenizer=file))
    assert text_of(str(tmp_path / "two")) == text_of(str(tmp_path / "one"))
    with pytest.raises(Invalid, match="no token <stop>; name its end-of-document token with --eod"):
        import_dataset(options(sources, str(tmp_path / "three"), tokenizer=file, end_of_document="<stop>"))


def test_a_tokenizer_file_whose_name_is_no_utf8_is_refused_before_anything_is_written(
    tmp_path: Path, sources: Path, tokenizer: DatasetTokenizer
) -> None:
    file = os.fsdecode(os.fsencode(tmp_path / "tokenizer-") + b"\xe4.json")
    Path(file).write_text(tokenizer.text)
    with pytest.raises(Invalid, match=r"tokenizer file '.*/tokenizer-\\udce4.json' has no UTF-8 name"):
        import_dataset(options(sources, str(tmp_path / "c"), tokenizer=f"file:{file}"))
    assert not (tmp_path / "c").exists()


def test_large_files_are_read_in_pieces_that_end_with_lines(tmp_path: Path) -> None:
    line = "\u00e4" * 1000 + "\n"
    text = line * (PIECE_BYTES // 1000)
    (tmp_path / "large.txt").write_text(text, encoding="utf-8")
    (source,) = find_sources([str(tmp_path / "large.txt")], None)
    pieces = list(read_text(source))
    assert len(pieces) > 1
    assert all(piece.endswith("\n") and len(piece) <= PIECE_BYTES for piece in pieces)
    assert "".join(pieces) == text
    (tmp_path / "late.txt").write_bytes(text.encode() + b"\xff")
    (late,) = find_sources([str(tmp_path / "late.txt")], None)
    with pytest.raises(NotText):
        next(read_text(late))


@pytest.mark.parametrize("end", [b"\xc3", b"\xe4\xbd", b"\xff", b"\0"])
def test_a_file_that_ends_as_no_text_does_is_left_out_whole(tmp_path: Path, sources: Path, end: bytes) -> None:
    """As one that was cut in the middle of a character."""
    (sources / "cut.py").write_bytes(b"the beginning\n" + end)
    manifest = import_dataset(options(sources, str(tmp_path / "c"), glob="*.py"))
    assert (manifest.source.files, manifest.source.skipped_files) == (2, 3)
    assert "the beginning" not in "".join(text_of(str(tmp_path / "c")))


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, sources: Path) -> None:
    """Its path is too long, which holds for root as well."""
    home = os.open(sources, os.O_RDONLY)
    for _ in range(25):
        os.mkdir("d" * 200, dir_fd=home)
        below = os.open("d" * 200, os.O_RDONLY, dir_fd=home)
        os.close(home)
        home = below
    os.close(home)
    with pytest.raises(Fs3Error, match=r"/d+: File name too long"):
        import_dataset(options(sources, str(tmp_path / "c")))
    assert not (tmp_path / "c").exists()


class OneFolderClosed(MemoryFileSystem):
    """Any folder of the name `closed` is not to be listed."""

    protocol = "onefolderclosed"

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.removeprefix("onefolderclosed://"))

    def ls(self, path: str, detail: bool = True, **options: Any) -> Any:
        if path.endswith("/closed"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return super().ls(path, detail=detail, **options)


def test_a_folder_elsewhere_that_cannot_be_listed_is_named() -> None:
    fsspec.register_implementation("onefolderclosed", OneFolderClosed, clobber=True)
    memory = fsspec.filesystem("memory")
    memory.pipe({"/fs3-loader-closed/a.py": b"text", "/fs3-loader-closed/b/closed/c.py": b"text"})
    with pytest.raises(PermissionDenied) as caught:
        find_sources(["onefolderclosed://fs3-loader-closed/"], None)
    memory.rm("/fs3-loader-closed", recursive=True)
    assert str(caught.value) == "onefolderclosed://fs3-loader-closed/b/closed: Permission denied"


class Sizeless(MemoryFileSystem):
    """Does not say how many bytes a file has."""

    protocol = "sizeless"

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.removeprefix("sizeless://"))

    def info(self, path: str, **options: Any) -> Any:
        return super().info(path, **options) | {"size": None}

    def ls(self, path: str, detail: bool = True, **options: Any) -> Any:
        return [entry | {"size": None} for entry in super().ls(path, detail=True, **options)]


@pytest.mark.parametrize("source", ["sizeless://fs3-loader-sizeless", "sizeless://fs3-loader-sizeless/a.py"])
def test_a_source_of_unknown_size_is_named(source: str) -> None:
    fsspec.register_implementation("sizeless", Sizeless, clobber=True)
    memory = fsspec.filesystem("memory")
    memory.pipe("/fs3-loader-sizeless/a.py", b"text")
    with pytest.raises(Invalid) as caught:
        find_sources([source], None)
    memory.rm("/fs3-loader-sizeless", recursive=True)
    assert str(caught.value) == (
        f"source {source}: the size of /fs3-loader-sizeless/a.py is not known; copy it to a local folder first"
    )


def test_folders_are_walked_wherever_they_are(url: str) -> None:
    location = Location.parse(url)
    for name in ("b", "b/.git", "b/c", "b/.git/d"):
        location.fs.makedirs(location.path(name))
    for name in ("a.py", "b/c/a.py", "b/c/a.txt", "b/.git/d/a.py", "b/a.py", "b/.a.py", "z.py"):
        location.fs.pipe_file(location.path(name), name.encode())
    found = find_sources([url], "*.py")
    assert ["".join(read_text(file)) for file in found] == [file.path[len(location.root) + 1 :] for file in found]
    assert {file.path: file.bytes for file in found} == {
        location.path(name): len(name) for name in ("a.py", "b/a.py", "b/c/a.py", "z.py")
    }
    assert find_sources([url + "/"], "*.py") == found


def test_a_source_named_twice_is_read_once(sources: Path) -> None:
    once = find_sources([str(sources)], "*.py")
    assert find_sources([str(sources), str(sources / "a.py"), str(sources / "b")], "*.py") == once
    assert all(isinstance(file, SourceFile) for file in once)


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"sources": ["/no/such/source"]}, NotFound, "source /no/such/source does not exist"),
        ({"sources": ["dir://x"]}, Invalid, "cannot open dir://x: dir:// takes more than a URL"),
        ({"glob": "*.zip"}, Invalid, r"no file that matches \*.zip"),
        ({"glob": "nul.py"}, Invalid, "none of the 1 files is UTF-8 text"),
        ({"seq_len": 100_000}, Invalid, r"fewer than one sample of 100000 \+ 1"),
        ({"seq_len": 0}, Invalid, "at least 1"),
        ({"tokenizer": "bpe:100"}, Invalid, "'bpe:100' is not understood"),
        ({"tokenizer": "words"}, Invalid, "'words' is not understood"),
        ({"tokenizer": "file:/no/such.json"}, Invalid, "tokenizer file /no/such.json cannot be read"),
        ({"shard_bytes": 0}, Invalid, "at least 1"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    url: str, sources: Path, changes: dict[str, object], error: type[Fs3Error], said: str
) -> None:
    with pytest.raises(error, match=said) as caught:
        import_dataset(options(sources, url, **changes))
    assert "\n" not in str(caught.value)
    assert Location.parse(url).kind() == "nothing"


def test_an_empty_source_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(Invalid, match="no file with text in it"):
        import_dataset(options(tmp_path / "empty", str(tmp_path / "c")))


def test_the_destination_must_be_free(tmp_path: Path, sources: Path) -> None:
    import_dataset(options(sources, str(tmp_path / "c")))
    before = {path.name: path.read_bytes() for path in (tmp_path / "c").iterdir()}
    with pytest.raises(Exists, match="already holds a dataset; give another folder, or --overwrite"):
        import_dataset(options(sources, str(tmp_path / "c"), seq_len=8))
    assert {path.name: path.read_bytes() for path in (tmp_path / "c").iterdir()} == before
    with pytest.raises(NotADirectory, match="is a file"):
        import_dataset(options(sources, str(sources / "a.py")))
    with pytest.raises(Invalid, match=r"holds other files \(a.py\)"):
        import_dataset(options(sources, str(sources)))
    with pytest.raises(Fs3Error, match=r"a\.py"):
        import_dataset(options(sources, str(sources / "a.py" / "below")))


def test_overwriting_replaces_the_whole(url: str, sources: Path, make_dataset: MakeDataset) -> None:
    make_dataset(url, 30)
    old = Dataset.open(url)
    manifest = import_dataset(options(sources, url, overwrite=True))
    assert manifest.generation == 1
    assert Dataset.open(url).fingerprint == manifest.fingerprint != old.fingerprint
    assert text_of(url)[0] == TEXTS["a.py"]
    assert sorted(Location.parse(url).names()) == sorted(
        [*(shard.file for shard in manifest.shards), "manifest.json", "tokenizer-0001.json"]
    )
    assert import_dataset(options(sources, url, overwrite=True)).generation == 2


def test_overwriting_is_the_way_out_of_a_damaged_manifest(url: str, sources: Path, make_dataset: MakeDataset) -> None:
    make_dataset(url, 30)
    fs, root = fsspec.url_to_fs(url)
    fs.pipe_file(f"{root}/manifest.json", b"{ damaged")
    import_dataset(options(sources, url, overwrite=True))
    assert text_of(url)[0] == TEXTS["a.py"]


class Failing(Silent):
    """Fails in the middle of tokenizing, after shards were written."""

    def __init__(self, error: BaseException) -> None:
        self.error = error
        self.tokenizing = False

    def stage(self, name: str, total_bytes: int) -> None:
        self.tokenizing = name == "tokenizing"

    def advance(self, num_bytes: int) -> None:
        if self.tokenizing:
            raise self.error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_a_failure_leaves_nothing(url: str, sources: Path, error: BaseException) -> None:
    with pytest.raises(type(error)):
        import_dataset(options(sources, url), Failing(error))
    assert Location.parse(url).kind() == "nothing"


def test_a_failed_overwrite_keeps_the_old_dataset(url: str, sources: Path, make_dataset: MakeDataset) -> None:
    manifest, samples = make_dataset(url, 30)
    before = Location.parse(url).names()
    with pytest.raises(KeyboardInterrupt):
        import_dataset(options(sources, url, overwrite=True), Failing(KeyboardInterrupt()))
    assert Location.parse(url).names() == before
    assert Dataset.open(url).manifest == manifest
    assert np.array_equal(Dataset.open(url).read_tokens(range(30)), samples)


def test_an_aborted_writer_leaves_nothing(url: str, tokenizer: DatasetTokenizer) -> None:
    destination = Destination(Location.parse(url), overwrite=False)
    writer = DatasetWriter(destination, tokenizer, seq_len=3, shard_bytes=8)
    writer.add(np.ones((5, 4), dtype=np.uint32))
    writer.abort()
    assert Location.parse(url).names() == {}


def test_two_imports_at_once_do_not_mix(url: str, tokenizer: DatasetTokenizer) -> None:
    source = SourceEntry(files=1, bytes=1, skipped_files=0, dropped_tokens=0)
    writers = []
    for _ in range(2):
        destination = Destination(Location.parse(url), overwrite=False)
        writers.append(DatasetWriter(destination, tokenizer, seq_len=3, shard_bytes=8))
        writers[-1].add(np.full((5, 4), len(writers), dtype=np.uint32))
    writers[1].finish(source, 16)
    with pytest.raises(Conflict, match="another import"):
        writers[0].finish(source, 16)
    writers[0].abort()
    assert np.array_equal(Dataset.open(url).read_tokens([0, 4]), np.full((2, 4), 2))


@pytest.mark.parametrize("replaces", [False, True])
@pytest.mark.parametrize("before", [0, 1, 2])
def test_an_import_that_is_overtaken_leaves_the_dataset_of_the_other_alone(
    url: str, tokenizer: DatasetTokenizer, make_dataset: MakeDataset, replaces: bool, before: int
) -> None:
    """It has no shard yet, or the half of one, or a whole one, when another begins and ends in the same folder."""
    if replaces:
        make_dataset(url, 30)
    destination = Destination(Location.parse(url), overwrite=replaces)
    slow = DatasetWriter(destination, tokenizer, seq_len=3, shard_bytes=16)
    slow.add(np.ones((before, 4), dtype=np.uint32))
    manifest, samples = make_dataset(url, 30, seed=1, overwrite=replaces)
    with pytest.raises(Conflict, match="another import"):
        slow.add(np.ones((2, 4), dtype=np.uint32))
        slow.finish(SourceEntry(files=1, bytes=1, skipped_files=0, dropped_tokens=0), 16)
    slow.abort()
    ds = Dataset.open(url)
    assert ds.manifest == manifest
    assert np.array_equal(ds.read_tokens(range(30)), samples)
    assert ds.tokenizer_json() == tokenizer.text


class InterruptedAtTheEnd(MemoryFileSystem):
    """Ctrl-C right after, or right before, the manifest is in place."""

    cachable = False

    def __init__(self, *, before: bool) -> None:
        super().__init__()
        self.before = before

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: object) -> None:
        if self.before:
            raise KeyboardInterrupt
        super().pipe_file(path, value, mode=mode, **options)
        raise KeyboardInterrupt


@pytest.mark.parametrize("before", [True, False])
def test_an_interruption_at_the_manifest_leaves_all_or_nothing(tokenizer: DatasetTokenizer, before: bool) -> None:
    url = f"memory://fs3-loader-interrupted-{before}"
    location = Location(url, InterruptedAtTheEnd(before=before), f"/fs3-loader-interrupted-{before}")
    writer = DatasetWriter(Destination(location, overwrite=False), tokenizer, seq_len=3, shard_bytes=8)
    writer.add(np.ones((5, 4), dtype=np.uint32))
    with pytest.raises(KeyboardInterrupt):
        writer.finish(SourceEntry(files=1, bytes=1, skipped_files=0, dropped_tokens=0), 16)
    writer.abort()
    if before:
        assert location.names() == {}
    else:
        assert Dataset.open(url).read_tokens(range(5)).tolist() == [[1] * 4] * 5


KILLED = """
import os, signal, sys
from fs3_loader.importer import ImportOptions, Silent, import_dataset

class KillMe(Silent):
    def stage(self, name, total_bytes):
        self.tokenizing = name == "tokenizing"

    def advance(self, num_bytes):
        if self.tokenizing:
            os.kill(os.getpid(), signal.SIGKILL)

import_dataset(
    ImportOptions(sources=[sys.argv[1]], url=sys.argv[2], tokenizer="file:" + sys.argv[3], shard_bytes=1 << 20),
    KillMe(),
)
"""


def test_a_killed_import_leaves_no_dataset_and_the_next_one_cleans_up(
    tmp_path: Path, tokenizer: DatasetTokenizer
) -> None:
    """The text is more than one group of the tokenizer, so shards are written when the process is killed."""
    (tmp_path / "tokenizer.json").write_text(tokenizer.text)
    (tmp_path / "large.txt").write_text("the cat sat on the mat\n" * 400_000)
    out = tmp_path / "corpus"
    arguments = [str(tmp_path / "large.txt"), str(out), str(tmp_path / "tokenizer.json")]
    killed = subprocess.run([sys.executable, "-c", KILLED, *arguments], check=False, timeout=120)
    assert killed.returncode == -signal.SIGKILL
    left = sorted(os.listdir(out))
    assert len(left) > 1
    assert "manifest.json" not in left
    with pytest.raises(NotFound, match=r"is no dataset: it has no manifest.json"):
        Dataset.open(str(out))
    (tmp_path / "small.txt").write_text("the cat sat on the mat\n" * 40)
    import_dataset(options(tmp_path / "small.txt", str(out), tokenizer=f"file:{tmp_path / 'tokenizer.json'}"))
    assert text_of(str(out))[0].startswith("the cat sat on the mat\nthe cat")
    assert sorted(os.listdir(out)) == sorted(
        [*(shard.file for shard in Dataset.open(str(out)).manifest.shards), "manifest.json", "tokenizer.json"]
    )
