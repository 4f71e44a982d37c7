"""No mode raises anything but hybrid's own errors, whatever the lengths of answer and draft."""

from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid.backends import Models
from hybrid.errors import HybridError
from hybrid.modes import MODES
from hybrid.pipeline import Pipeline
from hybrid.policies.loader import parse_policy
from hybrid.refiners.scripted import ScriptedRefiner
from hybrid.requests import Options, make_request
from tests.refiners.guided_drafter import GuidedDrafter
from tests.test_pipeline import COSTS

_TEXT = st.text(st.characters(codec="utf-8"), max_size=12)


@given(
    mode=st.sampled_from([*MODES]),
    drafted=_TEXT,
    written=_TEXT,
    max_new_tokens=st.integers(1, 9),
    steps=st.integers(1, 5),
    scorer=st.sampled_from(["refiner", "self", "entropy"]),
    repair_with=st.sampled_from(["drafter", "refiner"]),
    budget=st.sampled_from([None, "1us", "5ms", "5s"]),
)
@settings(deadline=None, max_examples=300)
def test_every_mode_at_every_length(
    mode: str,
    drafted: str,
    written: str,
    max_new_tokens: int,
    steps: int,
    scorer: str,
    repair_with: str,
    budget: str | None,
) -> None:
    policy = parse_policy(
        f"version: 1\ndefaults: {{draft: {{max_denoising_steps: {steps}}}, refine: {{mode: {mode},"
        f" scorer: {scorer}, repair_with: {repair_with}, min_token_logprob: -4,"
        " guide_every: 1}}\n",
        "test",
    )
    models = Models(GuidedDrafter({"say it": drafted}), ScriptedRefiner({"say it": written}))
    options = Options(max_new_tokens=max_new_tokens, budget=budget)
    try:
        result = Pipeline(policy, models, COSTS).answer(make_request("say it", options))
    except HybridError:
        return
    assert result.text.strip()
    assert len(result.token_ids) <= max_new_tokens
