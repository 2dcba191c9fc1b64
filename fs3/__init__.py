"""fs3: a distributed chunk store for training and inference, modelled on DeepSeek's 3FS."""

__version__ = "0.1.0"
