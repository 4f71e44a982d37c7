"""The geometry of a Gemma 4 text stack, read from a model folder's `config.json`.

Nothing has a default: the configuration classes' own defaults describe no published model, so a
missing key is an error. What the stack does not compute is refused here, by the name of its key.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from hybrid.errors import CheckpointError
from hybrid.gemma.checkpoint.foreign import refuse_foreign
from hybrid.gemma.fields import Fields

if TYPE_CHECKING:
    from torch import Tensor

Architecture = Literal["diffusion_gemma", "gemma4"]
LayerKind = Literal["sliding", "full"]
Rope = tuple[int, float, float]  # head dimension, theta, share of the pairs that rotate

_KINDS: dict[str, LayerKind] = {"sliding_attention": "sliding", "full_attention": "full"}
_MODEL_TYPES = ("diffusion_gemma", "gemma4", "gemma4_unified", "gemma4_text")
_PLACEHOLDERS = ("image_token_id", "video_token_id", "audio_token_id")
# key: the values under which it asks for nothing that the stack lacks
_UNSUPPORTED: dict[str, tuple[object, ...]] = {
    "hidden_size_per_layer_input": (None, 0),
    "num_kv_shared_layers": (None, 0),
    "use_double_wide_mlp": (None, False),
    "attention_bias": (None, False),
    "tie_word_embeddings": (None, True),
    "use_bidirectional_attention": (None, "vision"),
    "hidden_activation": ("gelu_pytorch_tanh",),
}


@dataclass(frozen=True, slots=True)
class LayerConfig:
    """One layer's attention. With `key_is_value` the key projection serves as the value's too."""

    kind: LayerKind
    head_dim: int
    num_key_value_heads: int
    key_is_value: bool
    rope_theta: float
    rotary_fraction: float

    @property
    def rope(self) -> Rope:
        """What the rotary embedding depends on; layers that agree in it share its tables."""
        return self.head_dim, self.rope_theta, self.rotary_fraction


@dataclass(frozen=True, slots=True)
class GemmaConfig:
    """A Gemma 4 text stack. `num_experts` 0 is a dense model, `canvas_length` 0 one without canvas.

    `tensor_prefix` is what the stack's tensors are called by in the checkpoint. In place of
    `placeholder_token_ids`, where an image, video or sound would be, padding is embedded.
    """

    architecture: Architecture
    tensor_prefix: str
    hidden_size: int
    layers: tuple[LayerConfig, ...]
    num_attention_heads: int
    intermediate_size: int
    num_experts: int
    top_k_experts: int
    moe_intermediate_size: int
    vocab_size: int
    sliding_window: int
    max_position_embeddings: int
    rms_norm_eps: float
    final_logit_softcapping: float | None
    canvas_length: int
    end_token_ids: frozenset[int]
    pad_token_id: int
    placeholder_token_ids: frozenset[int] = frozenset()

    def embedded_ids(self, token_ids: "Tensor") -> "Tensor":
        """The tokens [...] whose embeddings a causal pass reads for these tokens.

        Gemma4ForConditionalGeneration of transformers does the same, with text alone too.
        """
        for placeholder in self.placeholder_token_ids:
            token_ids = token_ids.masked_fill(token_ids == placeholder, self.pad_token_id)
        return token_ids

    @classmethod
    def from_directory(cls, path: str | Path) -> Self:
        """The configuration of the model folder `path`; CheckpointError if it cannot be run."""
        directory = Path(path)
        refuse_foreign(directory)
        top = Fields.read(directory / "config.json")
        model_type = top.choice("model_type", _MODEL_TYPES)
        nested = model_type != "gemma4_text"
        text = top.section("text_config") if nested else top
        for fields in (top, text):
            _refuse_unsupported(fields)
        diffusion = model_type == "diffusion_gemma"
        moe = diffusion or bool(text.get("enable_moe_block"))
        prefix = "model.decoder." if diffusion else "model.language_model." if nested else "model."
        return cls(
            architecture="diffusion_gemma" if diffusion else "gemma4",
            tensor_prefix=prefix,
            hidden_size=text.whole("hidden_size"),
            layers=_layers(text, diffusion),
            num_attention_heads=text.whole("num_attention_heads"),
            intermediate_size=text.whole("intermediate_size"),
            num_experts=text.whole("num_experts") if moe else 0,
            top_k_experts=text.whole("top_k_experts", most="num_experts") if moe else 0,
            moe_intermediate_size=text.whole("moe_intermediate_size") if moe else 0,
            vocab_size=text.whole("vocab_size"),
            sliding_window=text.whole("sliding_window"),
            max_position_embeddings=text.whole("max_position_embeddings"),
            rms_norm_eps=text.positive("rms_norm_eps", most=1.0),
            final_logit_softcapping=text.positive_or_none("final_logit_softcapping"),
            canvas_length=_canvas_length(top, text) if diffusion else 0,
            end_token_ids=read_end_token_ids(directory),
            pad_token_id=text.whole("pad_token_id", least=0),
            placeholder_token_ids=_placeholders(top) if nested and not diffusion else frozenset(),
        )


def _placeholders(top: Fields) -> frozenset[int]:
    named = [key for key in _PLACEHOLDERS if top.get(key) is not None]
    return frozenset(top.whole(key, least=0) for key in named)


def _canvas_length(top: Fields, text: Fields) -> int:
    length, most = top.whole("canvas_length"), text.whole("max_position_embeddings")
    if length > most:
        raise top.error("canvas_length", f"{length} is more than max_position_embeddings, {most}")
    return length


def _refuse_unsupported(fields: Fields) -> None:
    for key, harmless in _UNSUPPORTED.items():
        if key in fields and fields.get(key) not in harmless:
            allowed = " or ".join(json.dumps(value) for value in harmless)
            raise fields.error(key, f"{fields.get(key)!r} is not supported, only {allowed}")


def _layers(text: Fields, diffusion: bool) -> tuple[LayerConfig, ...]:
    kinds = text.list_of("layer_types", _KINDS)
    if len(kinds) != text.whole("num_hidden_layers"):
        raise text.error("layer_types", f"{len(kinds)} entries for num_hidden_layers layers")
    key_is_value = diffusion or bool(text.get("attention_k_eq_v"))
    overrides = _overrides(text, kinds, key_is_value)
    return tuple(
        _layer(text, kind, overrides.get(index, {}), key_is_value)
        for index, kind in enumerate(kinds)
    )


def _overrides(text: Fields, kinds: list[str], key_is_value: bool) -> dict[int, Mapping[str, Any]]:
    """What single layers do differently, from either of the two published spellings."""
    if "per_layer_config" in text:
        section = text.section("per_layer_config")
        overrides: dict[int, Mapping[str, Any]] = {}
        for key in section.values:  # as wide as the largest index: "05"
            index = int(key) if key.isascii() and key.isdigit() and len(key) < 9 else len(kinds)
            if index >= len(kinds):
                raise section.error(key, f"not the index of one of the {len(kinds)} layers")
            if index in overrides:
                raise section.error(key, f"layer {index} is there twice")
            overrides[index] = section.section(key).values
        return overrides
    of_full: dict[str, Any] = {"head_dim": text.whole("global_head_dim")}
    if key_is_value and text.get("num_global_key_value_heads") is not None:
        of_full["num_key_value_heads"] = text.whole("num_global_key_value_heads")
    return {index: of_full for index, kind in enumerate(kinds) if kind == "full_attention"}


def _layer(
    text: Fields, kind: str, overrides: Mapping[str, Any], key_is_value: bool
) -> LayerConfig:
    for key in overrides:
        if key not in ("head_dim", "num_key_value_heads"):
            raise text.error(f"per_layer_config.*.{key}", "is not supported for single layers")
    own = Fields(text.file, {**text.values, **overrides}, text.prefix)
    num_key_value_heads = own.whole("num_key_value_heads")
    if own.whole("num_attention_heads") % num_key_value_heads:
        raise own.error("num_key_value_heads", "must divide num_attention_heads")
    head_dim = own.whole("head_dim")
    if head_dim % 2:
        raise own.error("head_dim", f"{head_dim} is odd; rotary embedding turns pairs")
    theta, fraction = _rope(text.section("rope_parameters").section(kind))
    return LayerConfig(
        kind=_KINDS[kind],
        head_dim=head_dim,
        num_key_value_heads=num_key_value_heads,
        key_is_value=key_is_value and kind == "full_attention",
        rope_theta=theta,
        rotary_fraction=fraction,
    )


def _rope(rope: Fields) -> tuple[float, float]:
    kind = rope.choice("rope_type", ("default", "proportional"))
    if rope.get("factor") not in (None, 1, 1.0):
        raise rope.error("factor", f"{rope.get('factor')!r} is not supported, only 1")
    theta = rope.positive("rope_theta")
    if kind == "proportional":
        return theta, rope.positive("partial_rotary_factor", most=1.0)
    if rope.get("partial_rotary_factor") not in (None, 1.0):
        raise rope.error("partial_rotary_factor", "needs the rope_type 'proportional'")
    return theta, 1.0


def read_end_token_ids(path: str | Path) -> frozenset[int]:
    """Tokens that end an answer; `generation_config.json` says more than `config.json`."""
    directory = Path(path)
    generation, top = directory / "generation_config.json", Fields.read(directory / "config.json")
    sources = [Fields.read(generation)] if generation.exists() else []
    text = [top.section("text_config")] if "text_config" in top else []
    for fields in (*sources, top, *text):
        ids = fields.get("eos_token_id")
        ids = [ids] if isinstance(ids, int) else ids
        if ids is not None:
            if not isinstance(ids, list) or not ids or not all(isinstance(i, int) for i in ids):
                raise fields.error("eos_token_id", f"{ids!r} is not a token or a list of tokens")
            return frozenset(ids)
    raise CheckpointError(str(directory / "config.json"), "eos_token_id: missing")
