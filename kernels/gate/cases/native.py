"""Products of four bits by four bits, for the tensor cores that have them."""

from collections.abc import Callable
from functools import partial

from hybrid.kernels.gate.cases.case import BLOCK_SCALED, CANVAS, Case, native_matrix
from hybrid.kernels.gate.cases.experts import call_experts
from hybrid.kernels.gate.cases.linear import products


def native_cases() -> list[Case]:
    """Four bits by four bits: the sizes of the other products with experts and dense branch."""
    cases = []
    for tokens in (1, 32, CANVAS, 4 * CANVAS, 8 * CANVAS):
        calls: dict[str, tuple[Callable[[], object], str]] = {
            "experts": (partial(call_experts, native_matrix, tokens), "grouped_native"),
        }
        linears = products(tokens, partial(native_matrix, 1))
        calls |= {name: (call, "linear_native") for name, call in linears.items()}
        cases += [
            Case(f"native, {name}, {tokens}", call, (kernel,), BLOCK_SCALED)
            for name, (call, kernel) in calls.items()
        ]
    return cases
