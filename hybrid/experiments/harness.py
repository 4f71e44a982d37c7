"""hybrid as a model of lm-evaluation-harness: `hybrid lm-eval run --model hybrid --tasks ...`.

The harness finds no models by itself, so our command imports this and hands over. It records no
latency either: `model_args` with `out=FILE` writes a line for each answer, with its document's
number, to be joined with the harness's samples.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from rich.progress import track

from hybrid.api import Hybrid
from hybrid.backends import load_models
from hybrid.errors import CapabilityError
from hybrid.protocols import Refiner
from hybrid.requests import Options
from hybrid.types import Message, Request, Result

_CHAT = "hybrid-chat:"  # before a conversation, which the harness carries as one text


@register_model("hybrid")
class HybridLM(LM):  # type: ignore[misc]
    """A policy under test: `generate_until` by it, `loglikelihood` by its refiner.

    `policy` is a preset or a file, `budget` a duration for every answer, `task` the policy's task,
    `seed` that of every answer. What else the harness sends to all models (batch size, device) is
    for models that run in batches on one device; a policy names its own.
    """

    def __init__(
        self,
        policy: str = "balanced",
        budget: str | None = None,
        task: str | None = None,
        seed: int = 0,
        out: str | None = None,
        batch_size: object = None,
        max_batch_size: object = None,
        device: object = None,
    ) -> None:
        super().__init__()
        self._hybrid = Hybrid.from_policy(policy)
        self._options: Options = {"budget": budget, "task": task, "seed": int(seed)}
        self._out = Path(out) if out else None
        self._refiner: Refiner | None = None

    @property
    def tokenizer_name(self) -> str:
        """For the harness's caches: conversations are kept apart by policy."""
        return self._hybrid.policy.name

    def apply_chat_template(
        self, chat_history: Sequence[Mapping[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The conversation itself; the models' own template is applied later.

        A task's `gen_prefix` is the beginning of the assistant's message, which answers continue.
        """
        return _CHAT + json.dumps(chat_history)

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """The policy's answers, each cut before the first of its stop texts."""
        answers = []
        for request in track(requests, "answers", disable=disable_tqdm):
            context, wanted = request.args
            options: Options = {**self._options}
            if wanted.get("max_gen_toks"):
                options["max_new_tokens"] = int(wanted["max_gen_toks"])
            result = self._hybrid.generate(_messages(context), **options)
            text = _cut(result.text, wanted.get("until") or ())
            self._write(request, result, text)
            self.cache_hook.add_partial("generate_until", request.args, text)
            answers.append(text)
        return answers

    def loglikelihood(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """What the refiner thinks of a continuation as the answer to its context."""
        found = []
        for request in track(requests, "scores", disable=disable_tqdm):
            context, continuation = request.args
            refiner = self._scorer()
            asked = Request(messages=tuple(_messages(context)))
            token_ids = _continue(refiner, asked.messages[-1], continuation)
            scores = refiner.open(asked, max(1, len(token_ids))).score(token_ids)
            is_greedy = tuple(scores.choices[: len(token_ids)]) == tuple(token_ids)
            found.append((sum(scores.logprobs), is_greedy))
            self.cache_hook.add_partial("loglikelihood", request.args, found[-1])
        return found

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        """Not of a chat model: there is no text without a conversation around it."""
        missing = "answers are scored after a conversation, not running text"
        raise CapabilityError("loglikelihood_rolling", "hybrid", missing)

    def _scorer(self) -> Refiner:
        if self._refiner is None:
            chosen = self._hybrid.policy.models.refiner
            if chosen is None:
                name = self._hybrid.policy.name
                raise CapabilityError("loglikelihood", f"policy {name}", "it names no refiner")
            self._refiner = load_models(None, chosen).refiner
            assert self._refiner is not None
        return self._refiner

    def _write(self, request: Any, result: Result, text: str) -> None:
        if self._out is None:
            return
        line = {
            "task": request.task_name,
            "doc_id": request.doc_id,
            "text": text,
            "seconds": result.timing.total_s,
            "plan": result.plan.label,
            "denoising_steps": result.usage.denoising_steps,
            "refiner_passes": result.usage.refiner_passes,
            "within_budget": result.timing.within_budget,
        }
        with self._out.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")


def documents(dataset: Any) -> Any:
    """A task's documents as they are.

    `process_docs: !function hybrid.experiments.harness.documents` in a task file that is named by
    its path makes the harness import this module before it looks for the model.
    """
    return dataset


def _messages(context: str) -> list[Message]:
    if not context.startswith(_CHAT):
        return [Message("user", context)]
    turns = json.loads(context.removeprefix(_CHAT))
    return [Message(turn["role"], turn["content"]) for turn in turns]


def _continue(refiner: Refiner, last: Message, text: str) -> list[int]:
    """The tokens of a continuation: after a prefix of the answer (`gen_prefix`), as it goes on."""
    if last.role != "assistant":
        return list(refiner.encode(text))
    before, whole = refiner.encode(last.content), refiner.encode(last.content + text)
    is_prefix = list(whole[: len(before)]) == list(before)
    return list(whole[len(before) :]) if is_prefix else list(refiner.encode(text))


def _cut(text: str, until: str | Sequence[str]) -> str:
    """The text before the first of the stop texts."""
    for stop in (until,) if isinstance(until, str) else until:
        text = text.split(stop)[0] if stop else text
    return text
