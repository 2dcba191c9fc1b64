"""The shape of a DeepSeek-V3-style model, under the names that Hugging Face's `config.json` uses.

`to_dict` writes a `config.json` that transformers reads as `deepseek_v3`: what this model fixes (SiLU, no attention
bias, interleaved RoPE, separate head) is written along, and refused when a file says otherwise.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any, Final

from fs3 import config as settings
from fs3.errors import Corrupt, Invalid

FIXED: Final[dict[str, Any]] = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "hidden_act": "silu",
    "attention_bias": False,
    "rope_interleave": True,
    "tie_word_embeddings": False,
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Every size is in elements; `num_nextn_predict_layers` counts the MTP modules stored after the last layer."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    moe_intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    kv_lora_rank: int
    q_lora_rank: int | None = None
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    n_routed_experts: int
    n_shared_experts: int = 1
    num_experts_per_tok: int
    n_group: int = 1
    topk_group: int = 1
    norm_topk_prob: bool = True
    routed_scaling_factor: float = 1.0
    first_k_dense_replace: int = 1
    num_nextn_predict_layers: int = 1
    mtp_input: str = "post-norm"
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    max_position_embeddings: int = 4096

    def __post_init__(self) -> None:
        may_be_zero = {"first_k_dense_replace", "num_nextn_predict_layers"}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int | float) and not isinstance(value, bool):
                low_enough = value >= 0 if field.name in may_be_zero else value > 0
                if not low_enough:
                    raise Invalid(f"model config: {field.name} must be positive, not {value}")
        if self.mtp_input not in ("post-norm", "pre-norm"):
            raise Invalid(f"model config: mtp_input must be 'post-norm' or 'pre-norm', not {self.mtp_input!r}")
        if self.qk_rope_head_dim % 2:
            raise Invalid(f"model config: qk_rope_head_dim must be even, not {self.qk_rope_head_dim}")
        if self.n_routed_experts % self.n_group:
            raise Invalid(
                f"model config: n_group {self.n_group} does not divide n_routed_experts {self.n_routed_experts}"
            )
        group_experts = self.n_routed_experts // self.n_group
        if group_experts < 2:
            raise Invalid(f"model config: a group needs at least 2 experts, n_group {self.n_group} leaves 1")
        if self.topk_group > self.n_group:
            raise Invalid(f"model config: topk_group {self.topk_group} is more than n_group {self.n_group}")
        if self.num_experts_per_tok > self.topk_group * group_experts:
            raise Invalid(
                f"model config: num_experts_per_tok {self.num_experts_per_tok} is more than the "
                f"{self.topk_group * group_experts} experts of the {self.topk_group} chosen groups"
            )

    @property
    def qk_head_dim(self) -> int:
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def latent_dim(self) -> int:
        """Values that MLA caches a token and layer: the latent and the shared rotated key."""
        return self.kv_lora_rank + self.qk_rope_head_dim

    @property
    def stored_layers(self) -> int:
        """Decoder layers in the state dict, MTP modules included."""
        return self.num_hidden_layers + self.num_nextn_predict_layers

    def is_moe(self, layer: int) -> bool:
        return layer >= self.first_k_dense_replace

    def digest(self) -> str:
        """SHA-256 (hex) of everything that decides what the weights mean; how they were initialised does not."""
        shape = {k: v for k, v in dataclasses.asdict(self).items() if k != "initializer_range"}
        return hashlib.sha256(json.dumps(shape, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    def describe(self) -> str:
        """The shape in one short phrase, for log and error lines."""
        return (
            f"{self.num_hidden_layers} layers x {self.hidden_size} hidden, {self.num_attention_heads} heads, "
            f"{self.n_routed_experts} experts top {self.num_experts_per_tok}, vocabulary {self.vocab_size}, "
            f"{self.num_nextn_predict_layers} MTP"
        )

    def differences(self, other: ModelConfig) -> str:
        """The settings in which two shapes differ, as `name mine/theirs`, comma separated; empty when none does."""
        mine, theirs = dataclasses.asdict(self), dataclasses.asdict(other)
        return ", ".join(f"{k} {mine[k]}/{theirs[k]}" for k in mine if mine[k] != theirs[k])

    def to_dict(self) -> dict[str, Any]:
        """The content of `config.json`."""
        return FIXED | dataclasses.asdict(self) | {"num_key_value_heads": self.num_attention_heads}

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2) + "\n"

    @classmethod
    def from_dict(cls, table: Mapping[str, Any], where: str = "config.json") -> ModelConfig:
        """The inverse of `to_dict`.

        Raises:
            Invalid: an unknown or missing key, a wrong type, or a setting that this model does not have.
        """
        own = {key: value for key, value in table.items() if value is not None}
        for key, value in FIXED.items():
            if own.pop(key, value) != value:
                raise Invalid(f"{where}: {key} is {table[key]!r}, and this model has only {value!r}")
        heads = own.pop("num_key_value_heads", own.get("num_attention_heads"))
        if heads != own.get("num_attention_heads"):
            raise Invalid(f"{where}: num_key_value_heads {heads} differs from num_attention_heads; MLA has one latent")
        return settings.from_mapping(own, cls, where=where)

    @classmethod
    def from_json(cls, text: str | bytes, where: str = "config.json") -> ModelConfig:
        """A shape from the text of a `config.json`.

        Raises:
            Corrupt: not a JSON object.
            Invalid: as `from_dict`.
        """
        try:
            table = json.loads(text)
        except ValueError as error:
            raise Corrupt(f"{where}: not JSON: {error}") from None
        if not isinstance(table, dict):
            raise Corrupt(f"{where}: not a JSON object")
        return cls.from_dict(table, where)
