"""Shared by the trainer's tests: a small real data set, and the tiny preset's shape."""

import json
from pathlib import Path

import pytest
import torch

from fs3_loader.importer import ImportOptions, import_dataset
from fs3_trainer.model import ModelConfig
from fs3_trainer.run_config import load_run_config


@pytest.fixture(scope="session", autouse=True)
def deterministic():
    torch.use_deterministic_algorithms(True)


@pytest.fixture(scope="session")
def tiny() -> ModelConfig:
    return load_run_config("tiny").model


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> str:
    """The source of the json package as samples of 32 tokens, tokenized by a BPE of 300."""
    url = str(tmp_path_factory.mktemp("data") / "corpus")
    source = str(Path(json.__file__).parent)
    import_dataset(ImportOptions(sources=[source], url=url, tokenizer="bpe:300", seq_len=32, glob="*.py"))
    return url
