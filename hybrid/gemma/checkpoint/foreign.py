"""Model folders of other formats, refused with what to do instead."""

from pathlib import Path

from hybrid.errors import CheckpointError
from hybrid.gemma.fields import Fields

_ASK_FOR = "give the folder in Hugging Face form (safetensors, bfloat16 or NVFP4)"
_SERVE = "or serve it with its own program and name that server with `backend: vllm`"
CALIBRATED = (".kv_scale", ".output_scale", ".q_scale", ".prob_scale", ".kv_cache_scale")


def refuse_foreign(folder: Path) -> None:
    """Raise CheckpointError for a folder of GGUF, MLX or pickled weights; others pass."""
    config = folder / "config.json"
    has_tensors = any(folder.glob("*.safetensors"))
    gguf = next(iter(sorted(folder.glob("*.gguf"))), None)
    if gguf is not None and not has_tensors:
        message = f"GGUF weights (llama.cpp) are not read; {_ASK_FOR}, {_SERVE}"
        raise CheckpointError(str(gguf), message)
    pickled = next(iter(sorted(folder.glob("pytorch_model*.bin"))), None)
    if pickled is not None and not has_tensors:
        message = f"pickled weights can run code and are not read; {_ASK_FOR}"
        raise CheckpointError(str(pickled), message)
    if config.is_file():
        quantization = Fields.read(config).get("quantization")
        if isinstance(quantization, dict) and "bits" in quantization:
            fields = Fields.read(config)
            raise fields.error("quantization", f"an MLX folder (Apple) is not read; {_ASK_FOR}")


def explain_unread(names: list[str]) -> str:
    """What to do about tensors that a model has no place for; empty where nothing is known."""
    if all(name.endswith(CALIBRATED) for name in names):
        return (
            "; these scale an 8-bit cache or 8-bit activations, which are not used here: write the "
            "folder again without kv_cache_scheme and output_activations"
        )
    if any(name.endswith((".scales", ".biases")) for name in names):
        return f"; these look like MLX's quantization (Apple): {_ASK_FOR}"
    return ""
