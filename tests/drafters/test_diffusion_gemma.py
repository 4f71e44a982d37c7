"""The drafter held to transformers' own generation, and to what it promises a request."""

import json
import math
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hybrid.conversation.tokenizer import ChatTokenizer
from hybrid.deadline import Deadline
from hybrid.drafters.diffusion_gemma import DiffusionGemmaDrafter, read_params
from hybrid.drafters.noise import CounterNoise, Draw
from hybrid.drafters.sequence import DraftSequence
from hybrid.embedded import weights_path
from hybrid.embedded.tasks import TASKS, evaluation_set
from hybrid.engine.load import load_engine
from hybrid.engine.model import EngineModel
from hybrid.errors import Cancelled, CheckpointError, RequestError
from hybrid.gemma.model.gemma import GemmaModel, load_model
from hybrid.gemma.reference.huggingface import load_hf_reference
from hybrid.priority import PriorityQueue
from hybrid.protocols import DraftJob
from hybrid.types import Denoised, Draft, DraftParams, Request

FOLDER = weights_path("drafter")


Load = Callable[[Path], GemmaModel | EngineModel]


@pytest.fixture(scope="module", params=["cpu", "engine"])
def load(request: pytest.FixtureRequest) -> Load:
    """Loads a folder in one of the two stacks, both on the CPU here."""
    on_cpu = partial(load_engine, device=torch.device("cpu"), dtype=torch.float32)
    return load_model if request.param == "cpu" else on_cpu


@pytest.fixture(scope="module")
def drafter(load: Load) -> DiffusionGemmaDrafter:
    return DiffusionGemmaDrafter(load(FOLDER), ChatTokenizer.from_directory(FOLDER))


@pytest.fixture(scope="module")
def twin() -> Any:
    return load_hf_reference(FOLDER)


def make_job(prompt: str = "add 12 + 34", seed: int = 0, **changes: Any) -> DraftJob:
    names = DraftParams.__dataclass_fields__
    params = DraftParams(**{name: changes.pop(name) for name in names if name in changes})
    request = Request(prompt, infill=changes.pop("infill", None))
    job = DraftJob(request, params, seed, changes.pop("max_new_tokens", 32), Deadline())
    return replace(job, **changes)


def draft_one(drafter: DiffusionGemmaDrafter, **changes: Any) -> Draft:
    return drafter.draft([make_job(**changes)])[0]


class Replay:
    """The numbers that `CounterNoise` gives one row, in the order in which transformers draws.

    It draws tokens to begin a canvas, then a sample and new tokens in every step.
    """

    def __init__(self, seed: int) -> None:
        self.noise, self.seed = CounterNoise(torch.device("cpu")), seed
        self.steps: list[int] = []
        self.is_in_step = False

    def randint(self, low: int, high: int, size: tuple[int, int], device: Any) -> Tensor:
        if not self.is_in_step:
            self.steps.append(0)
        self.is_in_step = False
        return self.noise.tokens([self.draw()], size[1], high)

    def multinomial(self, probabilities: Tensor, num_samples: int) -> Tensor:
        self.is_in_step = True
        self.steps[-1] += 1
        everywhere = torch.ones(1, len(probabilities), dtype=torch.bool)
        return self.noise.renoise([self.draw()], probabilities[None], everywhere)[0][:, None]

    def draw(self) -> Draw:
        return Draw(self.seed, canvas=len(self.steps) - 1, step=self.steps[-1])


@contextmanager
def replaced_noise(replay: Replay) -> Iterator[None]:
    """transformers draws its numbers from here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "randint", replay.randint)
        patch.setattr(torch, "multinomial", replay.multinomial)
        yield


def generate(
    model: Any, prompt: list[int], job: DraftJob, ends: list[int]
) -> tuple[list[int], list[int]]:
    """transformers' answer under the same noise, cut after its end token, and steps by canvas."""
    from transformers.models.diffusion_gemma.generation_diffusion_gemma import (
        DiffusionGemmaGenerationConfig,
        EntropyBoundSamplerConfig,
    )

    params = job.params
    config = DiffusionGemmaGenerationConfig(
        max_new_tokens=job.max_new_tokens,
        max_denoising_steps=params.max_denoising_steps,
        t_min=params.t_min,
        t_max=params.t_max,
        stability_threshold=params.stability_threshold,
        confidence_threshold=params.confidence_threshold,
        sampler_config=EntropyBoundSamplerConfig(entropy_bound=params.entropy_bound),
        eos_token_id=ends,
        pad_token_id=0,
    )
    replay = Replay(job.seed)
    with replaced_noise(replay), torch.no_grad():
        output = model.generate(torch.tensor([prompt]), generation_config=config)
    tokens: list[int] = output.sequences[0, len(prompt) :].tolist()
    end = next((i for i, token in enumerate(tokens) if token in ends), len(tokens) - 1)
    return tokens[: end + 1], replay.steps


def outcome(draft: Draft) -> tuple[list[int], list[int]]:
    return list(draft.token_ids), [canvas.steps for canvas in draft.canvases]


@pytest.mark.parametrize("task", TASKS)
def test_generation_equals_transformers_on_the_embedded_pair(
    task: str, drafter: DiffusionGemmaDrafter, twin: Any
) -> None:
    ends = sorted(drafter.model.config.end_token_ids)
    for seed, instance in enumerate(evaluation_set(task, 4)):
        job = make_job(instance.prompt, seed, max_denoising_steps=(1, 2, 8, 48)[seed])
        prompt = drafter.tokenizer.encode_conversation(job.request.conversation)
        (ours,) = drafter.draft([job])
        assert outcome(ours) == generate(twin, prompt, job, ends)


def test_ragged_batches_equal_transformers_on_random_models(
    make_diffusion: Callable[..., tuple[Any, Path]], word_tokenizer: ChatTokenizer, load: Load
) -> None:
    """Several canvases, end tokens inside them, every sampler setting, odd windows."""
    ours, theirs = [], []
    for seed in range(8):
        rng = random.Random(seed)
        window, heads = rng.choice((5, 12, 40)), rng.choice((2, 4))
        model, folder = make_diffusion(
            rng.choice((4, 7)), seed, sliding_window=window, num_attention_heads=heads
        )
        drafter = DiffusionGemmaDrafter(load(folder), word_tokenizer)
        jobs = [
            make_job(
                " ".join(f"w{rng.randrange(10, 61)}" for _ in range(length)),
                seed=100 * seed + steps,
                max_denoising_steps=steps,
                entropy_bound=rng.choice((0.001, 0.5, 4.0)),
                t_min=0.1,
                t_max=rng.choice((0.2, 1.0)),
                stability_threshold=rng.choice((0, 1, 2)),
                confidence_threshold=rng.choice((0.005, 2.5, 3.0)),
                max_new_tokens=3 * drafter.canvas_length,
            )
            for length, steps in ((9, 1), (1, 2), (30, 3), (17, 8))
        ]
        ours += [outcome(draft) for draft in drafter.draft(jobs)]
        for job in jobs:
            prompt = word_tokenizer.encode(job.request.prompt)
            theirs.append(generate(model, prompt, job, [1, 5]))
    # Rounding may swap entropies that are almost equal; it did in 1 of 300 such drafts.
    assert sum(one != other for one, other in zip(ours, theirs, strict=True)) <= 1
    assert {1, 3} <= {len(steps) for _, steps in ours}
    assert {tokens[-1] in (1, 5) for tokens, _ in ours} == {True, False}
    assert any(len(set(steps)) > 1 for _, steps in ours)


def test_an_answer_depends_on_its_seed_and_not_on_its_company(
    drafter: DiffusionGemmaDrafter,
) -> None:
    prompts = [evaluation_set(task, 1)[0].prompt for task in TASKS]
    jobs = [
        make_job(prompt, seed, max_denoising_steps=1 + 5 * (seed % 3), max_new_tokens=24 + seed)
        for seed, prompt in enumerate(prompts)
    ]
    alone = [drafter.draft([job])[0] for job in jobs]
    for order in (jobs, jobs[::-1], jobs[3:] + jobs[:3]):
        together = {job.seed: draft for job, draft in zip(order, drafter.draft(order), strict=True)}
        for seed, single in enumerate(alone):
            assert together[seed].token_ids == single.token_ids
            assert together[seed].canvases[0].steps == single.canvases[0].steps


def test_seeds_repeat_and_differ(drafter: DiffusionGemmaDrafter) -> None:
    def answer(seed: int) -> tuple[int, ...]:
        return draft_one(
            drafter, prompt="list 7 fruits", seed=seed, max_denoising_steps=2
        ).token_ids

    assert answer(1) == answer(1)
    assert len({answer(seed) for seed in range(12)}) > 4


def test_steps_are_reported_as_they_happen(drafter: DiffusionGemmaDrafter) -> None:
    events: list[Denoised] = []
    draft = draft_one(
        drafter,
        prompt="numbers",
        max_denoising_steps=5,
        confidence_threshold=0.0,
        on_step=events.append,
    )
    assert [event.step for event in events] == [1, 2, 3, 4, 5]
    assert all(event.max_denoising_steps == 5 for event in events)
    assert all(len(e.pieces) == len(e.accepted) == len(e.entropy) for e in events)
    assert all(0 <= h <= math.log(drafter.model.config.vocab_size) for h in events[0].entropy)
    assert events[-1].text.strip() == draft.text.strip()


def test_a_sure_and_stable_canvas_stops_early(drafter: DiffusionGemmaDrafter) -> None:
    loose = {"max_denoising_steps": 20, "confidence_threshold": 100.0}
    now = draft_one(drafter, **loose, stability_threshold=0)
    assert now.canvases[0].steps == 1
    assert now.canvases[0].converged
    never = draft_one(drafter, max_denoising_steps=20, confidence_threshold=0.0)
    assert never.canvases[0].steps == 20
    assert not never.canvases[0].converged
    twice = draft_one(drafter, **loose, stability_threshold=2)
    assert twice.canvases[0].steps >= 3


def test_the_deadline_leaves_the_best_canvas_so_far(drafter: DiffusionGemmaDrafter) -> None:
    spent = Deadline.after(1e-9)
    draft = draft_one(drafter, max_denoising_steps=30, confidence_threshold=0.0, deadline=spent)
    assert draft.finish_reason == "budget"
    assert draft.steps == 1
    single = draft_one(drafter, max_denoising_steps=30, confidence_threshold=0.0)
    assert len(draft.token_ids) <= 32
    assert single.finish_reason != "budget"


def test_one_rows_deadline_is_not_anothers(drafter: DiffusionGemmaDrafter) -> None:
    hurried = make_job(
        seed=1, max_denoising_steps=6, confidence_threshold=0.0, deadline=Deadline.after(1e-9)
    )
    calm = make_job(seed=2, max_denoising_steps=6, confidence_threshold=0.0)
    first, second = drafter.draft([hurried, calm])
    assert (first.finish_reason, first.steps) == ("budget", 1)
    assert second.token_ids == drafter.draft([calm])[0].token_ids


def test_cancelling_takes_effect_within_a_step(drafter: DiffusionGemmaDrafter) -> None:
    deadline, steps = Deadline(), []

    def cancel(event: Denoised) -> None:
        steps.append(event.step)
        deadline.cancel()

    with pytest.raises(Cancelled):
        draft_one(drafter, max_denoising_steps=30, deadline=deadline, on_step=cancel)
    assert steps == [1]


def test_ctrl_c_in_mid_draft_leaves_the_drafter_usable(drafter: DiffusionGemmaDrafter) -> None:
    before = draft_one(drafter, seed=5)

    def interrupt(event: Denoised) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        draft_one(drafter, seed=9, on_step=interrupt)
    assert draft_one(drafter, seed=5).token_ids == before.token_ids


def test_an_infill_keeps_its_text_and_writes_only_blanks(drafter: DiffusionGemmaDrafter) -> None:
    events: list[Denoised] = []
    draft = draft_one(
        drafter,
        prompt="code: c + n == 11; y + z == 5",
        infill="c =<blank:1>; n = 4; y =<blank:1>; z = 1",
        max_denoising_steps=6,
        on_step=events.append,
    )
    before, _, after = draft.text.partition("; n = 4; y =")
    assert before.startswith("c =")
    assert after.endswith("; z = 1")
    assert len(draft.canvases) == 1
    fixed = [i for i, piece in enumerate(events[0].pieces) if piece.strip() in ("n", "z")]
    assert len(fixed) == 2
    assert all(events[0].accepted[i] and events[0].entropy[i] == 0 for i in fixed)


def test_self_scores_are_the_encoders_as_a_language_model(
    drafter: DiffusionGemmaDrafter, twin: Any
) -> None:
    for seed, prompt in enumerate(["add 12 + 34", "sort up: 4 1 3", "list 3 fruits"]):
        draft = draft_one(drafter, prompt=prompt, seed=seed, self_score=True)
        context = drafter.tokenizer.encode_conversation(Request(prompt).conversation)
        ids = torch.tensor([[*context, *draft.token_ids]])
        with torch.no_grad():
            hidden = twin.model.encoder.language_model(input_ids=ids).last_hidden_state
            logits = 30 * torch.tanh(twin.lm_head(hidden) / 30)
        log_p = logits[0, len(context) - 1 : -1].log_softmax(-1)
        expected = log_p.gather(1, torch.tensor(draft.token_ids)[:, None])[:, 0]
        torch.testing.assert_close(
            torch.tensor(draft.self_logprobs), expected, atol=2e-4, rtol=1e-4
        )


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"max_denoising_steps": 0}, "max_denoising_steps"),
        ({"entropy_bound": -0.1}, "entropy_bound"),
        ({"t_min": 0.0}, "t_min"),
        ({"t_min": 0.9}, "t_min"),
        ({"t_max": float("inf")}, "t_max"),
        ({"stability_threshold": -1}, "stability_threshold"),
        ({"confidence_threshold": -1.0}, "confidence_threshold"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"seed": -1}, "seed"),
        ({"warm_start": (1,) * 33}, "warm_start"),
        ({"warm_start": (100_000,)}, "warm_start"),
        ({"prompt": "cat " * 2000}, "prompt"),
        ({"infill": "a <blank:31> b c"}, "infill"),
        ({"infill": "no blank"}, "infill"),
    ],
)
def test_settings_that_mean_nothing_name_their_field(
    drafter: DiffusionGemmaDrafter, changes: dict[str, Any], field: str
) -> None:
    with pytest.raises(RequestError) as caught:
        draft_one(drafter, **changes)
    assert caught.value.field == field


def test_the_folders_own_settings_are_the_default() -> None:
    drafter = DiffusionGemmaDrafter.from_directory(FOLDER)
    assert drafter.default_params == DraftParams()
    assert (drafter.canvas_length, drafter.max_context) == (32, 1024)


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"max_denoising_steps": "48"}, "max_denoising_steps"),
        ({"max_denoising_steps": 0}, "max_denoising_steps"),
        ({"sampler_config": 3}, "sampler_config"),
        ({"sampler_config": {"entropy_bound": -0.1}}, "sampler_config.entropy_bound"),
        ({"sampler_config": {"entropy_bound": float("nan")}}, "sampler_config.entropy_bound"),
        ({"confidence_threshold": True}, "confidence_threshold"),
        ({"stability_threshold": 1.5}, "stability_threshold"),
        ({"t_min": 0}, "t_min"),
        ({"t_min": 0.9}, "t_min"),
        ({"t_max": float("inf")}, "t_max"),
    ],
)
def test_settings_of_a_folder_that_mean_nothing_are_refused(
    tmp_path: Path, settings: dict[str, Any], key: str
) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match=rf"/generation_config.json: {key}: "):
        read_params(tmp_path)


def test_a_folder_may_say_some_settings(tmp_path: Path) -> None:
    assert read_params(tmp_path) == DraftParams()
    settings = {"t_min": None, "t_max": 2, "sampler_config": {"entropy_bound": 0}}
    (tmp_path / "generation_config.json").write_text(json.dumps(settings))
    assert read_params(tmp_path) == DraftParams(t_max=2.0, entropy_bound=0.0)


def test_a_refiner_is_no_drafter() -> None:
    with pytest.raises(CheckpointError, match="no canvas"):
        DiffusionGemmaDrafter.from_directory(weights_path("refiner"))


@dataclass
class Loop:
    """An engine of its own for a drafter, stepped by hand.

    `steps` has the seed of every sequence that reports a step.
    """

    drafter: DiffusionGemmaDrafter
    params: DraftParams
    waiting: PriorityQueue[DraftSequence] = field(default_factory=PriorityQueue)
    steps: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.engine = self.drafter.new_engine(self.waiting, 128)

    def add(self, prompt: str, seed: int, deadline: Deadline) -> DraftSequence:
        def report(event: Denoised) -> None:
            self.steps.append(seed)

        job = DraftJob(Request(prompt), self.params, seed, 32, deadline, report)
        sequence = self.drafter.new_sequence(job)
        self.waiting.push(sequence.priority, sequence)
        return sequence

    def step(self) -> list[int]:
        """The seeds of the sequences that took a step."""
        before = len(self.steps)
        self.engine.step()
        return self.steps[before:]


def test_a_sequence_without_time_steps_alone_and_keeps_its_one_step() -> None:
    drafter = DiffusionGemmaDrafter.from_directory(FOLDER, "cpu")
    loop = Loop(drafter, DraftParams(max_denoising_steps=8, confidence_threshold=0.0))
    for seed in (1, 2):
        loop.add("sort up: 4 8 1 9 3", seed, Deadline())
        loop.engine.step()
    loop.steps.clear()
    late = loop.add("sort up: 4 8 1 9 3", 3, Deadline.after(1e-9))
    assert loop.step() == [3]
    draft = late.wait()
    assert (draft.finish_reason, draft.steps) == ("budget", 1)
    assert loop.step() == [1, 2]


def test_sequences_that_step_in_groups_get_what_they_get_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("hybrid.drafters.scheduler._STEP_SHARE", 1e-9)  # as if budgets were short
    drafter = DiffusionGemmaDrafter.from_directory(FOLDER, "cpu")
    params = DraftParams(max_denoising_steps=6, confidence_threshold=0.0)
    prompts = ("sort up: 4 8 1 9 3", "add 12 + 34", "in words: 345", "list 3 metals", "add 1 + 2")
    loop = Loop(DiffusionGemmaDrafter(drafter.model, drafter.tokenizer), params)
    sequences = [loop.add(p, seed, Deadline.after(3600)) for seed, p in enumerate(prompts)]
    sizes = []
    while not all(sequence.finished.is_set() for sequence in sequences):
        sizes.append(len(loop.step()))
    # One is admitted at first where two engines share what waits: its group is alone.
    assert {2} <= {*sizes} <= {1, 2} and sum(sizes) == 6 * 5
    for seed, (prompt, sequence) in enumerate(zip(prompts, sequences, strict=True)):
        job = DraftJob(Request(prompt), params, seed, 32, Deadline())
        (alone,), together = drafter.draft([job]), sequence.wait()
        assert (together.token_ids, together.steps) == (alone.token_ids, 6)


def test_a_sequence_whose_time_runs_out_ends_before_others_take_a_step() -> None:
    drafter = DiffusionGemmaDrafter.from_directory(FOLDER, "cpu")
    loop = Loop(drafter, DraftParams(max_denoising_steps=64, confidence_threshold=0.0))
    deadline = Deadline.after(2.0)
    patient = loop.add("add 12 + 34", 0, Deadline())
    hurried = loop.add("add 12 + 34", 1, deadline)
    while hurried.step == 0 or patient.step == 0:
        loop.step()
    before = patient.step
    time.sleep(max(0.0, deadline.remaining_s) + 0.01)
    assert loop.step() == []
    assert hurried.wait().finish_reason == "budget"
    assert patient.step == before
