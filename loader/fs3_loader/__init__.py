"""Datasets of tokens on fs3, and the loader that feeds a training job from them.

    ds = Dataset.open("fs3://HOST:PORT/corpus")
    loader = Loader(ds, global_batch=64, dp_rank=rank, dp_size=world, seed=7)

torch is imported when the first tensor is made, so that importing and inspecting datasets start quickly.
"""

from fs3_loader.dataset import Dataset
from fs3_loader.loader import Batch, Loader, LoaderStats

__all__ = ["Batch", "Dataset", "Loader", "LoaderStats"]
