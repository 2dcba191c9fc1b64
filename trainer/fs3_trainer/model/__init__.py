"""The DeepSeek-V3-shaped model: MLA attention, a mixture of experts without auxiliary loss, multi-token prediction.

Parameter names are Hugging Face's for `deepseek_v3`, so that weights move both ways without a map.
"""

from fs3_trainer.model.config import ModelConfig
from fs3_trainer.model.loss import Losses, training_loss
from fs3_trainer.model.mla import MLA, Attend, causal_attention
from fs3_trainer.model.model import DeepseekV3, Forward
from fs3_trainer.model.rope import Rope, rope_at

__all__ = [
    "MLA",
    "Attend",
    "DeepseekV3",
    "Forward",
    "Losses",
    "ModelConfig",
    "Rope",
    "causal_attention",
    "rope_at",
    "training_loss",
]
