"""Draws the next token of many rows at once. Stateless: everything comes from logits, context and noise.

Order of what is applied, as in vLLM: logit bias and the mask of ``min_tokens``, penalties, temperature,
then ``min_p``, ``top_k``, ``top_p``. A token is drawn by inverting the cumulative distribution *in vocabulary
order* at one uniform number, so that rounding can move a draw only at a boundary between two tokens.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
import torch

from engine.messages import SamplingParams
from engine.noise import uniforms

_GREEDY_BELOW = 1e-5  # a temperature this low would overflow float32, and draws the likeliest token anyway
_SHORTLIST = 1024  # likeliest tokens that top_p is first looked for in, instead of sorting the vocabulary


@dataclass(slots=True, frozen=True)
class DrawRow:
    """What one row of logits is drawn with.

    ``context_ids``: prompt and output before the new token; ``num_prompt_tokens`` of them are the prompt.
    ``forbidden_ids``: stop tokens while ``min_tokens`` is not reached.
    """

    params: SamplingParams
    context_ids: Seq[int]
    num_prompt_tokens: int
    forbidden_ids: frozenset[int] = frozenset()

    @property
    def greedy(self) -> bool:
        return self.params.temperature < _GREEDY_BELOW

    @property
    def position(self) -> int:
        """Output position, the counter of the noise."""
        return len(self.context_ids) - self.num_prompt_tokens


@dataclass(slots=True, frozen=True)
class Drawn:
    """On the host. ``logprobs``: float32 ``[R]``; ``top_ids`` and ``top_logprobs``: ``[R, K]``."""

    token_ids: list[int]
    logprobs: np.ndarray | None
    top_ids: np.ndarray | None
    top_logprobs: np.ndarray | None


@torch.inference_mode()
def draw(logits: torch.Tensor, rows: Seq[DrawRow]) -> Drawn:
    """Draw one token a row from float32 ``[R, vocab]``. Costs one device-to-host copy."""
    adjusted = _adjust(logits, rows)
    tokens = torch.argmax(adjusted, dim=-1)
    sampled = [i for i, row in enumerate(rows) if not row.greedy]
    if sampled:
        index = torch.tensor(sampled, device=logits.device)
        tokens[index] = _sample(adjusted[index], [rows[i] for i in sampled])
    return _to_host(tokens, logits, rows)


def _adjust(logits: torch.Tensor, rows: Seq[DrawRow]) -> torch.Tensor:
    """Bias, forbidden tokens and penalties; ``logits`` itself is left alone. Touches only rows that ask."""
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
            line.index_add_(0, ids, torch.tensor(list(p.logit_bias.values()), device=line.device))
        if row.forbidden_ids:
            line[torch.tensor(sorted(row.forbidden_ids), device=line.device)] = float("-inf")
        if penalised:
            _penalise(line, row)
    return adjusted


def _penalise(line: torch.Tensor, row: DrawRow) -> None:
    """Repetition penalty over prompt and output (Keskar et al. 2019), the other two over the output."""
    p = row.params
    context = torch.from_numpy(np.asarray(row.context_ids, dtype=np.int64)).to(line.device)
    if p.repetition_penalty != 1.0:
        seen = torch.unique(context)
        scores = line[seen]
        line[seen] = torch.where(scores > 0, scores / p.repetition_penalty, scores * p.repetition_penalty)
    if p.frequency_penalty or p.presence_penalty:
        ids, counts = torch.unique(context[row.num_prompt_tokens :], return_counts=True)
        line[ids] -= p.frequency_penalty * counts + p.presence_penalty


def _sample(logits: torch.Tensor, rows: Seq[DrawRow]) -> torch.Tensor:
    """One draw a row, int64 ``[R]``."""
    device = logits.device
    params = [row.params for row in rows]
    temperature = torch.tensor([p.temperature for p in params], device=device)
    probs = torch.softmax(logits / temperature[:, None], dim=-1)
    cut = [i for i, p in enumerate(params) if p.top_k or p.top_p < 1.0 or p.min_p > 0.0]
    if cut:
        index = torch.tensor(cut, device=device)
        probs[index] = _truncate(probs[index], [params[i] for i in cut])
    noise = uniforms(
        np.array([p.seed & 0xFFFFFFFFFFFFFFFF for p in params], dtype=np.uint64),
        np.array([p.choice_index for p in params], dtype=np.uint64),
        np.array([row.position for row in rows], dtype=np.uint64),
    )
    cumulative = probs.double().cumsum(dim=-1)
    total = cumulative[:, -1:]
    target = torch.from_numpy(noise).to(device)[:, None] * total
    # Rounding must not reach the total itself: the tokens behind the last possible one have no probability.
    target = torch.minimum(target, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, target, right=True).squeeze(-1)


def _truncate(probs: torch.Tensor, params: Seq[SamplingParams]) -> torch.Tensor:
    """Zero what ``min_p``, ``top_k`` and ``top_p`` cut off; what is left need not sum to one."""
    device, vocab = probs.device, probs.shape[-1]
    cuts = _Cuts(
        top_p=torch.tensor([p.top_p for p in params], device=device)[:, None],
        top_k=torch.tensor([min(p.top_k or vocab, vocab) for p in params], device=device)[:, None],
        min_p=torch.tensor([p.min_p for p in params], device=device)[:, None],
        total=probs.sum(dim=-1, keepdim=True),
    )
    if device.type == "cpu" and vocab > _SHORTLIST:
        values, ids = probs.topk(_SHORTLIST, dim=-1)
        keep, exact = cuts.apply(values, vocab)
        if exact:
            return torch.zeros_like(probs).scatter_(-1, ids, values * keep)
    values, ids = probs.sort(
        dim=-1, descending=True
    )  # on a GPU cheaper than finding out whether it is needed
    keep, _ = cuts.apply(values, vocab)
    return torch.zeros_like(probs).scatter_(-1, ids, values * keep)


@dataclass(slots=True, frozen=True)
class _Cuts:
    """Limits ``[R, 1]`` of each row, and the mass of its whole vocabulary."""

    top_p: torch.Tensor
    top_k: torch.Tensor
    min_p: torch.Tensor
    total: torch.Tensor

    def apply(self, values: torch.Tensor, vocab: int) -> tuple[torch.Tensor, bool]:
        """Which of the descending ``values`` ``[R, K]`` stay, and whether K was enough to tell.

        ``top_p`` is a share of what ``min_p`` and ``top_k`` leave: of the listed mass where they cut inside
        the list, of the total where they do not cut at all. Else the list is too short, as it is where
        ``top_p`` keeps all of it.
        """
        rank = torch.arange(values.shape[-1], device=values.device)
        keep = (rank < self.top_k) & (values >= self.min_p * values[:, :1])
        if values.shape[-1] == vocab:
            mass, exact = (values * keep).sum(dim=-1, keepdim=True), True
        else:
            cut_inside = ~keep[:, -1:]
            uncut = (self.top_k >= vocab) & (self.min_p <= 0)
            mass = torch.where(cut_inside, (values * keep).sum(dim=-1, keepdim=True), self.total)
            exact = bool((cut_inside | uncut).all())
        before = values.double().cumsum(dim=-1) - values
        keep &= (before < self.top_p * mass) | (self.top_p >= 1)
        if values.shape[-1] < vocab:
            exact = exact and not bool(keep[:, -1].any())
        return keep, exact


def _to_host(tokens: torch.Tensor, logits: torch.Tensor, rows: Seq[DrawRow]) -> Drawn:
    """Bring the draws, and the model's own logprobs where asked for, to the host in one copy."""
    asked = [row.params.logprobs for row in rows if row.params.logprobs is not None]
    if not asked:
        return Drawn(tokens.tolist(), None, None, None)
    count = max(asked)
    logprobs = torch.log_softmax(logits, dim=-1)
    chosen = logprobs.gather(1, tokens[:, None])
    top_values, top_ids = logprobs.topk(count, dim=-1)
    # Everything travels as int32; floats keep their bits.
    parts = [tokens[:, None].int(), chosen.view(torch.int32), top_ids.int(), top_values.view(torch.int32)]
    host = torch.cat(parts, dim=1).cpu().numpy()
    floats = host.view(np.float32)
    return Drawn(host[:, 0].tolist(), floats[:, 1], host[:, 2 : 2 + count], floats[:, 2 + count :])
