"""Train one of the pair from scratch: `python -m training.train drafter --minutes 78`.

The drafter starts as a language model, as DiffusionGemma itself did: the circuits that follow a
chain of facts form in minutes there, and never formed under the diffusion loss alone. The schedule
is in minutes of wall time, so that a slower machine trains less rather than longer. Interrupted, it
resumes from its last checkpoint.
"""

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import cyclopts
import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from training.examples import Example, ExampleSource
from training.networks import build_drafter, build_refiner
from training.objectives import diffusion_loss, encoder_loss, refiner_loss
from training.optimizer import MuonAdam
from training.tokenizer import load as load_tokenizer

BATCH_SIZES = {"drafter": 32, "refiner": 64}
MUON_RATE, ADAM_RATE = 0.02, 3e-3
WARM_UP_STEPS = 100
DECAY_SHARE = 0.4  # of the time, at the end, the learning rate falls linearly
STORED_SHARE = 0.3  # of the time, at the end, weights act as NVFP4 will store them
LANGUAGE_MODEL_SHARE = 0.18  # of the drafter's time, at the start
ENCODER_CHANCE, ENCODER_WEIGHT = 0.25, 0.4  # of the encoder's loss beside the diffusion loss
SAVE_EVERY_S, LOG_EVERY_S = 240.0, 30.0

app = cyclopts.App(name="train", help=__doc__)


@dataclass
class Run:
    """A training run: everything that a checkpoint must hold is in here."""

    role: Literal["drafter", "refiner"]
    minutes: float
    out: Path
    seed: int
    elapsed_s: float = 0.0
    step: int = 0
    examples: int = 0
    averages: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        torch.manual_seed(self.seed)
        torch.set_flush_denormal(True)
        self.generator = torch.Generator().manual_seed(self.seed)
        tokenizer = load_tokenizer()
        self.source = ExampleSource(tokenizer, self.role, f"train/{self.role}/{self.seed}")
        build = build_drafter if self.role == "drafter" else build_refiner
        self.model: Any = build(len(tokenizer)).train()
        named = [(n, p) for n, p in self.model.named_parameters() if p.requires_grad]
        self.parameters = [parameter for _, parameter in named]
        self.optimizer = MuonAdam(named, MUON_RATE, ADAM_RATE)
        self.out.mkdir(parents=True, exist_ok=True)

    @property
    def share_done(self) -> float:
        """How much of the time has passed, 0 to 1."""
        return self.elapsed_s / (60 * self.minutes)

    def take_step(self) -> None:
        """One optimizer step on a fresh batch, in two halves of similar prompt lengths."""
        self.model.stored_weights.on = self.share_done > 1 - STORED_SHARE
        decay = min(1.0, max(0.01, (1 - self.share_done) / DECAY_SHARE))
        rate = decay * min(1.0, (self.step + 1) / WARM_UP_STEPS)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * rate
        size = BATCH_SIZES[self.role]
        batch = self.source.batch(size)
        for half in (batch[: size // 2], batch[size // 2 :]):
            torch.autograd.backward(self._loss(half) / 2)
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        self.examples += size

    def _loss(self, examples: list[Example]) -> Tensor:
        if self.role == "refiner":
            return self._note("causal", refiner_loss(self.model, examples))
        if self.share_done < LANGUAGE_MODEL_SHARE:
            return self._note("causal", encoder_loss(self.model, examples))
        loss = diffusion_loss(self.model, examples, self.source, self.generator)
        loss = self._note("diffusion", loss)
        if torch.rand((), generator=self.generator) < ENCODER_CHANCE:
            loss = loss + ENCODER_WEIGHT * self._note("causal", encoder_loss(self.model, examples))
        return loss

    def _note(self, name: str, loss: Tensor) -> Tensor:
        value = loss.item()
        self.averages[name] = 0.98 * self.averages.get(name, value) + 0.02 * value
        return loss

    def log_line(self) -> str:
        """One JSON object: minutes, steps, examples, and the losses' running means."""
        losses = {name: round(value, 4) for name, value in self.averages.items()}
        record = {"minutes": round(self.elapsed_s / 60, 2), "step": self.step}
        return json.dumps({**record, "examples": self.examples, **losses})

    def save(self) -> None:
        """Write everything that `resume` needs; never leaves half a file."""
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "optimizer_steps": self.optimizer.step_count,
            "generator": self.generator.get_state(),
            "elapsed_s": self.elapsed_s,
            "step": self.step,
            "examples": self.examples,
            "averages": self.averages,
        }
        new = self.out / "state.pt.new"
        torch.save(state, new)
        os.replace(new, self.out / "state.pt")

    def resume(self) -> None:
        """Go on from the last checkpoint, if there is one; the examples drawn since are new."""
        file = self.out / "state.pt"
        if not file.exists():
            return
        state = torch.load(file, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.optimizer.step_count = state["optimizer_steps"]
        self.generator.set_state(state["generator"])
        self.elapsed_s = state["elapsed_s"]
        self.step, self.examples = state["step"], state["examples"]
        self.averages = state["averages"]
        self.source.reseed(f"train/{self.role}/{self.seed}/{self.step}")


@app.default
def train(
    role: Literal["drafter", "refiner"],
    *,
    minutes: float = 75.0,
    out: Path | None = None,
    seed: int = 0,
    threads: int = 1,
) -> None:
    """Train a model and leave its checkpoint in OUT (runs/ROLE), for training.export."""
    torch.set_num_threads(threads)
    run = Run(role, minutes, out or Path("runs") / role, seed)
    run.resume()
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress, (run.out / "log.jsonl").open("a") as log:
        bar = progress.add_task(role, total=60 * minutes, completed=int(run.elapsed_s))

        def report() -> None:
            log.write(run.log_line() + "\n")
            log.flush()
            losses = " ".join(f"{name} {value:.3f}" for name, value in run.averages.items())
            progress.update(bar, description=f"{role} step {run.step} {losses}")

        _train_until_done(run, report, lambda: progress.update(bar, completed=run.elapsed_s))


def _train_until_done(run: Run, report: Callable[[], None], tick: Callable[[], None]) -> None:
    logged = saved = run.elapsed_s
    try:
        while run.share_done < 1:
            started = time.monotonic()
            run.take_step()
            run.elapsed_s += time.monotonic() - started
            tick()
            if run.elapsed_s - logged > LOG_EVERY_S:
                logged = run.elapsed_s
                report()
            if run.elapsed_s - saved > SAVE_EVERY_S:
                saved = run.elapsed_s
                run.save()
    finally:
        run.save()


if __name__ == "__main__":
    app()
