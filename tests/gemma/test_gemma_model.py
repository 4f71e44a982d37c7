"""Both native stacks against transformers: same logits, hidden states, caches and answers.

The engine runs on the CPU here, every kernel as its reference.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hybrid.engine.load import load_engine
from hybrid.engine.model import EngineModel
from hybrid.gemma.model.cache import Cache
from hybrid.gemma.model.gemma import GemmaModel, load_model

Model = GemmaModel | EngineModel
Load = Callable[[Path], Model]
CANVAS = 6
FULL, SLIDING = "full_attention", "sliding_attention"
ROPE_HALF = {
    SLIDING: {"rope_type": "default", "rope_theta": 500.0},
    FULL: {"rope_type": "proportional", "partial_rotary_factor": 0.5, "rope_theta": 9000.0},
}
DIFFUSION: dict[str, dict[str, Any]] = {
    "three layers": {},
    "five to one": {"num_hidden_layers": 6, "layer_types": [SLIDING] * 5 + [FULL]},
    "many experts": {"num_experts": 12, "top_k_experts": 3},
    "every expert": {"num_experts": 2, "top_k_experts": 2},
    "window below the canvas": {"sliding_window": 4},
    "odd heads": {"num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 8},
    "two global heads": {
        "global_head_dim": 8,
        "num_global_key_value_heads": 2,
        "rope_parameters": ROPE_HALF,
    },
    "full layers only": {"num_hidden_layers": 2, "layer_types": [FULL, FULL]},
    "loud": {"final_logit_softcapping": 3.0, "rms_norm_eps": 1e-3, "num_key_value_heads": 4},
}
CAUSAL: dict[str, dict[str, Any]] = {
    "dense": {},
    "own values": {"attention_k_eq_v": False},
    "experts": {"enable_moe_block": True},
    "no softcap": {"final_logit_softcapping": None, "sliding_window": 5},
    "half rotary": {
        "rope_parameters": ROPE_HALF,
        "num_attention_heads": 5,
        "num_key_value_heads": 1,
    },
}


@dataclass
class Pair:
    """One model twice: as transformers runs it, and natively."""

    reference: Any
    native: Model

    @property
    def window(self) -> int:
        return self.native.config.sliding_window

    def encode(self, token_ids: Sequence[int], past: Any = None) -> tuple[Tensor, Any]:
        """Hidden states [T, H] and the cache, by transformers, one row without padding."""
        ids = torch.tensor([token_ids])
        if hasattr(self.reference.model, "encoder"):
            stack = self.reference.model.encoder.language_model
        else:
            stack = self.reference.model
        output = stack(input_ids=ids, past_key_values=past, use_cache=True)
        return output.last_hidden_state[0], output.past_key_values

    def denoise(self, canvas: Tensor, past: Any, previous: Tensor | None) -> Tensor:
        """Logits [C, V] by transformers."""
        output = self.reference(
            decoder_input_ids=canvas[None],
            past_key_values=past,
            self_conditioning_logits=None if previous is None else previous[None],
        )
        logits: Tensor = output.logits[0]
        return logits

    def soft(self, previous: Tensor | None) -> Tensor:
        """The native self-conditioning input [1, C, H] for a step after `previous` logits."""
        if previous is None:
            return torch.zeros(1, CANVAS, self.native.config.hidden_size)
        return self.native.soft_embed(previous.softmax(-1)[None])


@pytest.fixture(scope="module", params=["cpu", "engine"])
def load(request: pytest.FixtureRequest) -> Load:
    """Loads a folder in one of the two stacks."""
    on_cpu = partial(load_engine, device=torch.device("cpu"), dtype=torch.float32)
    return load_model if request.param == "cpu" else on_cpu


@pytest.fixture(scope="module", params=DIFFUSION, ids=lambda name: name.replace(" ", "-"))
def diffusion(
    request: pytest.FixtureRequest, make_diffusion: Callable[..., tuple[Any, Path]], load: Load
) -> Pair:
    reference, folder = make_diffusion(canvas_length=CANVAS, **DIFFUSION[request.param])
    return Pair(reference, load(folder))


@pytest.fixture(scope="module", params=CAUSAL, ids=lambda name: name.replace(" ", "-"))
def causal(
    request: pytest.FixtureRequest, make_causal: Callable[..., tuple[Any, Path]], load: Load
) -> Pair:
    reference, folder = make_causal(**CAUSAL[request.param])
    return Pair(reference, load(folder))


@pytest.fixture(scope="module")
def plain(make_diffusion: Callable[..., tuple[Any, Path]], load: Load) -> Pair:
    reference, folder = make_diffusion(canvas_length=CANVAS)
    return Pair(reference, load(folder))


@pytest.fixture(autouse=True)
def inference() -> Any:
    with torch.inference_mode():
        yield


def tokens(count: int, seed: int = 0) -> Tensor:
    return torch.randint(3, 61, (count,), generator=torch.Generator().manual_seed(seed))


def read(model: Model, cache: Cache, token_ids: Tensor, row: int = 0) -> Tensor:
    """Hidden states [T, H] of one more stretch in one row."""
    return model.encode(token_ids[None], [len(token_ids)], cache, [row])[0]


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


def same_cache(native: Model, cache: Cache, row: int, reference: Any) -> None:
    """Every key and value that transformers still holds is in its slot."""
    end = cache.count(row)
    for index, layer in enumerate(reference.layers):
        held = layer.keys.shape[2]
        slots = torch.arange(end - held, end) % (cache.keys[index].shape[1] - 1)
        close(cache.keys[index][row, slots], layer.keys[0].transpose(0, 1))
        close(cache.values[index][row, slots], layer.values[0].transpose(0, 1))


@pytest.mark.parametrize("length", [1, 5, 12, 13, 40])
@pytest.mark.parametrize("spare", [None, 3])
def test_a_prompt_and_two_denoising_steps(diffusion: Pair, length: int, spare: int | None) -> None:
    native, prompt, canvas = diffusion.native, tokens(length), tokens(CANVAS, 1)
    hidden, past = diffusion.encode(prompt.tolist())
    cache = native.new_cache(1, 60, spare)
    close(read(native, cache, prompt), hidden)
    same_cache(native, cache, 0, past)
    previous = None
    for _ in range(2):
        logits = native.denoise(canvas[None], diffusion.soft(previous), cache, [0])[0]
        close(logits, diffusion.denoise(canvas, past, previous))
        previous = logits / 0.7
    assert cache.lengths.tolist() == [length]


@pytest.mark.parametrize("spare", [None, 3])
def test_a_committed_canvas_and_the_next(diffusion: Pair, spare: int | None) -> None:
    native, prompt = diffusion.native, tokens(10)
    cache = native.new_cache(1, 60, spare)
    _, past = diffusion.encode(prompt.tolist())
    read(native, cache, prompt)
    for seed in range(1, 4):
        canvas = tokens(CANVAS, seed)
        logits = native.denoise(canvas[None], diffusion.soft(None), cache, [0])[0]
        close(logits, diffusion.denoise(canvas, past, None))
        final = logits.argmax(-1)
        hidden, past = diffusion.encode(final.tolist(), past)
        close(read(native, cache, final), hidden)
        same_cache(native, cache, 0, past)


@pytest.mark.parametrize("spare", [None, 3])
def test_rows_of_different_lengths_share_a_batch(diffusion: Pair, spare: int | None) -> None:
    native, lengths = diffusion.native, [3, 30, 1, 12]
    prompts = [tokens(length, seed) for seed, length in enumerate(lengths)]
    padded = torch.nn.utils.rnn.pad_sequence(prompts, batch_first=True)
    cache = native.new_cache(4, 50, spare)
    hidden = native.encode(padded, torch.tensor(lengths), cache, torch.arange(4))
    canvases = torch.stack([tokens(CANVAS, seed) for seed in range(4)])
    soft = torch.cat([diffusion.soft(None)] * 4)
    logits = native.denoise(canvases, soft, cache, range(4))
    for row, prompt in enumerate(prompts):
        expected, past = diffusion.encode(prompt.tolist())
        close(hidden[row, : len(prompt)], expected)
        same_cache(native, cache, row, past)
        close(logits[row], diffusion.denoise(canvases[row], past, None))


def test_some_rows_of_a_batch(diffusion: Pair) -> None:
    native, prompts = diffusion.native, [tokens(9, seed) for seed in range(4)]
    cache = native.new_cache(4, 50)
    for rows in ([3, 1], [0, 2]):
        native.encode(torch.stack([prompts[row] for row in rows]), [9, 9], cache, rows)
    canvases = torch.stack([tokens(CANVAS, 7), tokens(CANVAS, 8)])
    for rows in ([2, 0], [1, 2]):
        soft = torch.cat([diffusion.soft(None)] * 2)
        logits = native.denoise(canvases, soft, cache, rows)
        for index, row in enumerate(rows):
            _, past = diffusion.encode(prompts[row].tolist())
            close(logits[index], diffusion.denoise(canvases[index], past, None))


@pytest.mark.parametrize("spare", [None, 3])
@pytest.mark.parametrize("chunks", [[20, 20], [1, 11, 1, 27], [39, 1]])
def test_a_prompt_read_in_chunks(diffusion: Pair, chunks: list[int], spare: int | None) -> None:
    native, prompt = diffusion.native, tokens(40)
    cache = native.new_cache(1, 50, spare)
    hidden = torch.cat([read(native, cache, part) for part in torch.split(prompt, chunks)])
    expected, past = diffusion.encode(prompt.tolist())
    close(hidden, expected)
    same_cache(native, cache, 0, past)


@pytest.mark.parametrize("spare", [None, 3])
def test_reading_leaves_the_cache_that_encoding_leaves(diffusion: Pair, spare: int | None) -> None:
    native, lengths = diffusion.native, [3, 30, 1, 12]
    prompts = [tokens(length, seed) for seed, length in enumerate(lengths)]
    padded = torch.nn.utils.rnn.pad_sequence(prompts, batch_first=True)
    encoded, only_read = native.new_cache(4, 50, spare), native.new_cache(4, 50, spare)
    native.encode(padded, lengths, encoded, range(4))
    native.read(padded, lengths, only_read, range(4))
    assert torch.equal(only_read.lengths, encoded.lengths)
    for part in ("keys", "values"):
        for one, other in zip(getattr(only_read, part), getattr(encoded, part), strict=True):
            slots = one.shape[1] - 1
            for row, length in enumerate(lengths):
                held = torch.arange(max(0, length - slots), length) % slots
                assert torch.equal(one[row, held], other[row, held])


def test_no_soft_embedding_is_one_of_zeros(diffusion: Pair) -> None:
    native, prompt, canvas = diffusion.native, tokens(9), tokens(CANVAS, 7)[None]
    cache = native.new_cache(1, 50)
    read(native, cache, prompt)
    zeros = torch.zeros(1, CANVAS, native.config.hidden_size)
    assert torch.equal(
        native.denoise(canvas, None, cache, [0]), native.denoise(canvas, zeros, cache, [0])
    )


def test_many_tokens_find_their_experts(diffusion: Pair) -> None:
    native, prompt = diffusion.native, tokens(200)
    cache = native.new_cache(1, 200)
    hidden = read(native, cache, prompt)
    expected, past = diffusion.encode(prompt.tolist())
    close(hidden, expected)
    same_cache(native, cache, 0, past)


@pytest.mark.parametrize("length", [5, 13, 40])
def test_causal_models(causal: Pair, length: int) -> None:
    native, prompt = causal.native, tokens(length)
    cache = native.new_cache(1, 60)
    hidden, past = causal.encode(prompt.tolist())
    close(read(native, cache, prompt), hidden)
    close(native.logits(hidden), causal.reference(prompt[None]).logits[0])
    same_cache(native, cache, 0, past)


@pytest.mark.parametrize("spare", [None, 1])
def test_greedy_generation_token_for_token(causal: Pair, spare: int | None) -> None:
    native, prompt = causal.native, tokens(10)
    expected = causal.reference.generate(
        prompt[None], max_new_tokens=30, do_sample=False, eos_token_id=None, pad_token_id=0
    )[0, 10:]
    cache = native.new_cache(1, 60, spare)
    written, hidden = [], read(native, cache, prompt)
    for _ in range(30):
        written.append(int(native.logits(hidden[-1]).argmax()))
        hidden = read(native, cache, torch.tensor(written[-1:]))
    assert written == expected.tolist()


@given(st.data())
@settings(deadline=None, max_examples=60)
def test_any_history_of_a_row_ends_like_a_fresh_one(plain: Pair, data: st.DataObject) -> None:
    """Ragged reading, denoising and forgetting in any order leave nothing behind."""
    native = plain.native
    texts: list[list[int]] = [[], [], []]
    cache = native.new_cache(3, 80, data.draw(st.sampled_from([None, 1, 4, 9])))
    for _ in range(data.draw(st.integers(1, 6))):
        rows = data.draw(st.lists(st.integers(0, 2), min_size=1, max_size=3, unique=True))
        action = data.draw(st.sampled_from(["read", "denoise", "forget"]))
        if action == "read":
            new = [
                data.draw(
                    st.lists(st.integers(3, 60), min_size=1, max_size=min(20, 74 - len(text)))
                )
                for text in (texts[row] for row in rows)
            ]
            padded = torch.zeros(len(rows), max(map(len, new)), dtype=torch.long)
            for index, ids in enumerate(new):
                padded[index, : len(ids)] = torch.tensor(ids)
                texts[rows[index]] += ids
            native.encode(padded, [len(ids) for ids in new], cache, rows)
        elif action == "denoise":
            canvas = torch.stack([tokens(CANVAS, row) for row in rows])
            native.denoise(canvas, torch.cat([plain.soft(None)] * len(rows)), cache, rows)
        else:
            keep = [data.draw(st.integers(0, len(texts[row]))) for row in rows]
            for row, length in zip(rows, keep, strict=True):
                if cache.can_rollback(row, length):
                    cache.rollback([row], [length])
                    del texts[row][length:]
    assert cache.lengths.tolist() == [len(text) for text in texts]
    canvas, soft = tokens(CANVAS, 9)[None], plain.soft(None)
    for row, text in enumerate(texts):
        fresh = native.new_cache(1, 80)
        if text:
            read(native, fresh, torch.tensor(text))
        expected = native.denoise(canvas, soft, fresh, [0])
        close(native.denoise(canvas, soft, cache, [row]), expected)


def test_at_least_the_spare_tokens_can_be_forgotten(plain: Pair) -> None:
    native, text = plain.native, tokens(60)
    cache = native.new_cache(1, 70, spare=8)
    read(native, cache, text)
    native.denoise(tokens(CANVAS)[None], plain.soft(None), cache, [0])
    with pytest.raises(ValueError, match=r"row 0.*spare"):
        cache.rollback([0], [51])
    cache.rollback([0], [52])
    again = read(native, cache, text[52:])
    expected, past = plain.encode(text.tolist())
    close(again, expected[52:])
    same_cache(native, cache, 0, past)


def test_reading_beyond_the_capacity_is_refused(plain: Pair) -> None:
    cache = plain.native.new_cache(1, 10)
    read(plain.native, cache, tokens(8))
    with pytest.raises(ValueError, match=r"row 0: 8 \+ 3 tokens exceed capacity 10"):
        read(plain.native, cache, tokens(3))


def test_a_causal_model_does_not_denoise(causal: Pair) -> None:
    cache = causal.native.new_cache(1, 10)
    with pytest.raises(ValueError, match="self-conditioning"):
        causal.native.denoise(tokens(4)[None], torch.zeros(1, 4, 32), cache, [0])


def test_encoder_and_decoder_scalars_are_kept_apart(
    make_diffusion: Callable[..., tuple[Any, Path]],
) -> None:
    reference, _ = make_diffusion(canvas_length=CANVAS)
    names = [name for name in reference.state_dict() if name.endswith("layer_scalar")]
    scalars = {reference.state_dict()[name].item() for name in names}
    assert len(scalars) == len(names) == 6  # else the comparisons above could not tell them apart


def test_a_cache_outlives_inference_mode(plain: Pair) -> None:
    cache = plain.native.new_cache(1, 30)
    with torch.inference_mode(False):
        read(plain.native, cache, tokens(5))
        assert not cache.keys[0].is_inference()
    read(plain.native, cache, tokens(5))
    assert cache.count(0) == 10
