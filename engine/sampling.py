"""Samples the next token of many rows at once. Stateless: depends only on logits, context and noise.

The order of operations is that of vLLM: logit bias and the mask of ``min_tokens``, penalties, the grammar's
mask, temperature, then ``min_p``, ``top_k``, ``top_p``. A token is drawn by inverting the cumulative
distribution *in vocabulary order* at one uniform number, so that rounding can change a draw only at a
boundary between two tokens.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from engine.grammar.grammar import Mask
from engine.messages import SamplingParams, TokenLogprobs
from engine.noise import uniforms
from engine.truncation import truncate

_GREEDY_BELOW = 1e-5  # a lower temperature would overflow float32, and draws the likeliest token anyway
NO_TOKEN = -1
_BLOCK = 512  # vocabulary entries summed together before one of them is searched


@dataclass(slots=True, frozen=True)
class DrawRow:
    """The sampling parameters and context of one row of logits.

    ``context_ids``: prompt and output, of which ``num_prompt_tokens`` are the prompt; after them
    ``path_ids``, accepted in this step. ``forbidden_ids``: stop tokens while ``min_tokens`` is not reached.
    ``allowed``: the grammar's mask.
    """

    params: SamplingParams
    context_ids: Seq[int]
    num_prompt_tokens: int
    forbidden_ids: frozenset[int] = frozenset()
    allowed: Mask | None = None
    path_ids: Seq[int] = ()

    @property
    def position(self) -> int:
        """The output position, which is the counter of the noise."""
        return len(self.context_ids) + len(self.path_ids) - self.num_prompt_tokens


@dataclass(slots=True, frozen=True)
class Drawn:
    """Drawn tokens, on the host. ``logprobs``: float32 ``[R]``; ``top_ids``, ``top_logprobs``: ``[R, K]``.

    ``token_ids``: ``NO_TOKEN`` where nothing can be drawn, because the logits are not finite or everything
    is forbidden.
    """

    token_ids: list[int]
    logprobs: np.ndarray | None
    top_ids: np.ndarray | None
    top_logprobs: np.ndarray | None

    def logprobs_of(self, row: int, count: int) -> TokenLogprobs:
        """Return the log-probabilities of one row with its ``count`` likeliest tokens."""
        assert self.logprobs is not None
        assert self.top_ids is not None
        assert self.top_logprobs is not None
        return TokenLogprobs(
            logprob=float(self.logprobs[row]),
            top_ids=self.top_ids[row, :count].tolist(),
            top_logprobs=self.top_logprobs[row, :count].tolist(),
        )


def is_greedy(params: SamplingParams) -> bool:
    return params.temperature < _GREEDY_BELOW


@torch.inference_mode()
def draw(logits: torch.Tensor, rows: Seq[DrawRow]) -> Drawn:
    """Draw one token per row from float32 ``[R, vocab]``. Costs one device-to-host copy."""
    adjusted = _adjust(logits, rows)
    best, tokens = adjusted.max(dim=-1)
    sampled = [i for i, row in enumerate(rows) if not is_greedy(row.params)]
    if sampled:
        index = torch.tensor(sampled, device=logits.device)
        tokens[index] = _sample(adjusted[index] - best[index, None], [rows[i] for i in sampled])
    tokens = torch.where(torch.isfinite(best), tokens, NO_TOKEN)
    asked = [row.params.logprobs for row in rows if row.params.logprobs is not None]
    return to_host(tokens, logits, max(asked, default=None))


def _adjust(logits: torch.Tensor, rows: Seq[DrawRow]) -> torch.Tensor:
    """Apply bias, forbidden tokens, penalties and grammars, to the rows that need it.

    ``logits`` itself is not modified.
    """
    adjusted = logits
    for i, row in enumerate(rows):
        p = row.params
        penalised = p.frequency_penalty or p.presence_penalty or p.repetition_penalty != 1.0
        if not (penalised or p.logit_bias or row.forbidden_ids):
            continue
        if adjusted is logits:
            adjusted = logits.clone()
        line = adjusted[i]
        if p.logit_bias:
            ids = torch.tensor(list(p.logit_bias), device=line.device)
            biases = torch.tensor(list(p.logit_bias.values()), dtype=line.dtype, device=line.device)
            line.index_add_(0, ids, biases)
        if row.forbidden_ids:
            line[torch.tensor(sorted(row.forbidden_ids), device=line.device)] = float("-inf")
        if penalised:
            _penalise(line, row)
    constrained = [i for i, row in enumerate(rows) if row.allowed is not None]
    if constrained:
        index = torch.tensor(constrained, device=logits.device)
        allowed = _unpacked([mask for row in rows if (mask := row.allowed) is not None], logits)
        adjusted = adjusted.index_copy(0, index, adjusted[index].masked_fill(~allowed, float("-inf")))
    return adjusted


def _unpacked(masks: list[Mask], logits: torch.Tensor) -> torch.Tensor:
    """Unpack bit masks to bool ``[M, vocab]``. Model and tokenizer may have different vocabulary sizes."""
    packed = torch.from_numpy(np.stack(masks).view(np.uint8)).to(logits.device)
    bits = packed[:, :, None] >> torch.arange(8, dtype=torch.uint8, device=logits.device) & 1
    flat = bits.flatten(1)[:, : logits.shape[1]].bool()
    return F.pad(flat, (0, logits.shape[1] - flat.shape[1]))


def _penalise(line: torch.Tensor, row: DrawRow) -> None:
    """Apply penalties: repetition over prompt and output (Keskar et al. 2019), the others over the output."""
    p = row.params
    parts = [np.asarray(ids, dtype=np.int64) for ids in (row.context_ids, row.path_ids)]
    context = torch.from_numpy(np.concatenate(parts)).to(line.device)
    if p.repetition_penalty != 1.0:
        scale = torch.ones_like(line)
        scale[context] = p.repetition_penalty
        line.copy_(torch.where(line > 0, line / scale, line * scale))
    if p.frequency_penalty or p.presence_penalty:
        output = context[row.num_prompt_tokens :]
        counts = torch.zeros_like(line).index_add_(0, output, torch.ones_like(output, dtype=line.dtype))
        line -= p.frequency_penalty * counts + p.presence_penalty * (counts > 0)


def _sample(logits: torch.Tensor, rows: Seq[DrawRow]) -> torch.Tensor:
    """Draw one token per row, int64 ``[R]``, from logits whose largest is 0."""
    device = logits.device
    params = [row.params for row in rows]
    temperature = torch.tensor([p.temperature for p in params], device=device)
    probs = torch.softmax(logits / temperature[:, None], dim=-1)
    cut = [i for i, p in enumerate(params) if p.top_k or p.top_p < 1.0 or p.min_p > 0.0]
    if cut:
        index = torch.tensor(cut, device=device)
        probs[index] = truncate(probs[index], [params[i] for i in cut])
    noise = uniforms(
        np.array([p.seed & 0xFFFFFFFFFFFFFFFF for p in params], dtype=np.uint64),
        np.array([p.choice_index for p in params], dtype=np.uint64),
        np.array([row.position for row in rows], dtype=np.uint64),
    )
    return _invert(probs, torch.from_numpy(noise).to(device))


def _invert(probs: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Return the tokens at which the cumulative sums of ``[R, vocab]`` exceed ``noise`` ``[R]`` times their
    totals.

    Finds the block first and then the token in it, which avoids a cumulative sum over the vocabulary.
    """
    blocks = F.pad(probs, (0, -probs.shape[-1] % _BLOCK)).unflatten(-1, (-1, _BLOCK)).double()
    ends = blocks.sum(dim=-1).cumsum(dim=-1)
    block, before = _first_above(ends, noise[:, None] * ends[:, -1:])
    inner = blocks.gather(1, block[:, :, None].expand(-1, -1, _BLOCK)).squeeze(1).cumsum(dim=-1)
    token, _ = _first_above(inner, noise[:, None] * ends[:, -1:] - before)
    return (block * _BLOCK + token).squeeze(-1)


def _first_above(ends: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return each row's first index whose cumulative sum exceeds ``target`` ``[R, 1]``, and the sum before.

    Rounding must not reach the last sum: entries after the last possible one have no probability.
    """
    last = ends[:, -1:]
    target = torch.minimum(target, torch.nextafter(last, torch.zeros_like(last)))
    index = torch.searchsorted(ends, target, right=True).clamp_(max=ends.shape[-1] - 1)
    before = torch.where(index > 0, ends.gather(1, (index - 1).clamp(min=0)), 0.0)
    return index, before


def to_host(tokens: torch.Tensor, logits: torch.Tensor, count: int | None) -> Drawn:
    """Copy ``tokens`` int64 ``[R]`` to the host, in one copy.

    Unless ``count`` is ``None``, the model's own logprobs of these tokens and of the ``count`` likeliest are
    included.
    """
    if count is None:
        return Drawn(tokens.tolist(), None, None, None)
    logprobs = torch.log_softmax(logits, dim=-1)
    chosen = logprobs.gather(1, tokens[:, None].clamp(min=0))
    top_values, top_ids = logprobs.topk(count, dim=-1)
    # Everything is copied as int32; floats are viewed as integers.
    parts = [tokens[:, None].int(), chosen.view(torch.int32), top_ids.int(), top_values.view(torch.int32)]
    host = torch.cat(parts, dim=1).cpu().numpy()
    floats = host.view(np.float32)
    return Drawn(host[:, 0].tolist(), floats[:, 1], host[:, 2 : 2 + count], floats[:, 2 + count :])
