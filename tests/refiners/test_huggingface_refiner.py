"""The refiner on transformers' forward passes: the native one's answers, for any Gemma 4."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from hybrid.conversation.tokenizer import ChatTokenizer
from hybrid.deadline import Deadline
from hybrid.embedded import weights_path
from hybrid.embedded.tasks import TASKS, evaluation_set
from hybrid.errors import CheckpointError
from hybrid.refiners.gemma import GemmaRefiner
from hybrid.refiners.huggingface import HuggingFaceRefiner, TransformersCausal
from hybrid.refiners.refine import write_alone
from hybrid.types import Request
from tests.refiners.numbers import NumberTokenizer

LIMIT = 24
GEOMETRIES: dict[str, dict[str, Any]] = {
    "window of 4": {"sliding_window": 4},
    "experts": {"enable_moe_block": True, "sliding_window": 8},
    "inputs a layer": {"hidden_size_per_layer_input": 8, "sliding_window": 6},
    "shared keys": {
        "num_hidden_layers": 6,
        "layer_types": ["sliding_attention", "full_attention"] * 3,
        "num_kv_shared_layers": 2,
        "hidden_size_per_layer_input": 8,
        "attention_k_eq_v": False,
    },
}


def test_the_embedded_refiner_answers_alike() -> None:
    folder = weights_path("refiner")
    native, other = GemmaRefiner.from_directory(folder), HuggingFaceRefiner.from_directory(folder)
    for task in TASKS:
        for instance in evaluation_set(task, 1):
            request = Request(instance.prompt)
            alone = write_alone(native, request, LIMIT, Deadline())
            assert write_alone(other, request, LIMIT, Deadline()).token_ids == alone.token_ids
            ours, theirs = native.open(request, LIMIT), other.open(request, LIMIT)
            draft = (*alone.token_ids[:3], 9, 9)
            first, second = ours.score(draft), theirs.score(draft)
            assert second.choices == first.choices
            assert second.logprobs == pytest.approx(first.logprobs, abs=1e-4)


@pytest.mark.parametrize("name", GEOMETRIES)
def test_rewinding_leaves_no_trace_behind_a_window_that_has_moved_on(
    name: str, make_causal: Callable[..., tuple[Any, Path]]
) -> None:
    """Write, read something else, go back and write again; each time as one long pass would."""
    reference, _ = make_causal(eos_token_id=60, **GEOMETRIES[name])
    model = TransformersCausal(reference, frozenset({60}))
    refiner = GemmaRefiner(model, cast(ChatTokenizer, NumberTokenizer()))
    prompt = [*range(3, 23)]
    session = refiner.open(Request(" ".join(map(str, prompt))), LIMIT)
    written, _ = session.write((), LIMIT)
    assert written == greedy(reference, prompt, LIMIT)
    session.rewind(2)
    session.score((7, 8, 9))
    session.rewind(3)
    kept = [*written[:2], 7]
    following, _ = session.write((), 8)
    assert following == greedy(reference, [*prompt, *kept], 8)


def greedy(reference: Any, ids: list[int], count: int) -> tuple[int, ...]:
    """By reading everything anew for every token."""
    written: list[int] = []
    with torch.inference_mode():
        while len(written) < count and written[-1:] != [60]:
            batch = torch.tensor([[*ids, *written]])
            written.append(int(reference(batch, use_cache=False).logits[0, -1].argmax()))
    return tuple(written)


def test_a_multimodal_folder_is_read_for_its_text(
    make_causal: Callable[..., tuple[Any, Path]], tmp_path: Path
) -> None:
    from transformers import Gemma4Config, Gemma4ForConditionalGeneration

    from hybrid.refiners.huggingface import _load

    reference, _ = make_causal(eos_token_id=60)
    config = Gemma4Config(text_config=reference.config, vision_config=None, audio_config=None)
    whole = Gemma4ForConditionalGeneration(config).eval()
    whole.model.language_model.load_state_dict(reference.model.state_dict())
    whole.save_pretrained(tmp_path)
    model = TransformersCausal(_load(tmp_path, "cpu"), frozenset({60}))
    refiner = GemmaRefiner(model, cast(ChatTokenizer, NumberTokenizer()))
    prompt = [*range(3, 13)]
    written, _ = refiner.open(Request(" ".join(map(str, prompt))), 8).write((), 8)
    assert written == greedy(reference, prompt, 8)


def test_what_is_no_gemma_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    with pytest.raises(CheckpointError, match="LlamaForCausalLM"):
        HuggingFaceRefiner.from_directory(tmp_path)
