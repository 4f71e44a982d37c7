"""Train, export and measure the embedded pair: `python -m training`, from the top of a checkout.

Five hours on two cores. What a run has finished is in its folder under runs/, and the same command
goes on from there. `python -m training.train`, `.export` and `.evaluate` are its three parts.
"""

from pathlib import Path

import cyclopts

from hybrid.embedded import PairRole
from training.evaluate import evaluate
from training.export import export
from training.train import train

MINUTES: dict[PairRole, float] = {"refiner": 122.0, "drafter": 185.0}

app = cyclopts.App(name="training", help=__doc__)


@app.default
def main(
    *,
    out: Path = Path("runs/pair"),
    minutes: tuple[float, float] = (MINUTES["refiner"], MINUTES["drafter"]),
    seed: int = 0,
) -> None:
    """Leave a refiner and a drafter in OUT as model folders, and evaluation.json beside them.

    Args:
        out: Folder of the models; the shipped ones are in hybrid/embedded/weights.
        minutes: Time for the refiner and for the drafter.
        seed: Of the examples and of the first weights.
    """
    for role, budget in zip(MINUTES, minutes, strict=True):
        run = out / "runs" / role
        train(role, minutes=budget, out=run, seed=seed)
        export(role, run=run, out=out / role)
    evaluate(drafter=out / "drafter", refiner=out / "refiner", out=out / "evaluation.json")


if __name__ == "__main__":
    app()
