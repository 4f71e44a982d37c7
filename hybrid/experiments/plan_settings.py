"""What of a plan decides its answer, as plain values that records keep and replays look up."""

from dataclasses import asdict
from typing import Any

from hybrid.modes import MODES
from hybrid.policies.schema import ModelSection, Policy
from hybrid.types import Plan


def plan_settings(plan: Plan, policy: Policy) -> dict[str, Any]:
    """All of a plan that decides its answer: equal settings give equal answers for a seed."""
    mode, models = MODES[plan.refine.mode], policy.models
    reads_refiner = mode.needs_refiner or (
        mode.cost.reads == "scorer" and plan.refine.scorer == "refiner"
    )
    refine = {name: getattr(plan.refine, name) for name in mode.settings}
    drafter, refiner = models.drafter, models.refiner
    return {
        "draft": asdict(plan.draft) if plan.draft else None,
        "refine": {"mode": plan.refine.mode, **refine},
        "max_new_tokens": plan.max_new_tokens,
        "drafter": _arithmetic(drafter) if drafter and plan.draft else None,
        "refiner": _arithmetic(refiner) if refiner and reads_refiner else None,
    }


def _arithmetic(model: ModelSection) -> list[str]:
    """What of a model's section decides its numbers."""
    rounded = [model.activations] if model.activations != "float" else []
    return [model.backend, model.model, *rounded]
