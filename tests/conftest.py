"""Random models of many geometries, made by transformers and saved as model folders.

Without a GPU, kernels run in Triton's interpreter, which has to be asked for before Triton is
imported, and corrected after.
"""

import importlib.util
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # small models; also in commands

import torch
from tokenizers import Tokenizer, models, pre_tokenizers

if not torch.cuda.is_available() and importlib.util.find_spec("triton"):
    os.environ["TRITON_INTERPRET"] = "1"


if TYPE_CHECKING:
    from hybrid.conversation.tokenizer import ChatTokenizer


# A property's example may take long where others load the machine.
hypothesis.settings.register_profile("hybrid", deadline=None)
hypothesis.settings.load_profile("hybrid")
# A shell's background jobs ignore Ctrl-C, and so would every test of it.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--fast",
        action="store_true",
        help="the first case of every test, without tests marked slow: every folder in 90 seconds",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--fast"):
        return
    first: dict[str, pytest.Item] = {}
    for item in items:
        if not item.get_closest_marker("slow"):
            first.setdefault(item.nodeid.partition("[")[0], item)
    chosen = [item for item in items if first.get(item.nodeid.partition("[")[0]) is item]
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = chosen


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("marked gpu: it runs kernels on a CUDA device, and there is none")


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing that was measured or compiled for the user takes part in a test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


ROPE = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
    "full_attention": {
        "rope_type": "proportional",
        "partial_rotary_factor": 0.25,
        "rope_theta": 1_000_000.0,
    },
}
BASE: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "global_head_dim": 32,
    "num_global_key_value_heads": 1,
    "sliding_window": 12,
    "max_position_embeddings": 512,
    "final_logit_softcapping": 30.0,
    "rope_parameters": ROPE,
    "num_experts": 4,
    "top_k_experts": 2,
    "moe_intermediate_size": 16,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
}
GEMMA4: dict[str, Any] = {
    "hidden_size_per_layer_input": 0,
    "num_kv_shared_layers": 0,
    "vocab_size_per_layer_input": 61,
    "attention_k_eq_v": True,
    "enable_moe_block": False,
}
VISION: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "patch_size": 4,
    "position_embedding_size": 8,
}


def _randomise(model: torch.nn.Module, seed: int) -> None:
    """Every tensor that training would move gets its own value, norms and scalars included."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if "vision" in name or "embed_scale" in name or not tensor.is_floating_point():
            continue
        noise = torch.randn(tensor.shape, generator=generator)
        if name.endswith("layer_scalar"):
            tensor.copy_(0.9 + 0.1 * noise.abs())
        elif tensor.dim() == 1:
            q_norm = name.endswith("q_norm.weight")
            tensor.copy_((1 + 0.2 * noise) * (tensor.numel() ** -0.5 if q_norm else 1.0))
        else:
            tensor.copy_(noise * tensor.shape[-1] ** -0.5)


@pytest.fixture(scope="session")
def make_diffusion(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Any, Path]]:
    """Call with text configuration overrides: a DiffusionGemma and the folder it is saved in."""
    from transformers import (
        DiffusionGemmaConfig,
        DiffusionGemmaForBlockDiffusion,
        DiffusionGemmaTextConfig,
        Gemma4VisionConfig,
    )

    def make(canvas_length: int = 6, seed: int = 0, **overrides: Any) -> tuple[Any, Path]:
        config = DiffusionGemmaConfig(
            text_config=DiffusionGemmaTextConfig(**{**BASE, **overrides}),
            vision_config=Gemma4VisionConfig(**VISION),
            canvas_length=canvas_length,
            boi_token_id=7,
            eoi_token_id=8,
            image_token_id=9,
            eos_token_id=[1, 5],
        )
        config._experts_implementation = "eager"
        model = DiffusionGemmaForBlockDiffusion(config).eval()
        _randomise(model, seed)
        folder = tmp_path_factory.mktemp("diffusion")
        model.save_pretrained(folder)
        return model, folder

    return make


@pytest.fixture(scope="session")
def make_causal(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Any, Path]]:
    """Call with text configuration overrides: a Gemma4ForCausalLM and its folder."""
    from transformers import Gemma4ForCausalLM, Gemma4TextConfig

    def make(seed: int = 0, **overrides: Any) -> tuple[Any, Path]:
        config = Gemma4TextConfig(**{**BASE, **GEMMA4, **overrides})
        config._experts_implementation = "eager"
        model = Gemma4ForCausalLM(config).eval()
        _randomise(model, seed)
        folder = tmp_path_factory.mktemp("causal")
        model.save_pretrained(folder)
        return model, folder

    return make


@pytest.fixture(scope="session")
def word_tokenizer() -> "ChatTokenizer":
    """One token a word, w0 to w60, and prompts as they are written."""
    from hybrid.conversation.template import ChatTemplate
    from hybrid.conversation.tokenizer import ChatTokenizer

    words = {f"w{index}": index for index in range(61)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return ChatTokenizer(tokenizer, ChatTemplate("{{ messages[-1].content }}"))
