"""The small trained pair that ships with hybrid: a DiffusionGemma drafter and a Gemma 4 refiner."""

from pathlib import Path
from typing import Literal

EVALUATION = Path(__file__).parent / "evaluation.json"  # what `training.evaluate` measured
PairRole = Literal["drafter", "refiner"]


def weights_path(role: PairRole) -> Path:
    """The folder of one of the two models, in Hugging Face form with NVFP4 weights."""
    return Path(__file__).parent / "weights" / role
