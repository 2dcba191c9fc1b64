"""Training and inference of a DeepSeek-V3-shaped model, with data, checkpoints and KV cache on fs3."""
