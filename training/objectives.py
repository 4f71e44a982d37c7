"""What the pair is trained to do: predict the next token, and denoise a corrupted canvas.

The drafter learns both, as DiffusionGemma does (Google's recipe adds the encoder's language-model
loss to the diffusion loss): the causal half is what its self-score stands on.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, pad
from transformers import DynamicCache

from hybrid.embedded.tasks import TASKS
from training.examples import Example, ExampleSource
from training.networks import CANVAS_LENGTH, SOFTCAP
from training.tokenizer import EOS, PAD

_AFTER_END_WEIGHT = 0.1  # loss weight of positions after the end token
_CLEAN_WEIGHT = 0.5  # loss weight of positions that were not corrupted


def refiner_loss(model: Any, examples: list[Example]) -> Tensor:
    """Cross-entropy of the answers after their prompts, under a causal model."""
    ids, targets, weights = _causal_batch(examples)
    logits = model(input_ids=ids, use_cache=False).logits
    return _mean_loss(logits, targets, weights)


def encoder_loss(model: Any, examples: list[Example]) -> Tensor:
    """The same for the drafter's encoder, the causal half of a DiffusionGemma."""
    ids, targets, weights = _causal_batch(examples)
    hidden = _encode(model, ids, torch.ones_like(ids, dtype=torch.bool), None)[0]
    logits = torch.tanh(model.lm_head(hidden) / SOFTCAP) * SOFTCAP
    return _mean_loss(logits, targets, weights)


def diffusion_loss(
    model: Any, examples: list[Example], source: ExampleSource, generator: torch.Generator
) -> Tensor:
    """Cross-entropy of the right canvas at every position of a corrupted one."""
    ids, valid = _left_padded([example.prompt_ids for example in examples])
    targets, weights = _canvas_targets(examples)
    positions = (valid.cumsum(-1) - 1).clamp_min(0)
    _, cache = _encode(model, ids, valid, positions)
    seen = pad(valid, (0, CANVAS_LENGTH), value=True)[:, None, None]
    mask = seen.expand(-1, 1, CANVAS_LENGTH, -1)
    canvas_positions = valid.sum(-1, keepdim=True) + torch.arange(CANVAS_LENGTH)

    def denoise(canvas: Tensor, feedback: Tensor | None) -> Tensor:
        logits: Tensor = model(
            decoder_input_ids=canvas,
            self_conditioning_logits=feedback,
            past_key_values=cache,
            decoder_attention_mask={"full_attention": mask, "sliding_attention": mask},
            decoder_position_ids=canvas_positions,
        ).logits
        return logits

    corruption = _Corruption(examples, targets, model.config.text_config.vocab_size, generator)
    feedback = None
    if corruption.chance() < 0.4:
        with torch.no_grad():
            noisier = corruption.noisier_canvas()
            feedback = denoise(noisier, None) / corruption.uniform(len(examples), 1, 1, 0.4, 0.9)
        if corruption.chance() < 0.75:
            corruption.take_sampled_canvases(feedback, source)
    logits = denoise(corruption.canvas, feedback)
    weights = weights * torch.where(corruption.corrupted, 1.0, _CLEAN_WEIGHT)
    return _mean_loss(logits, corruption.targets, weights)


class _Corruption:
    """A batch of canvases, how far each is from its target, and how it got there.

    Half are corrupted uniformly at a random rate. The rest teach what the sampler needs: a clean
    prefix with mostly noise after it (sequential answers are learnt one step further at a time),
    one gap in clean text (infilling), or the canvas that the entropy-bound sampler would hand on.
    """

    def __init__(
        self,
        examples: list[Example],
        targets: Tensor,
        vocabulary: int,
        generator: torch.Generator,
    ) -> None:
        self._examples, self._vocabulary, self._generator = examples, vocabulary, generator
        count = len(examples)
        self.targets = targets
        lengths = torch.tensor([[len(example.answer_ids)] for example in examples])
        rate = torch.where(self._rand(count, 1) < 0.1, 1.0, self._rand(count, 1))
        place = torch.arange(CANVAS_LENGTH)[None]
        cut = (self._rand(count, 1) * lengths).floor()
        gap = 1 + (self._rand(count, 1) * 6).floor()
        kind = self._rand(count, 1)
        uniform = self._rand(count, CANVAS_LENGTH) < rate
        after_prefix = (place >= cut) & (self._rand(count, CANVAS_LENGTH) < rate.sqrt())
        in_gap = (place >= cut) & (place < cut + gap)
        self.corrupted = torch.where(
            kind < 0.3, after_prefix, torch.where(kind < 0.6, in_gap, uniform)
        )
        self._rate = rate
        self.canvas = torch.where(self.corrupted, self._noise(), targets)

    def chance(self) -> float:
        """A random number from 0 to 1."""
        return self._rand(1).item()

    def uniform(self, *shape_and_range: float) -> Tensor:
        """Random numbers of a shape, between the last two arguments."""
        *shape, low, high = shape_and_range
        return low + (high - low) * self._rand(*(int(size) for size in shape))

    def noisier_canvas(self) -> Tensor:
        """The same canvases, as noisy or noisier: what an earlier step would have seen."""
        count = len(self._examples)
        further = self._rand(count, 1) * (self._rand(count, 1) < 0.7)
        rate = self._rate + (1 - self._rate) * further
        more = self.corrupted | (self._rand(count, CANVAS_LENGTH) < rate)
        return torch.where(more, self._noise(), self.canvas)

    def take_sampled_canvases(self, feedback: Tensor, source: ExampleSource) -> None:
        """Replace most canvases by what the sampler makes of an earlier step's logits."""
        log_p = feedback.log_softmax(-1)
        entropy = -(log_p.exp() * log_p).sum(-1)
        ordered, order = entropy.sort(-1)
        bound = self.uniform(len(self._examples), 1, 0.05, 0.45)
        kept = (ordered.cumsum(-1) - ordered) <= bound
        accepted = torch.zeros_like(kept).scatter(-1, order, kept)
        probabilities = log_p.exp().flatten(0, 1)
        sampled = torch.multinomial(probabilities, 1, generator=self._generator)
        sampled = sampled.view_as(accepted)
        taken = self._rand(len(self._examples), 1) < 0.6
        guess = torch.where(accepted, sampled, log_p.argmax(-1))
        for row, example in enumerate(self._examples):
            if taken[row] and TASKS[example.instance.task].open_ended:
                answer = source.nearest_answer(example, guess[row].tolist())
                self.targets[row, : len(answer)] = torch.tensor(answer)
        canvas = torch.where(accepted, sampled, self._noise())
        self.canvas = torch.where(taken, canvas, self.canvas)
        self.corrupted = torch.where(taken, self.canvas != self.targets, self.corrupted)

    def _rand(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self._generator)

    def _noise(self) -> Tensor:
        shape = (len(self._examples), CANVAS_LENGTH)
        return torch.randint(self._vocabulary, shape, generator=self._generator)


def _mean_loss(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    losses = cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    return (losses * weights.flatten()).sum() / weights.sum()


def _causal_batch(examples: list[Example]) -> tuple[Tensor, Tensor, Tensor]:
    """Right-padded ids, next-token targets, and weights that are zero outside the answers."""
    shape = len(examples), max(len(e.prompt_ids) + len(e.answer_ids) for e in examples)
    ids, targets = torch.full(shape, PAD), torch.full(shape, PAD)
    weights = torch.zeros(shape)
    for row, example in enumerate(examples):
        start, count = len(example.prompt_ids), len(example.answer_ids)
        ids[row, : start + count] = torch.tensor(example.prompt_ids + example.answer_ids)
        answer = slice(start - 1, start - 1 + count)
        targets[row, answer] = torch.tensor(example.answer_ids)
        weights[row, answer] = count**-0.5
    return ids, targets, weights


def _canvas_targets(examples: list[Example]) -> tuple[Tensor, Tensor]:
    """The right canvases, filled up with end tokens, and the loss weight of every position."""
    shape = len(examples), CANVAS_LENGTH
    targets, weights = torch.full(shape, EOS), torch.zeros(shape)
    for row, example in enumerate(examples):
        count = len(example.answer_ids)
        targets[row, :count] = torch.tensor(example.answer_ids)
        weights[row, :count] = count**-0.25
        weights[row, count:] = _AFTER_END_WEIGHT * count**-0.25
    return targets, weights


def _left_padded(prompts: list[list[int]]) -> tuple[Tensor, Tensor]:
    shape = len(prompts), max(map(len, prompts))
    ids, valid = torch.full(shape, PAD), torch.zeros(shape, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        ids[row, -len(prompt) :] = torch.tensor(prompt)
        valid[row, -len(prompt) :] = True
    return ids, valid


def _encode(
    model: Any, ids: Tensor, valid: Tensor, positions: Tensor | None
) -> tuple[Tensor, DynamicCache]:
    """Hidden states and cache of the encoder; every row sees itself, so that padding is no NaN."""
    length = ids.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
    mask = causal & valid[:, None, None] | torch.eye(length, dtype=torch.bool)
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    output = model.model.encoder(
        input_ids=ids,
        attention_mask={"full_attention": mask, "sliding_attention": mask},
        position_ids=positions,
        past_key_values=cache,
    )
    return output.last_hidden_state, cache
