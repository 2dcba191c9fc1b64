"""The stages of the demo, in order, as data; each is a function in a module of its own."""

from __future__ import annotations

from fs3_trainer.demo.demo import Stage
from fs3_trainer.demo.stages.cluster import start_cluster
from fs3_trainer.demo.stages.corpus import import_corpus
from fs3_trainer.demo.stages.crash import crash_and_resume
from fs3_trainer.demo.stages.generation import generate_twice
from fs3_trainer.demo.stages.outage import lose_a_daemon
from fs3_trainer.demo.stages.shutdown import stop_cluster
from fs3_trainer.demo.stages.training import start_training

STAGES = (
    Stage("cluster", "Start a cluster", "mgmtd, meta and three storage daemons, three replicas", start_cluster),
    Stage("corpus", "Import a corpus", "Python's standard library, tokenized into shards on fs3", import_corpus),
    Stage("training", "Train", "a DeepSeek-V3-shaped model, data and checkpoints on fs3", start_training),
    Stage("outage", "Kill a storage daemon", "SIGKILL under load, then bring it back", lose_a_daemon),
    Stage("crash", "Kill the trainer", "SIGKILL between checkpoints, then --resume", crash_and_resume),
    Stage("generation", "Generate", "processes that share a prompt's KV pages through fs3", generate_twice),
    Stage("shutdown", "Stop", "every daemon, in order", stop_cluster),
)
