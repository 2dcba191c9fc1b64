"""Inference: absorbed MLA decoding on a paged latent cache, whose prompt pages are offloaded to fs3.

The parts, from the inside out: `paged_cache` holds latents, `attention` attends over them, `prefill` fills them,
`offload` exchanges them with a store, `runner` turns a prompt into tokens, `session` a command line into text.
"""

from fs3_trainer.infer.offload import Offload, PageStore
from fs3_trainer.infer.paged_cache import CachedSequence, PagedCache
from fs3_trainer.infer.runner import Generation, Runner
from fs3_trainer.infer.sampling import Sampler

__all__ = ["CachedSequence", "Generation", "Offload", "PageStore", "PagedCache", "Runner", "Sampler"]
