"""The settings of the denoising loop: what each is and which values it takes, said once.

Names and defaults are those of `DraftParams`. Requests, policy files and their error messages take
limits and descriptions from here, so a setting means the same wherever it is written.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hybrid.errors import RequestError
from hybrid.types import MAX_STEPS


@dataclass(frozen=True, slots=True)
class SamplerSetting:
    """A whole number (`is_whole`) or a finite number, from `least` (or above it) to `most`."""

    description: str
    is_whole: bool = False
    least: float = 0
    above: bool = False
    most: float | None = None

    @property
    def allowed(self) -> str:
        """The values it takes, in words."""
        kind = "a whole number" if self.is_whole else "a number"
        if self.above:
            return f"{kind} above {self.least:g}"
        end = "up" if self.most is None else f"to {self.most:g}"
        return f"{kind} from {self.least:g} {end}"

    def read(self, name: str, value: object) -> float | None:
        """The value of a request's field of this name; None leaves it to the policy.

        Raises RequestError.
        """
        if value is None:
            return None
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or (self.is_whole and not isinstance(value, int)):
            raise RequestError(name, value, self.allowed)
        assert isinstance(value, int | float)
        fits = value > self.least if self.above else value >= self.least
        if not (fits and value < math.inf) or (self.most is not None and value > self.most):
            raise RequestError(name, value, self.allowed)
        return value if self.is_whole else float(value)

    @property
    def field(self) -> dict[str, Any]:
        """Arguments of the pydantic field of an optional setting."""
        least = {"gt" if self.above else "ge": self.least}
        most = {} if self.most is None else {"le": self.most}
        return {"description": self.description, **least, **most}


SAMPLER_SETTINGS: Mapping[str, SamplerSetting] = {
    "max_denoising_steps": SamplerSetting(
        "Cap on denoising steps a canvas; easy text stops earlier.",
        is_whole=True,
        least=1,
        most=MAX_STEPS,
    ),
    "entropy_bound": SamplerSetting("Joint uncertainty that one step may accept, in nats."),
    "t_min": SamplerSetting("Temperature at the last step.", above=True),
    "t_max": SamplerSetting("Temperature at the first step.", above=True),
    "stability_threshold": SamplerSetting(
        "Equal arg-max canvases before a canvas may stop.", is_whole=True
    ),
    "confidence_threshold": SamplerSetting(
        "Mean entropy (nats a position) below which a canvas may stop."
    ),
}
