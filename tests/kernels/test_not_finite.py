"""NaN and infinity: they stay in their row and are reported, and no id leaves its range."""

import pytest
import torch
from torch import Tensor

from hybrid.kernels.accept import FREE, accept
from hybrid.kernels.canvas_statistics import canvas_statistics_torch
from hybrid.kernels.experts import experts
from hybrid.kernels.head import head_sample, head_scores
from hybrid.kernels.linear import linear
from hybrid.kernels.norms import rms_norm
from hybrid.kernels.route import route

NOT_FINITE = (float("nan"), float("inf"), float("-inf"))
BAD = 3  # the row with a number that is not finite


@pytest.fixture(params=["reference", "kernel"], autouse=True)
def ways(request: pytest.FixtureRequest) -> None:
    if request.param == "kernel":
        request.getfixturevalue("interpreted")


def rows(value: float, width: int = 64) -> Tensor:
    x = torch.randn(16, width, generator=torch.Generator().manual_seed(0)).bfloat16()
    x[BAD, 5] = value
    return x


def assert_only_bad(output: Tensor) -> None:
    is_finite = output.flatten(1).isfinite().all(1)
    assert is_finite.tolist() == [row != BAD for row in range(len(output))]


@pytest.mark.parametrize("value", NOT_FINITE)
@pytest.mark.parametrize("vocabulary", [300, 512])
def test_sampled_ids_stay_in_the_vocabulary(value: float, vocabulary: int) -> None:
    embedding = torch.ones(vocabulary, 64).bfloat16()
    keys = torch.arange(16, dtype=torch.int32)
    found = head_sample(rows(value), embedding, None, torch.ones(16), keys, None)
    for ids in (found.best, found.sample):
        assert 0 <= int(ids.min()) <= int(ids.max()) < vocabulary
    assert_only_bad(found.entropy[:, None])
    assert_only_bad(found.log_sum_exp[:, None])
    scores, best = head_scores(rows(value), embedding, None, keys)
    assert 0 <= int(best.min()) <= int(best.max()) < vocabulary
    assert_only_bad(scores[:, None])


@pytest.mark.parametrize("value", NOT_FINITE)
@pytest.mark.parametrize("count", [5, 16])
def test_chosen_experts_exist(value: float, count: int) -> None:
    weight = torch.randn(count, 64).bfloat16()
    chosen, weights = route(rows(value), torch.ones(64).bfloat16(), weight, torch.ones(count), 4, 0)
    assert 0 <= int(chosen.min()) <= int(chosen.max()) < count
    assert_only_bad(weights)


def test_a_row_of_weights_with_nan_stays_alone() -> None:
    x, chosen = rows(float("nan"), 128), torch.arange(16, dtype=torch.int32)[:, None] % 2
    gate_up, down = torch.ones(2, 128, 128).bfloat16(), torch.ones(2, 128, 64).bfloat16()
    assert_only_bad(experts(x, chosen, torch.ones(16, 1), gate_up, down))
    assert_only_bad(linear(x, torch.ones(128, 128).bfloat16()))
    assert_only_bad(rms_norm(x, torch.ones(128).bfloat16(), 1e-6))


def test_the_mean_entropy_of_a_canvas_reports_it() -> None:
    entropy = torch.rand(3, 8)
    entropy[1, 2] = entropy[2, 4] = float("nan")
    ids, fixed = torch.zeros(3, 8, dtype=torch.int32), torch.full((3, 8), FREE, dtype=torch.int32)
    fixed[2, 4] = 7  # what is fixed has no distribution
    accepted = accept(entropy, ids, ids, ids, ids, fixed, torch.ones(3))
    assert accepted.mean_entropy.isnan().tolist() == [False, True, False]
    logits = torch.randn(3, 8, 32)
    logits[1, 2, 3] = logits[2, 4, 3] = float("nan")
    statistics = canvas_statistics_torch(logits, torch.ones(3), torch.ones(3), fixed.long())
    assert statistics.mean_entropy.isnan().tolist() == [False, True, False]
    assert 0 <= int(statistics.best_ids.min()) <= int(statistics.best_ids.max()) < 32
