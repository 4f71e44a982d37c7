"""The drafting loop of one device: sequences join, step and leave, each on its own.

One sequence may be committing its second canvas while another takes the first step of its first.
Between steps each is asked whether its time is up. What goes wrong for one ends that one alone.
"""

import time
from collections.abc import Sequence

import torch

from hybrid.conversation.tokenizer import ChatTokenizer
from hybrid.drafters.model_runner import ModelRunner
from hybrid.drafters.scheduler import ScheduledStep, Scheduler
from hybrid.drafters.sequence import DraftSequence
from hybrid.errors import Cancelled
from hybrid.gemma.config import GemmaConfig
from hybrid.gemma.threads import Threads
from hybrid.types import Denoised, Draft


class DraftEngine:
    """Drafts the sequences that its scheduler admits; used by one thread at a time."""

    def __init__(
        self,
        runner: ModelRunner,
        scheduler: Scheduler,
        tokenizer: ChatTokenizer,
        config: GemmaConfig,
    ) -> None:
        self.scheduler = scheduler
        self._runner, self._tokenizer, self._config = runner, tokenizer, config

    def step(self) -> None:
        """Schedule, prefill, denoise, commit, postprocess: one turn of the loop."""
        self._prefill(self.scheduler.admit())
        step = self.scheduler.schedule()
        with torch.inference_mode(), Threads.of(self._config, step.is_urgent):
            updated = self._denoise(step)
            self._review(updated)
            self._commit(self._ended(step))
        self._postprocess()

    def abort_all(self, error: BaseException) -> None:
        """Fail every running sequence."""
        for sequence in [*self.scheduler.running]:
            sequence.finish(error)
        self._postprocess()

    def _prefill(self, admitted: Sequence[DraftSequence]) -> None:
        """Read the prompts of those who start, in one pass."""
        if not admitted:
            return
        is_urgent = any(self.scheduler.is_urgent(s.job.deadline) for s in admitted)
        with torch.inference_mode(), Threads.of(self._config, is_urgent):
            started = time.perf_counter()
            self._runner.prefill(admitted)
            seconds = time.perf_counter() - started
        self.scheduler.record_prefill(admitted, seconds)
        for sequence in admitted:
            sequence.prefill_s = seconds

    def _denoise(self, step: ScheduledStep) -> Sequence[DraftSequence]:
        """Take the step; the sequences that know of a new one now."""
        if not step.sequences:
            return ()
        started = time.perf_counter()
        updated = self._runner.denoise(step.sequences)
        seconds = time.perf_counter() - started
        self.scheduler.record_step(step, seconds)
        for sequence in step.sequences:
            sequence.denoise_s += seconds
        return updated

    def _review(self, updated: Sequence[DraftSequence]) -> None:
        """Let guides vote on new steps, tell who listens, and fail those that are cancelled."""
        for sequence in self.scheduler.running:
            try:
                if sequence in updated:
                    self._ask_guide(sequence)
                    self._report(sequence)
                sequence.job.deadline.raise_if_cancelled()
                if sequence.is_aborted:
                    raise Cancelled("nobody waits for this draft any more")
            except BaseException as error:  # of a callback: it is for whoever asked
                sequence.finish(error)

    def _ask_guide(self, sequence: DraftSequence) -> None:
        """Every few steps, and before the canvas ends."""
        guide = sequence.job.guide
        if guide is None or not (sequence.converged or sequence.step % guide.every == 0):
            return
        canvas = sequence.best_ids.tolist()
        count = sequence.count_answer(canvas, self._config.end_token_ids)
        votes = guide.review(sequence.token_ids, canvas[: count + 1])
        self._runner.apply_votes(sequence, votes)

    def _report(self, sequence: DraftSequence) -> None:
        """Tell whoever listens what the step has made of the canvas."""
        if sequence.job.on_step is None:
            return
        canvas = sequence.best_ids.tolist()
        count = sequence.count_answer(canvas, self._config.end_token_ids)
        sequence.job.on_step(
            Denoised(
                canvas=sequence.canvas,
                step=sequence.step,
                max_denoising_steps=sequence.job.params.max_denoising_steps,
                pieces=tuple(self._tokenizer.pieces(canvas[:count])),
                accepted=tuple(sequence.accepted.tolist()[:count]),
                entropy=tuple(sequence.entropy.tolist()[:count]),
            )
        )

    def _ended(self, step: ScheduledStep) -> list[DraftSequence]:
        """The sequences whose canvas takes no further step; each has taken at least one."""
        ended = [
            sequence
            for sequence in self.scheduler.running
            if sequence.has_canvas_ended
            and not sequence.finished.is_set()
            and (sequence.step or sequence in step.sequences)
        ]
        for sequence in self._runner.synchronize([s for s in ended if not s.is_canvas_done]):
            self._report(sequence)
        return ended

    def _commit(self, ended: Sequence[DraftSequence]) -> None:
        """Take over finished canvases; read those that are continued or scored."""
        for sequence in ended:
            sequence.take_canvas(self._config.end_token_ids)
        committed = [sequence for sequence in ended if sequence.is_commit_needed]
        if not committed:
            return
        for sequence in committed:
            if sequence.finish_reason is None:
                sequence.advance_canvas()
        started = time.perf_counter()
        self._runner.commit(committed)
        seconds = time.perf_counter() - started
        for sequence in committed:
            sequence.commit_s += seconds

    def _postprocess(self) -> None:
        """Hand finished drafts to those who wait, and free their rows."""
        for sequence in [*self.scheduler.running]:
            if sequence.finish_reason is not None and not sequence.finished.is_set():
                sequence.finish(self._draft(sequence))
            if sequence.finished.is_set():
                self.scheduler.remove(sequence)

    def _draft(self, sequence: DraftSequence) -> Draft:
        assert sequence.finish_reason is not None
        return Draft(
            token_ids=tuple(sequence.token_ids),
            text=self._tokenizer.decode(sequence.token_ids),
            entropy=tuple(sequence.token_entropy),
            canvases=tuple(sequence.canvases),
            finish_reason=sequence.finish_reason,
            self_logprobs=tuple(sequence.self_logprobs),
            timing=sequence.timing,
            thought=self._tokenizer.decode_thought(sequence.token_ids),
        )
