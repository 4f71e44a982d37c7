"""A device that has failed is named once and not used again."""

from collections.abc import Iterator

import pytest
import torch

from hybrid.embedded import weights_path
from hybrid.engine import device_errors
from hybrid.engine.graphs import Graphs
from hybrid.engine.load import load_engine
from hybrid.errors import BackendError

CPU = torch.device("cpu")
ILLEGAL = "CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be late"


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    yield
    device_errors._failed.clear()


def fail() -> None:
    raise RuntimeError(ILLEGAL)


def test_the_first_error_is_named_and_later_uses_are_refused() -> None:
    model = load_engine(weights_path("refiner"), CPU, torch.bfloat16)
    model.new_cache(1, 16)
    with pytest.raises(BackendError, match=r"cpu failed: CUDA error: an illegal .*restart it") as e:
        Graphs(CPU).run("key", fail, (), ())
    assert (e.value.stage, e.value.retryable) == ("device", True)
    assert "might be late" not in str(e.value)
    with pytest.raises(BackendError, match="an illegal memory access"):
        model.new_cache(1, 16)
    with pytest.raises(BackendError, match="an illegal memory access"):
        Graphs(CPU).run("key", lambda: 1, (), ())


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), ValueError("x")])
def test_other_errors_change_nothing(error: Exception) -> None:
    def work() -> None:
        raise error

    with pytest.raises(type(error)):
        Graphs(CPU).run("key", work, (), ())
    assert Graphs(CPU).run("key", lambda: 1, (), ()) == 1
