"""A drafter that knows its answers and needs a given number of steps to find them; for tests.

Its tokens are the UTF-8 bytes of the text and `END`, as the scripted refiner's are. Each step gets
the same share of the answer right, from the left; what it has not reached yet reads as `?`.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hybrid.errors import BackendError, RequestError
from hybrid.protocols import DraftJob
from hybrid.types import Canvas, Denoised, Draft, DraftTiming, FinishReason, Request

END = 256
_UNKNOWN = ord("?")


@dataclass(frozen=True)
class ScriptedDrafter:
    """Answers by prompt; `steps_needed` until one is right, `step_s` seconds each."""

    answers: Mapping[str, str]
    steps_needed: int = 4
    step_s: float = 0.0
    fails: bool = False
    canvas_length: int = 64
    max_context: int = 4096
    concurrency: int = 1

    @property
    def vocabulary(self) -> Mapping[str, int]:
        """See `Drafter.vocabulary`: the bytes, by their number."""
        return {str(byte): byte for byte in range(END)}

    @property
    def prompt_format(self) -> None:
        """There is no template."""
        return None

    def count_prompt_tokens(self, request: Request) -> int:
        """See `Drafter.count_prompt_tokens`."""
        return len(request.question.encode())

    def count_blank_tokens(self, request: Request) -> int:
        """See `Drafter.count_blank_tokens`; it fills in nothing."""
        if request.infill is not None:
            raise RequestError("infill", request.infill, "a scripted drafter fills in nothing")
        return 0

    def draft(self, jobs: Sequence[DraftJob]) -> list[Draft]:
        """See `Drafter.draft`; one job after the other."""
        if self.fails:
            raise BackendError("draft", "scripted failure", retryable=True)
        return [self._draft(job) for job in jobs]

    def _draft(self, job: DraftJob) -> Draft:
        prompt = job.request.question
        if prompt not in self.answers:
            raise RequestError("prompt", prompt, f"scripted are {sorted(self.answers)}")
        answer = [*self.answers[prompt].encode(), END][: job.max_new_tokens]
        cap = min(job.params.max_denoising_steps, self.steps_needed)
        started, step, is_late = time.perf_counter(), 0, False
        while step < cap and not is_late:
            step += 1
            time.sleep(self.step_s)
            self._report(job, answer, step)
            job.deadline.raise_if_cancelled()
            is_late = job.deadline.expired
        found = len(answer) * step // self.steps_needed
        token_ids = [*answer[:found], *[_UNKNOWN] * (len(answer) - found)]
        reason: FinishReason = "stop" if token_ids[-1] == END else "length"
        return Draft(
            token_ids=tuple(token_ids),
            text=_text(token_ids),
            entropy=tuple(0.0 if index < found else 1.0 for index in range(len(answer))),
            canvases=(Canvas(step, step == self.steps_needed, 1 - found / len(answer)),),
            finish_reason="budget" if is_late and step < cap else reason,
            self_logprobs=tuple(-0.1 if i < found else -5.0 for i in range(len(answer)))
            if job.self_score
            else (),
            timing=DraftTiming(denoise_s=time.perf_counter() - started),
        )

    def _report(self, job: DraftJob, answer: Sequence[int], step: int) -> None:
        if job.on_step is None:
            return
        tokens = [token for token in answer if token != END]
        found = len(answer) * step // self.steps_needed
        known = [index < found for index in range(len(tokens))]
        pieces = [chr(t) if is_known else "?" for t, is_known in zip(tokens, known, strict=True)]
        cap, entropy = (
            job.params.max_denoising_steps,
            (0.0 if is_known else 1.0 for is_known in known),
        )
        job.on_step(Denoised(0, step, cap, tuple(pieces), tuple(known), tuple(entropy)))


def _text(token_ids: Sequence[int]) -> str:
    return bytes(token for token in token_ids if token != END).decode(errors="replace")
