"""A checkpoint's tensors in the form in which the engine's kernels read them.

Matrices that are stored in NVFP4 stay in it, re-tiled; all else takes the engine's dtype. Tensors
go to the device one at a time, so what is needed beside the model is one expert on the device and,
of the host, what it maps of the file it reads.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hybrid.gemma.checkpoint import FLOATS, Checkpoint
from hybrid.gemma.config import GemmaConfig, LayerConfig
from hybrid.gemma.quantized import ACTIVATION_SCALES, MatrixReader, StoredMatrix, read_convention
from hybrid.gemma.weights import TOWERS
from hybrid.kernels.native import NativeMatrix, native_matrix
from hybrid.kernels.nvfp4 import PackedMatrix, pack_matrix
from hybrid.types import Activations

# Heads are normalised and rotated in the kernel that multiplies: no native one does that.
HeadMatrix = Tensor | PackedMatrix
Matrix = HeadMatrix | NativeMatrix


@dataclass(frozen=True, slots=True)
class AttentionWeights:
    """Norms [H], [D] and [D]; `query_key_value` [heads * D, H]; `output` [H, query heads * D]."""

    input_norm: Tensor
    query_key_value: HeadMatrix
    query_norm: Tensor
    key_norm: Tensor
    output: Matrix
    post_norm: Tensor


@dataclass(frozen=True, slots=True)
class ExpertWeights:
    """`gate_up` E x [2 * I, H], gate and up rows alternating; `down` E x [H, I].

    `router` [E, H] with `router_scale` [H]; `expert_scale` float32 [E]; norms [H].
    """

    input_norm: Tensor
    router: Tensor
    router_scale: Tensor
    expert_scale: Tensor
    gate_up: Matrix
    down: Matrix
    dense_norm: Tensor
    expert_norm: Tensor


@dataclass(frozen=True, slots=True)
class FeedForwardWeights:
    """`gate_up` [2 * I, H], gate and up rows alternating; `down` [H, I]; norms [H]."""

    input_norm: Tensor
    gate_up: Matrix
    down: Matrix
    post_norm: Tensor
    experts: ExpertWeights | None


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One layer. The scalars multiply the residual stream at its end."""

    attention: AttentionWeights
    feed_forward: FeedForwardWeights
    encode_scalar: float
    denoise_scalar: float


@dataclass(frozen=True, slots=True)
class SelfConditioningWeights:
    """The gated MLP on the previous step's soft embedding; `gate_up` rows alternate."""

    pre_norm: Tensor
    gate_up: Matrix
    down: Matrix


@dataclass(frozen=True, slots=True)
class EngineWeights:
    """The whole stack; `skipped` names the tensors in the files that it has no use for."""

    embedding: Tensor
    layers: tuple[LayerWeights, ...]
    norm: Tensor
    self_conditioning: SelfConditioningWeights | None
    skipped: tuple[str, ...]


def read_weights(
    checkpoint: Checkpoint,
    config: GemmaConfig,
    device: torch.device,
    dtype: torch.dtype,
    activations: Activations = "float",
) -> EngineWeights:
    """All weights of the stack; CheckpointError for any that is missing, wrong or too many.

    `activations` "nvfp4" makes native matrices of what is stored in NVFP4, but for the heads'.
    """
    reader = _Reader(checkpoint, config, device, dtype, activations)
    diffusion = config.architecture == "diffusion_gemma"
    embedding = reader.tensor("embed_tokens.weight", (config.vocab_size, config.hidden_size))
    layers = tuple(reader.layer(index) for index in range(len(config.layers)))
    norm = reader.norm("norm")
    conditioning = reader.self_conditioning() if diffusion else None
    skipped = checkpoint.skip(TOWERS, ACTIVATION_SCALES)
    checkpoint.refuse_unread()
    return EngineWeights(embedding, layers, norm, conditioning, skipped)


class _Reader:
    """Reads by the names inside a stack."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        config: GemmaConfig,
        device: torch.device,
        dtype: torch.dtype,
        activations: Activations,
    ) -> None:
        self.checkpoint, self.config = checkpoint, config
        self.device, self.dtype, self.activations = device, dtype, activations
        self.matrices = MatrixReader(checkpoint, read_convention(checkpoint.directory))

    def tensor(self, name: str, shape: Sequence[int]) -> Tensor:
        stored = self.checkpoint.read(self.config.tensor_prefix + name, shape, FLOATS)
        return stored.to(self.device, self.dtype)

    def norm(self, name: str, size: int = 0) -> Tensor:
        return self.tensor(f"{name}.weight", (size or self.config.hidden_size,))

    def matrix(self, name: str, rows: int, columns: int) -> Matrix:
        """A linear layer."""
        return _for(self.activations, self.stacked([name], [rows], columns))

    def stacked(self, names: Sequence[str], rows: Sequence[int], columns: int) -> HeadMatrix:
        """Linear layers that read the same input, one below the other."""
        names = [self.config.tensor_prefix + name for name in names]
        shapes = [(height, columns) for height in rows]
        pairs = [*zip(names, shapes, strict=True)]
        if all(self.matrices.is_quantized(name) for name in names):
            stored = [self.matrices.stored(name, shape) for name, shape in pairs]
            return pack_matrix(
                torch.cat([part.packed for part in stored])[None].to(self.device),
                torch.cat([_bytes(part.scales) for part in stored])[None]
                .to(self.device)
                .view(torch.float8_e4m3fn),
                torch.cat([self.factors(part) for part in stored])[None],
            )
        read = [self.matrices.read(name, shape) for name, shape in pairs]
        return torch.cat([part.to(self.device, self.dtype) for part in read])

    def woven(self, prefix: str, rows: int, columns: int) -> Matrix:
        """Gate and up, their rows alternating."""
        names = [f"{self.config.tensor_prefix}{prefix}{part}_proj" for part in ("gate", "up")]
        if all(self.matrices.is_quantized(name) for name in names):
            pair = (self.matrices.stored(name, (rows, columns)) for name in names)
            return _for(self.activations, self.packed_pair(*pair))
        gate, up = (self.matrices.read(name, (rows, columns)) for name in names)
        return _weave(gate.to(self.device, self.dtype), up.to(self.device, self.dtype))

    def packed_pair(self, gate: StoredMatrix, up: StoredMatrix) -> PackedMatrix:
        """Two stored matrices as one [1, 2 * N, K], their rows alternating."""
        scales = _weave(_bytes(gate.scales), _bytes(up.scales)).to(self.device)
        return pack_matrix(
            _weave(gate.packed, up.packed).to(self.device)[None],
            scales[None].view(torch.float8_e4m3fn),
            _weave(self.factors(gate), self.factors(up))[None],
        )

    def factors(self, stored: StoredMatrix) -> Tensor:
        """One factor a row."""
        return torch.full((len(stored.packed),), stored.factor, device=self.device)

    def layer(self, index: int) -> LayerWeights:
        prefix = f"layers.{index}."
        denoise_scalar = self.tensor(f"{prefix}layer_scalar", (1,)).item()
        encode_scalar = denoise_scalar
        if self.config.architecture == "diffusion_gemma":
            name = f"model.encoder.language_model.{prefix}layer_scalar"
            encode_scalar = self.checkpoint.read(name, (1,), FLOATS).float().item()
        return LayerWeights(
            self.attention(prefix, self.config.layers[index]),
            self.feed_forward(prefix),
            encode_scalar,
            denoise_scalar,
        )

    def attention(self, prefix: str, layer: LayerConfig) -> AttentionWeights:
        hidden, head_dim = self.config.hidden_size, layer.head_dim
        name, queries = f"{prefix}self_attn.", self.config.num_attention_heads * head_dim
        parts = [("q_proj", queries), ("k_proj", layer.num_key_value_heads * head_dim)]
        if not layer.key_is_value:
            parts.append(("v_proj", layer.num_key_value_heads * head_dim))
        names, rows = [name + part for part, _ in parts], [height for _, height in parts]
        return AttentionWeights(
            input_norm=self.norm(f"{prefix}input_layernorm"),
            query_key_value=self.stacked(names, rows, hidden),
            query_norm=self.norm(f"{name}q_norm", head_dim),
            key_norm=self.norm(f"{name}k_norm", head_dim),
            output=self.matrix(f"{name}o_proj", hidden, queries),
            post_norm=self.norm(f"{prefix}post_attention_layernorm"),
        )

    def feed_forward(self, prefix: str) -> FeedForwardWeights:
        hidden, intermediate = self.config.hidden_size, self.config.intermediate_size
        return FeedForwardWeights(
            input_norm=self.norm(f"{prefix}pre_feedforward_layernorm"),
            gate_up=self.woven(f"{prefix}mlp.", intermediate, hidden),
            down=self.matrix(f"{prefix}mlp.down_proj", hidden, intermediate),
            post_norm=self.norm(f"{prefix}post_feedforward_layernorm"),
            experts=self.experts(prefix) if self.config.num_experts else None,
        )

    def experts(self, prefix: str) -> ExpertWeights:
        hidden, count = self.config.hidden_size, self.config.num_experts
        gate_up, down = self.expert_matrices(f"{prefix}experts.")
        name = f"{self.config.tensor_prefix}{prefix}router.per_expert_scale"
        return ExpertWeights(
            input_norm=self.norm(f"{prefix}pre_feedforward_layernorm_2"),
            router=self.tensor(f"{prefix}router.proj.weight", (count, hidden)),
            router_scale=self.tensor(f"{prefix}router.scale", (hidden,)),
            expert_scale=self.checkpoint.read(name, (count,), FLOATS).to(self.device).float(),
            gate_up=gate_up,
            down=down,
            dense_norm=self.norm(f"{prefix}post_feedforward_layernorm_1"),
            expert_norm=self.norm(f"{prefix}post_feedforward_layernorm_2"),
        )

    def expert_matrices(self, prefix: str) -> tuple[Matrix, Matrix]:
        """All experts' gate and up, and down, one expert at a time."""
        hidden, inner = self.config.hidden_size, self.config.moe_intermediate_size
        gate_up, down = _Stack(self.config.num_experts), _Stack(self.config.num_experts)
        if f"{self.config.tensor_prefix}{prefix}gate_up_proj" in self.checkpoint:
            self.fused_experts(prefix, gate_up, down)
        else:
            for expert in range(self.config.num_experts):
                name = f"{prefix}{expert}."
                gate_up.put(expert, self.woven(name, inner, hidden))
                down.put(expert, self.matrix(f"{name}down_proj", hidden, inner))
        return gate_up.whole(), down.whole()

    def fused_experts(self, prefix: str, gate_up: "_Stack", down: "_Stack") -> None:
        """Experts that share a tensor, [E, 2 * I, H] with gate rows first, and [E, H, I]."""
        count, hidden = self.config.num_experts, self.config.hidden_size
        inner, start = self.config.moe_intermediate_size, self.config.tensor_prefix + prefix
        first = self.checkpoint.read(f"{start}gate_up_proj", (count, 2 * inner, hidden), FLOATS)
        second = self.checkpoint.read(f"{start}down_proj", (count, hidden, inner), FLOATS)
        for expert in range(count):
            gate, up = first[expert].to(self.device, self.dtype).chunk(2)
            gate_up.put(expert, _weave(gate, up))
            down.put(expert, second[expert].to(self.device, self.dtype))

    def self_conditioning(self) -> SelfConditioningWeights:
        hidden, intermediate = self.config.hidden_size, self.config.intermediate_size
        return SelfConditioningWeights(
            pre_norm=self.norm("self_conditioning.pre_norm"),
            gate_up=self.woven("self_conditioning.", intermediate, hidden),
            down=self.matrix("self_conditioning.down_proj", hidden, intermediate),
        )


class _Stack:
    """Matrices of `count` experts in one block of memory, made when the first one is put there."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._tensors: tuple[Tensor, ...] = ()
        self._like: Matrix | None = None

    def put(self, index: int, matrix: Matrix) -> None:
        """Take over one expert's matrix; all must be of one form."""
        parts = _parts(matrix)
        if not self._tensors:
            self._like = matrix
            self._tensors = tuple(part.new_empty(self._count, *part.shape) for part in parts)
        for whole, part in zip(self._tensors, parts, strict=True):
            whole[index].copy_(part)

    def whole(self) -> Matrix:
        """All of them."""
        like = self._like
        if like is None or isinstance(like, Tensor):
            return self._tensors[0]
        codes, scales, factors = self._tensors
        kind = type(like)
        return kind(codes, scales.view(torch.float8_e4m3fn), factors, like.rows, like.columns)


def _for(activations: Activations, matrix: HeadMatrix) -> Matrix:
    """A matrix in the form in which it multiplies such activations."""
    if activations == "nvfp4" and isinstance(matrix, PackedMatrix):
        return native_matrix(matrix)
    return matrix


def _parts(matrix: Matrix) -> tuple[Tensor, ...]:
    if isinstance(matrix, Tensor):
        return (matrix,)
    codes = matrix.words if isinstance(matrix, PackedMatrix) else matrix.codes
    return codes[0], _bytes(matrix.scales[0]), matrix.factors[0]


def _bytes(scales: Tensor) -> Tensor:
    """e4m3 numbers as bytes: torch concatenates and copies those everywhere."""
    return scales.view(torch.uint8)


def _weave(first: Tensor, second: Tensor) -> Tensor:
    """Two tensors' rows in turn."""
    return torch.stack((first, second), 1).flatten(0, 1)


def random_weights(
    config: GemmaConfig,
    device: torch.device,
    dtype: torch.dtype,
    packed: Collection[str] = ("experts",),
    seed: int = 0,
) -> EngineWeights:
    """Weights of the size that a trained model's have, made on the device: for measuring speed.

    `packed` names what is in NVFP4: "experts", "mlp", "attention".
    """
    return _Random(config, device, dtype, packed, seed).weights()


class _Random:
    """Numbers with which activations keep their size from layer to layer."""

    def __init__(
        self,
        config: GemmaConfig,
        device: torch.device,
        dtype: torch.dtype,
        packed: Collection[str],
        seed: int,
    ) -> None:
        self.config, self.device, self.dtype, self.packed = config, device, dtype, packed
        self.generator = torch.Generator(device).manual_seed(seed)

    def weights(self) -> EngineWeights:
        hidden = self.config.hidden_size
        conditioning = None
        if self.config.canvas_length:
            conditioning = SelfConditioningWeights(self.norm(hidden), *self.dense("", hidden))
        return EngineWeights(
            embedding=self.plain(1, self.config.vocab_size, hidden)[0],
            layers=tuple(self.layer(layer) for layer in self.config.layers),
            norm=self.norm(hidden),
            self_conditioning=conditioning,
            skipped=(),
        )

    def layer(self, layer: LayerConfig) -> LayerWeights:
        hidden, head_dim = self.config.hidden_size, layer.head_dim
        queries = self.config.num_attention_heads * head_dim
        keys = layer.num_key_value_heads * head_dim * (1 if layer.key_is_value else 2)
        attention = AttentionWeights(
            input_norm=self.norm(hidden),
            query_key_value=self.matrix("attention", queries + keys, hidden),
            query_norm=self.norm(head_dim) * head_dim**-0.5,
            key_norm=self.norm(head_dim),
            output=self.matrix("attention", hidden, queries),
            post_norm=self.norm(hidden),
        )
        gate_up, down = self.dense("mlp", hidden)
        experts = self.experts(hidden) if self.config.num_experts else None
        feed_forward = FeedForwardWeights(
            self.norm(hidden), gate_up, down, self.norm(hidden), experts
        )
        return LayerWeights(attention, feed_forward, 0.9, 0.9)

    def experts(self, hidden: int) -> ExpertWeights:
        count, inner = self.config.num_experts, self.config.moe_intermediate_size
        return ExpertWeights(
            input_norm=self.norm(hidden),
            router=self.plain(1, count, hidden)[0],
            router_scale=self.norm(hidden) * hidden**0.5,
            expert_scale=torch.ones(count, device=self.device),
            gate_up=self.stack("experts", count, 2 * inner, hidden),
            down=self.stack("experts", count, hidden, inner),
            dense_norm=self.norm(hidden),
            expert_norm=self.norm(hidden),
        )

    def dense(self, part: str, hidden: int) -> tuple[HeadMatrix, HeadMatrix]:
        inner = self.config.intermediate_size
        return self.matrix(part, 2 * inner, hidden), self.matrix(part, hidden, inner)

    def matrix(self, part: str, rows: int, columns: int) -> HeadMatrix:
        if part in self.packed:
            return self.packed_matrix(rows, columns)
        return self.plain(1, rows, columns)[0]

    def stack(self, part: str, count: int, rows: int, columns: int) -> Matrix:
        if part not in self.packed:
            return self.plain(count, rows, columns)
        stack = _Stack(count)
        for index in range(count):
            stack.put(index, self.packed_matrix(rows, columns))
        return stack.whole()

    def packed_matrix(self, rows: int, columns: int) -> PackedMatrix:
        packed = self.bytes_below(256, 1, rows, columns // 2)
        # From 0.5 to 1.875; uniform codes have a mean square of 8.6.
        scales = self.bytes_below(16, 1, rows, columns // 16) + 0x30
        factors = torch.full((1, rows), columns**-0.5 / 3.4, device=self.device)
        return pack_matrix(packed, scales.view(torch.float8_e4m3fn), factors)

    def plain(self, count: int, rows: int, columns: int) -> Tensor:
        weight = torch.empty(count, rows, columns, device=self.device, dtype=self.dtype)
        return weight.normal_(0, columns**-0.5, generator=self.generator)

    def norm(self, size: int) -> Tensor:
        weight = torch.empty(size, device=self.device, dtype=self.dtype)
        return weight.normal_(1, 0.1, generator=self.generator)

    def bytes_below(self, limit: int, *shape: int) -> Tensor:
        return torch.randint(
            limit, shape, device=self.device, dtype=torch.uint8, generator=self.generator
        )
