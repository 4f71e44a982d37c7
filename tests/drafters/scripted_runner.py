"""A model runner without a model, whose canvases end after their steps, and which keeps a log."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from hybrid.conversation.tokenizer import ChatTokenizer
from hybrid.deadline import Deadline
from hybrid.drafters.engine import DraftEngine
from hybrid.drafters.scheduler import Scheduler
from hybrid.drafters.sequence import DraftSequence
from hybrid.embedded import weights_path
from hybrid.gemma.config import GemmaConfig
from hybrid.priority import PriorityQueue
from hybrid.protocols import DraftJob, Votes
from hybrid.types import DraftParams, Request

CANVAS = 4


@dataclass
class ScriptedRunner:
    """Takes steps that find nothing; `gate` holds each back until it is set.

    `log` has "+seed" for a prompt that is read; `failures` are raised by the next steps.
    """

    max_batch_size: int = 2
    max_total_tokens: int = 64
    log: list[str] = field(default_factory=list)
    gate: threading.Event = field(default_factory=threading.Event)
    failures: list[Exception] = field(default_factory=list)

    def prefill(self, sequences: Sequence[DraftSequence]) -> None:
        self.log += [f"+{sequence.job.seed}" for sequence in sequences]
        for sequence in sequences:
            sequence.start_canvas(torch.zeros(CANVAS, dtype=torch.long))

    def denoise(self, sequences: Sequence[DraftSequence]) -> list[DraftSequence]:
        assert self.gate.wait(5)
        if self.failures:
            raise self.failures.pop()
        nothing = torch.zeros(CANVAS)
        for sequence in sequences:
            sequence.take_step(nothing.long(), nothing + 1, nothing > 0, 1.0)
        return list(sequences)

    def synchronize(self, sequences: Sequence[DraftSequence]) -> list[DraftSequence]:
        return []

    def apply_votes(self, sequence: DraftSequence, votes: Votes) -> None:
        raise AssertionError("no sequence has a guide")

    def commit(self, sequences: Sequence[DraftSequence]) -> None:
        raise AssertionError("no sequence has a second canvas")


def scripted_engine(
    runner: ScriptedRunner, waiting: PriorityQueue[DraftSequence] | None = None
) -> DraftEngine:
    """An engine on the runner, with the embedded drafter's tokens."""
    folder = weights_path("drafter")
    scheduler = Scheduler(
        waiting if waiting is not None else PriorityQueue(),
        runner.max_batch_size,
        runner.max_total_tokens,
        rows_cost_time=True,
    )
    tokenizer = ChatTokenizer.from_directory(folder)
    return DraftEngine(runner, scheduler, tokenizer, GemmaConfig.from_directory(folder))


def scripted_sequence(
    seed: int, steps: int = 1, deadline: Deadline | None = None, total_tokens: int = CANVAS
) -> DraftSequence:
    """A sequence whose only canvas takes so many steps."""
    params = DraftParams(max_denoising_steps=steps)
    job = DraftJob(Request("x"), params, seed, CANVAS, deadline or Deadline())
    return DraftSequence(job, max_total_tokens=total_tokens)
