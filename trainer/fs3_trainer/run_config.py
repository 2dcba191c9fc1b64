"""A run's settings: a preset's name, or a TOML file that may start from a preset.

preset = "small"          # optional: what the file does not set comes from it

[model]
num_hidden_layers = 6

[train]
peak_lr = 2e-3
"""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

from fs3 import config as settings
from fs3.errors import Invalid, NotFound
from fs3_trainer.model import ModelConfig
from fs3_trainer.train.config import TrainConfig


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """`vocabulary_chosen`: the user's file set vocab_size; otherwise the data set's vocabulary takes its place."""

    name: str
    model: ModelConfig
    train: TrainConfig
    vocabulary_chosen: bool

    def for_vocabulary(self, vocab_size: int) -> RunConfig:
        """The config for data whose tokens are below `vocab_size`.

        Raises:
            Invalid: the file chose a smaller one.
        """
        if not self.vocabulary_chosen:
            return dataclasses.replace(self, model=dataclasses.replace(self.model, vocab_size=vocab_size))
        if self.model.vocab_size < vocab_size:
            raise Invalid(
                f"config {self.name}: vocab_size {self.model.vocab_size} is smaller than the data set's {vocab_size}; "
                f"raise it, or leave it out"
            )
        return self


def preset_names() -> list[str]:
    """The sizes that come with the package."""
    return sorted(entry.name.removesuffix(".toml") for entry in _presets().iterdir() if entry.name.endswith(".toml"))


def load_run_config(name_or_path: str) -> RunConfig:
    """The preset of this name, or what the TOML file says.

    Raises:
        NotFound: neither a preset nor a file.
        Invalid: not TOML, an unknown or missing key, a value that cannot be.
    """
    if name_or_path in preset_names():
        return _build(name_or_path, _preset(name_or_path), vocabulary_chosen=False)
    path = Path(name_or_path)
    if not path.exists():
        near = difflib.get_close_matches(name_or_path, preset_names(), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; presets are {', '.join(preset_names())}"
        raise NotFound(f"config {name_or_path}: neither a preset nor a TOML file{hint}")
    table = _parse(path)
    base: dict[str, Any] = {"model": {}, "train": {}}
    preset = table.pop("preset", None)
    if preset is not None:
        if preset not in preset_names():
            raise Invalid(f"config {path}: no preset {preset!r}; presets are {', '.join(preset_names())}")
        base = _preset(preset)
    for key, value in table.items():
        if key not in base:
            near = difflib.get_close_matches(key, ["preset", *base], n=1)
            hint = f"; did you mean {near[0]!r}?" if near else "; known are preset, [model], [train]"
            raise Invalid(f"config {path}: unknown key {key!r}{hint}")
        if not isinstance(value, dict):
            raise Invalid(f"config {path}: {key} must be a table: [{key}]")
        base[key] |= value
    return _build(str(path), base, vocabulary_chosen="vocab_size" in table.get("model", {}))


def _build(name: str, table: dict[str, Any], *, vocabulary_chosen: bool) -> RunConfig:
    return RunConfig(
        name=name,
        model=settings.from_mapping(table["model"], ModelConfig, where=f"config {name} [model]"),
        train=settings.from_mapping(table["train"], TrainConfig, where=f"config {name} [train]"),
        vocabulary_chosen=vocabulary_chosen,
    )


def _presets() -> Any:
    return resources.files("fs3_trainer").joinpath("presets")


def _preset(name: str) -> dict[str, Any]:
    return tomllib.loads(_presets().joinpath(f"{name}.toml").read_text(encoding="utf-8"))


def _parse(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise Invalid(f"config {path}: {error.strerror}") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise Invalid(f"config {path}: not TOML: {error}") from None
