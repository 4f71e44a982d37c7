"""Compiled passes against uncompiled ones: logits, drafts and answers; and what if they fail."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from hybrid.artefacts import MANIFEST, artefact_of, read_artefact, write_artefact
from hybrid.conversation.tokenizer import ChatTokenizer
from hybrid.deadline import Deadline
from hybrid.drafters.diffusion_gemma import DiffusionGemmaDrafter
from hybrid.drafters.noise import CounterNoise, Draw
from hybrid.errors import CapabilityError
from hybrid.gemma.compiled.compiler import compile_program, program_names, require_compiler
from hybrid.gemma.compiled.flat_cache import FlatCache
from hybrid.gemma.compiled.library import Library, LibraryError
from hybrid.gemma.compiled.model import CompiledModel, load_small
from hybrid.gemma.model.cache import AttentionMetadata, Cache
from hybrid.gemma.model.gemma import GemmaModel, load_model
from hybrid.kernels.accept import FREE
from hybrid.kernels.canvas_statistics import CanvasStatistics, canvas_statistics_torch
from hybrid.kernels.noise import signed
from hybrid.protocols import DraftJob, Votes
from hybrid.refiners.gemma import GemmaRefiner
from hybrid.types import Draft, DraftParams, Request
from tests.refiners.numbers import NumberTokenizer

VOCABULARY, CANVAS, CONTEXT = 61, 6, 300
FEW_LAYERS = {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]}
Make = Callable[..., tuple[Any, Path]]
Both = tuple[GemmaModel, CompiledModel]
has_compiler = shutil.which("g++") is not None
without = pytest.mark.skipif(not has_compiler, reason="there is no g++ to compile passes with")


def needs_compiler(test: Any) -> Any:
    """Half a minute a pass, two minutes for all, which the tests share."""
    return pytest.mark.slow(without(test))


def compiled(folder: Path) -> Both:
    model = load_model(folder)
    passes = {name: compile_program(model, name) for name in program_names(model)}
    write_artefact(artefact_of(folder), passes)
    found = load_small(folder)
    assert isinstance(found, CompiledModel)
    return model, found


@pytest.fixture(scope="module")
def diffusion(make_diffusion: Make) -> Both:
    return compiled(make_diffusion(max_position_embeddings=CONTEXT, **FEW_LAYERS)[1])


@pytest.fixture(scope="module")
def causal(make_causal: Make) -> Both:
    return compiled(make_causal(max_position_embeddings=CONTEXT, **FEW_LAYERS)[1])


def ids(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(10, VOCABULARY, shape, generator=generator)


def assert_near(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-5)


def used(model: CompiledModel) -> bool:
    """No pass has failed, which would have been computed uncompiled."""
    return bool(model._programs)


def judged(
    model: GemmaModel, canvas_ids: Tensor, soft: Tensor | None, cache: Cache, rows: Sequence[int]
) -> CanvasStatistics:
    """A pass and what is made of it, at other temperatures and bounds in every row."""
    count = len(rows)
    temperature, bound = torch.linspace(0.4, 0.9, count), torch.linspace(0.01, 4.0, count)
    fixed_ids = torch.full_like(canvas_ids, FREE)
    fixed_ids[0, 1] = 17
    if isinstance(model, CompiledModel):
        found = model.canvas_statistics(
            canvas_ids, soft, temperature, bound, fixed_ids, cache, rows
        )
        assert found is not None
        return found
    return canvas_statistics_torch(
        model.denoise(canvas_ids, soft, cache, rows), temperature, bound, fixed_ids
    )


def assert_alike(one: Sequence[CanvasStatistics], other: Sequence[CanvasStatistics]) -> None:
    for mine, others in zip(one, other, strict=True):
        for ours, theirs in zip(mine, others, strict=True):
            assert_near(ours, theirs)


@needs_compiler
@pytest.mark.parametrize(
    "rows", [[0], [3], [0, 1], [4, 2, 0], [0, 1, 2, 3, 4], [8, 1, 0, 5, 2, 6, 3, 7, 4]]
)
@torch.inference_mode()
def test_rows_anywhere_are_judged_the_same(diffusion: Both, rows: list[int]) -> None:
    outcomes = []
    lengths = [1, 5, 40, 11, 12, 90, 3, 2, 64]
    for model in diffusion:
        cache = model.new_cache(9, 120, spare=CANVAS)  # rings of 23 slots, most of them wrapped
        for row, length in enumerate(lengths):
            model.read(ids(row, 1, length), [length], cache, [row])
        canvas_ids = ids(50, len(rows), CANVAS)
        first = judged(model, canvas_ids, None, cache, rows)
        soft = model.soft_embed(first.p)
        again = judged(model, first.best_ids, soft, cache, rows)
        model.read(ids(60, len(rows), 9), [9] * len(rows), cache, rows)
        outcomes.append((first, again, judged(model, canvas_ids, soft, cache, rows)))
    assert_alike(*outcomes)
    assert used(diffusion[1])


@needs_compiler
@torch.inference_mode()
def test_the_next_canvas_is_the_same(diffusion: Both) -> None:
    eager, ours = diffusion
    noise, draw = CounterNoise(eager.device), Draw(2**63 + 12345, canvas=3, step=7)
    p = torch.randn(1, CANVAS, VOCABULARY, generator=torch.Generator().manual_seed(0)).softmax(-1)
    for kept in (0, 3, CANVAS):
        accepted = torch.arange(CANVAS)[None] < kept
        seeds = [signed(draw.seed), signed(draw.seed >> 32)]
        following = ours.renoise(p, accepted, seeds, draw.canvas, draw.step)
        assert following is not None
        assert torch.equal(following[0], noise.renoise([draw], p, accepted))
        assert_near(following[1], eager.soft_embed(p))
    assert used(ours)


@needs_compiler
@pytest.mark.parametrize("lengths", [[30, 2, 17, 50, 9, 4, 12], [200, 1, 100, 40, 2, 0, 3]])
@torch.inference_mode()
def test_a_row_gets_what_it_gets_alone(diffusion: Both, lengths: list[int]) -> None:
    model, rows = diffusion[1], range(7)
    for first in ([0] * 7, [3, 0, 20, 1, 0, 2, 30]):  # what the rows have read before
        cache = model.new_cache(7, 240)
        padded = ids(1, 7, max(lengths))
        model.read(ids(3, 7, 30), first, cache, rows)
        model.read(padded, lengths, cache, rows)
        canvas_ids, soft = ids(2, 7, CANVAS), torch.randn(7, CANVAS, model.config.hidden_size)
        logits = model.denoise(canvas_ids, soft, cache, rows)
        for row, length in enumerate(lengths):
            own = model.new_cache(1, 240)
            here = slice(row, row + 1)
            for part, tokens in ((ids(3, 7, 30), first[row]), (padded, length)):
                if tokens:
                    model.read(part[here, :tokens], [tokens], own, [0])
            assert_near(model.denoise(canvas_ids[here], soft[here], own, [0])[0], logits[row])
    assert used(model)


@needs_compiler
@torch.inference_mode()
def test_a_row_that_is_read_anew_is_not_taken_for_the_last(diffusion: Both) -> None:
    canvas_ids = ids(3, 1, CANVAS)
    eager, ours = (model.new_cache(2, 40) for model in diffusion)
    for seed in (4, 5):  # as long as each other
        found = []
        for model, cache in zip(diffusion, (eager, ours), strict=True):
            model.clear_row(cache, 1)
            model.read(ids(seed, 1, 8), [8], cache, [1])
            found.append([judged(model, canvas_ids, None, cache, [1])])
        assert_alike(*found)


@needs_compiler
@pytest.mark.parametrize("spare", [8, 256])
@torch.inference_mode()
def test_reading_in_any_pieces_gives_the_same_states(causal: Both, spare: int) -> None:
    text, pieces = ids(6, 1, 280), [1, 1, 7, 12, 1, 30, 2, 120, 1, 1]
    outcomes = []
    for model in causal:
        cache, states, at = model.new_cache(1, 290, spare=spare), [], 0
        for piece in pieces:
            states.append(model.encode(text[:, at : at + piece], [piece], cache, [0]))
            at += piece
        cache.rollback([0], [at - 5])
        states.append(model.encode(text[:, :1], [1], cache, [0]))
        outcomes.append(torch.cat(states, 1))
    assert_near(*outcomes)
    assert used(causal[1])


def job(seed: int, **changes: Any) -> DraftJob:
    words = " ".join(f"w{token}" for token in ids(seed, 1 + 37 * seed % 60).tolist())
    params = DraftParams(1 + seed % 6, entropy_bound=(0.01, 3.0)[seed % 2], confidence_threshold=2)
    request = Request(words, infill=changes.pop("infill", None))
    settings = {"self_score": seed % 4 == 0, **changes}
    return DraftJob(request, params, seed, 1 + 11 * seed % 24, Deadline(), **settings)


class Doubt:
    """A guide that approves of one place, vetoes another and bars a token."""

    every = 2

    def review(self, written: Any, token_ids: Any) -> Votes:
        last = len(token_ids) - 1
        banned = frozenset({(0, token_ids[0])})
        return Votes(approved=frozenset({0}), vetoed=frozenset({last}), banned_tokens=banned)


def outcome(draft: Draft) -> tuple[Any, ...]:
    steps = [(canvas.steps, canvas.converged) for canvas in draft.canvases]
    return draft.token_ids, steps, draft.finish_reason


@needs_compiler
@pytest.mark.parametrize("size", [1, 3, 40])
def test_whole_drafts_are_the_same(
    diffusion: Both, word_tokenizer: ChatTokenizer, size: int
) -> None:
    jobs = [job(seed) for seed in range(40)]
    jobs[7] = job(7, infill="w11 <blank:2> w12", self_score=False)
    jobs[9] = job(9, guide=Doubt(), self_score=False)
    eager, ours = (
        [
            draft
            for at in range(0, 40, size)
            for draft in DiffusionGemmaDrafter(model, word_tokenizer).draft(jobs[at : at + size])
        ]
        for model in diffusion
    )
    same = [outcome(one) == outcome(other) for one, other in zip(eager, ours, strict=True)]
    assert sum(same) >= 39  # rounding may swap entropies that are almost equal
    assert used(diffusion[1])


@needs_compiler
def test_answers_are_the_same(causal: Both) -> None:
    eager, ours = (GemmaRefiner(model, cast(ChatTokenizer, NumberTokenizer())) for model in causal)
    for seed in range(20):
        prompt = " ".join(map(str, ids(seed, 1 + 13 * seed % 70).tolist()))
        answers = []
        for refiner in (eager, ours):
            session = refiner.open(Request(prompt), 24)
            scores = session.score(ids(seed, 5).tolist())
            session.rewind(2)
            answers.append((session.write((3,), 12), scores.choices))
        assert answers[0] == answers[1]
    assert used(causal[1])


def failing(folder: Path, names: list[str]) -> Both:
    def fail(tensors: Any) -> list[Tensor]:
        raise LibraryError("out of order")

    model = load_model(folder)
    return model, CompiledModel(model.config, model.weights, dict.fromkeys(names, fail))


@pytest.mark.parametrize("names", [["read"], ["judge_row", "judge_rows"], ["renoise_row"]])
def test_what_fails_is_computed_uncompiled(
    make_diffusion: Make,
    word_tokenizer: ChatTokenizer,
    caplog: pytest.LogCaptureFixture,
    names: list[str],
) -> None:
    _, folder = make_diffusion(**FEW_LAYERS)
    for jobs in ([job(2)], [job(1), job(3)]):
        eager, ours = (
            DiffusionGemmaDrafter(model, word_tokenizer).draft(jobs)
            for model in failing(folder, names)
        )
        assert [*map(outcome, eager)] == [*map(outcome, ours)]
    assert "out of order" in caplog.text


def test_without_artefacts_the_model_is_as_ever(make_causal: Make) -> None:
    _, folder = make_causal(seed=1, **FEW_LAYERS)
    assert type(load_small(folder)) is GemmaModel


@pytest.mark.parametrize("damage", ["no library", "cut off", "missing", "manifest"])
def test_a_damaged_artefact_is_not_used_and_that_is_said(
    make_causal: Make, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    _, folder = make_causal(seed=2, **FEW_LAYERS)
    write_artefact(artefact_of(folder), {"write": b"no library at all"})
    (file,) = read_artefact(artefact_of(folder)).values()
    if damage == "cut off":
        file.write_bytes(file.read_bytes()[:5])
    elif damage == "missing":
        file.unlink()
    elif damage == "manifest":
        (file.parent / MANIFEST).write_text("{")
    assert type(load_small(folder)) is GemmaModel
    (message,) = caplog.messages
    assert "hybrid compile" in message


def test_a_library_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LibraryError):
        Library(tmp_path / "none.so", 1)


def test_models_that_gain_nothing_are_refused(make_causal: Make) -> None:
    model = load_model(make_causal(num_experts=12, enable_moe_block=True, **FEW_LAYERS)[1])
    with pytest.raises(CapabilityError, match="more than 8 experts"):
        program_names(model)


def test_without_a_compiler_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(CapabilityError, match="no-such-compiler, a C\\+\\+ compiler"):
        require_compiler()


def test_places_of_a_flat_cache_name_its_slots(make_causal: Make) -> None:
    model = load_model(make_causal(**FEW_LAYERS)[1])
    cache = FlatCache(model.config, 3, 100, 8, model.device, model.dtype)
    for length in (40, 90):
        model.encode(ids(1, 1, length), [length], cache, [2])
        reading = cache.metadata([2], [1], 1, causal=True)
        for kind, first in (("full", 0), ("sliding", length - 11)):
            place = cache.packed(reading, cast(Any, kind))
            seen = place.slots[place.mask[:, 0] == 0]
            size = cache.keys[kind == "full"].shape[1]
            expected = [2 * size + position % (size - 1) for position in range(first, length)]
            assert seen.tolist() == expected
        cache.clear(2)


def test_a_row_alone_is_packed_as_among_others(make_causal: Make) -> None:
    model = load_model(make_causal(**FEW_LAYERS)[1])
    cache = FlatCache(model.config, 3, 100, 8, model.device, model.dtype)
    for start, length in ((0, 1), (0, 30), (3, 1), (11, 2), (12, 13), (70, 1), (70, 20)):
        for kind in ("full", "sliding"):
            alone = cache.packed(
                AttentionMetadata((2,), (start,), (length,), length, True), cast(Any, kind)
            )
            with_none = AttentionMetadata((2, 0), (start, 0), (length, 0), length, True)
            among = cache.packed(with_none, cast(Any, kind))
            assert torch.equal(alone.written, among.written)
            assert torch.equal(alone.own_mask, among.own_mask)
            for token in range(length):
                ours, others = (
                    sorted(packed.slots[0, packed.mask[0, token] == 0].tolist())
                    for packed in (alone, among)
                )
                assert ours == others


def test_what_is_compiled_takes_part_in_the_key_of_measured_costs(tmp_path: Path) -> None:
    from hybrid.policies.loader import load_policy
    from hybrid.policies.measurements import cache_file

    policy = load_policy("balanced")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path))
        before = cache_file(policy)
        passes: Mapping[str, bytes] = {"write": b"one"}
        write_artefact(tmp_path / "hybrid" / "compiled" / "abc", passes)
        assert cache_file(policy) != before
