"""Whatever goes wrong, in any mode and at any stage, the draft is returned and marked."""

from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from hybrid.backends import Models
from hybrid.deadline import CancelFlag, Deadline
from hybrid.errors import Cancelled, CapabilityError
from hybrid.modes import MODES
from hybrid.pipeline import Pipeline
from hybrid.policies.latency import LatencyModel
from hybrid.policies.loader import parse_policy
from hybrid.protocols import SamplingParams, Scores, Until
from hybrid.refiners.refine import RUN
from hybrid.refiners.scripted import ScriptedRefiner, ScriptedSession
from hybrid.requests import make_request
from hybrid.types import Draft, Event, FinishReason, RefineMode, Request, Result
from tests.refiners.guided_drafter import GuidedDrafter

ANSWER = "the quick brown fox"
COSTS = LatencyModel(0.0, 0.001, 0.0, 0.001, 0.001, 0.001, 0.0, 0.001, 1.2, 64)
STAGES = ("open", "score", "second score", "write", "decode")
NEVER: dict[RefineMode, tuple[str, ...]] = {  # stages that a mode does not come to
    "score": ("second score", "write", "decode"),
    "best_of": ("write", "decode"),
    "repair": (),
    "guide": ("second score", "write", "decode"),
    "cascade": ("second score",),
    "verify": ("second score",),
    "rewrite": ("score", "second score"),
}


@dataclass(frozen=True)
class FaultyRefiner(ScriptedRefiner):
    """Does what `fault` says at `stage`: raises, hangs until the deadline, or is cancelled."""

    stage: str = ""
    fault: str = "raises"
    caller: CancelFlag = field(default_factory=CancelFlag)

    def open(  # type: ignore[override]
        self,
        request: Request,
        max_answer_tokens: int,
        deadline: Deadline | None = None,
        sampling: SamplingParams | None = None,
    ) -> "FaultySession":
        request = replace(request, prompt="say it", messages=())
        inner = super().open(request, max_answer_tokens, deadline, sampling)
        self.meet("open", inner.deadline)
        return FaultySession(inner, self)

    def decode(self, token_ids: Any) -> str:
        self.meet("decode", Deadline.after(0.2))
        return super().decode(token_ids)

    def meet(self, stage: str, deadline: Deadline) -> None:
        if stage != self.stage:
            return
        if self.fault == "raises":
            raise RuntimeError(f"broken at {stage}")
        if self.fault == "is cancelled":
            self.caller.set()
            deadline.raise_if_cancelled()
        while not deadline.expired:
            deadline.raise_if_cancelled()
        raise TimeoutError(f"late at {stage}")


@dataclass
class FaultySession:
    inner: ScriptedSession
    refiner: FaultyRefiner
    scored: int = 0

    @property
    def answer_tokens(self) -> int:
        return self.inner.answer_tokens

    @property
    def max_answer_tokens(self) -> int:
        return self.inner.max_answer_tokens

    @property
    def forward_passes(self) -> int:
        return self.inner.forward_passes

    def score(self, token_ids: Any) -> Scores:
        self.scored += 1
        self.refiner.meet("score" if self.scored == 1 else "second score", self.inner.deadline)
        return self.inner.score(token_ids)

    def rewind(self, answer_tokens: int) -> None:
        self.inner.rewind(answer_tokens)

    def write(
        self, token_ids: Any, max_new_tokens: int, until: Until | None = None, source: Any = ()
    ) -> tuple[tuple[int, ...], FinishReason]:
        self.refiner.meet("write", self.inner.deadline)
        return self.inner.write(token_ids, max_new_tokens, until, source)


def pipeline(mode: str, refiner: FaultyRefiner, more: str = "") -> Pipeline:
    """Drafts of one step in four: a quarter right, the rest question marks."""
    policy = parse_policy(
        "version: 1\ndefaults: {draft: {max_denoising_steps: 1},"
        f" refine: {{mode: {mode}, repair_with: refiner, min_token_logprob: -4{more}}}}}\n",
        "test",
    )
    return Pipeline(policy, Models(GuidedDrafter({"say it": ANSWER}), refiner), COSTS)


def run(mode: str, refiner: FaultyRefiner, more: str = "", budget: str = "200ms") -> Result:
    events: list[Event] = []
    request = make_request("say it", {"budget": budget})
    return pipeline(mode, refiner, more).answer(request, events.append, refiner.caller)


def test_every_mode_is_put_to_the_test() -> None:
    assert {*NEVER} == {*RUN} == {*MODES} - {"none", "generate"}


@pytest.mark.parametrize("fault", ["raises", "hangs"])
@pytest.mark.parametrize(
    ("mode", "stage"),
    [(mode, stage) for mode, never in NEVER.items() for stage in STAGES if stage not in never],
)
def test_a_refiner_that_fails_leaves_the_draft_and_a_mark(
    mode: RefineMode, stage: str, fault: str
) -> None:
    refiner = FaultyRefiner({"say it": ANSWER}, stage=stage, fault=fault)
    result = run(mode, refiner)
    assert result.draft is not None
    assert result.text == result.draft.text
    assert result.token_ids == result.draft.token_ids
    assert result.refinement is None
    (note,) = (note for note in result.notes if "the draft stands" in note)
    assert stage in note or (mode == "guide" and "no time was left" in note)


@pytest.mark.parametrize(
    ("mode", "stage"),
    [
        (mode, stage)
        for mode, never in NEVER.items()
        for stage in STAGES[:-1]  # nothing follows decoding that could be cut short
        if stage not in never and (mode != "guide" or stage == "open")
    ],
)
def test_a_caller_who_goes_away_is_noticed_at_every_stage(mode: RefineMode, stage: str) -> None:
    refiner = FaultyRefiner({"say it": ANSWER}, stage=stage, fault="is cancelled")
    with pytest.raises(Cancelled):
        run(mode, refiner, budget="5s")


@pytest.mark.parametrize("mode", [mode for mode in RUN if mode not in ("score", "guide")])
def test_the_same_without_a_fault_refines(mode: RefineMode) -> None:
    result = run(mode, FaultyRefiner({"say it": ANSWER}), budget="5s")
    assert result.refinement is not None
    assert not any("the draft stands" in note for note in result.notes)
    assert (result.text == ANSWER) == (mode != "best_of")
    if mode != "best_of":
        assert all(edit.why for edit in result.refinement.edits)
        assert result.refinement.edits


@pytest.mark.parametrize("mode", [*RUN])
def test_an_empty_draft_is_no_obstacle(mode: RefineMode) -> None:
    refiner = FaultyRefiner({"say it": ANSWER})
    made = pipeline(mode, refiner)
    made = replace(made, models=Models(EmptyDrafter({"say it": ANSWER}), refiner))
    result = made.answer(make_request("say it", {"budget": "5s"}), lambda event: None)
    assert result.draft is not None and result.draft.token_ids == ()
    assert result.text == ANSWER  # a mode that writes nothing leaves it to the refiner alone
    writes = MODES[mode].cost.writes != "nothing"
    assert any("the refiner wrote alone" in note for note in result.notes) != writes
    if result.verdict is not None:
        assert not result.verdict.accepted


class EmptyDrafter(GuidedDrafter):
    """Its canvases begin with an end."""

    def draft(self, jobs: Any) -> list[Draft]:
        return [
            replace(draft, token_ids=(), text="", entropy=(), self_logprobs=())
            for draft in super().draft(jobs)
        ]


def test_a_pair_with_different_tokens_is_refused_by_name(tmp_path: Any) -> None:
    import json
    import shutil

    from hybrid.backends import load_models
    from hybrid.embedded import weights_path
    from hybrid.policies.schema import ModelSection, RefinerModelSection

    folder = tmp_path / "other"
    shutil.copytree(weights_path("refiner"), folder)
    file = folder / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    words = tokenizer["model"]["vocab"]
    first, second = sorted(words, key=words.__getitem__)[300:302]
    words[first], words[second] = words[second], words[first]
    file.write_text(json.dumps(tokenizer))
    with pytest.raises(CapabilityError) as caught:
        load_models(ModelSection(), RefinerModelSection(model=str(folder)))
    assert "drafter embedded" in str(caught.value)
    assert f"refiner {folder}" in str(caught.value)
    assert repr(first) in str(caught.value) or repr(second) in str(caught.value)
