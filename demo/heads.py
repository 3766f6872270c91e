"""Auxiliary heads on the visual tokens, for training only: they make each token encode what it is part of.

Knows labels and visual tokens, nothing of questions, and of the language model only its embedding table.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from demo.labels import ALPHABET, CLASSES, COLOR_NAMES, COUNT_KEYS, IGNORE, SIZE_NAMES, TEXT_LEN, VALUE_LEN
from demo.pictures import FAMILIES
from demo.words import BACKGROUNDS

_PATCH = (
    ("class", len(CLASSES), 2.0),
    ("color", len(COLOR_NAMES), 1.0),
    ("size", len(SIZE_NAMES), 0.3),
    ("count", 10, 0.5),
    ("letter", len(ALPHABET), 2.0),
    ("place", TEXT_LEN + 1, 0.5),
)
_LETTERS = len(ALPHABET)
_COUNTS = len(COUNT_KEYS)


class Heads(nn.Module):
    """Linear readouts of normalised visual tokens."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.patch = nn.Linear(width, sum(size for _, size, _ in _PATCH) + _LETTERS * (TEXT_LEN + VALUE_LEN))
        self.whole = nn.Linear(width, len(FAMILIES) + len(BACKGROUNDS) + 10 * _COUNTS)
        self.scale = nn.Parameter(torch.tensor(3.0))


def losses(
    heads: Heads, visual: Tensor, batch: dict[str, Tensor], table: Tensor, noise: Tensor
) -> dict[str, Tensor]:
    """Compute the named losses of visual tokens [B, P, W] against the labels of :mod:`demo.labels`.

    ``table`` [V, W] is the language model's embedding table; ``noise`` [N] are token ids to contrast captions
    with.
    """
    normed = heads.norm(visual)
    labels = batch["patches"].long().flatten(0, 1)
    logits = heads.patch(normed).flatten(0, 1).float()
    found: dict[str, Tensor] = {}
    at = 0
    busy, printed = labels[:, 0] > 0, labels[:, 4] > 0
    for i, (name, size, weight) in enumerate(_PATCH):
        per_patch = F.cross_entropy(logits[:, at : at + size], labels[:, i], reduction="none")
        told = per_patch[printed if name in ("letter", "place") else busy].mean()
        found[name] = weight * (told + (0.5 * per_patch[~busy].mean() if name == "class" else 0.0))
        at += size
    letters, truth = logits[:, at:].view(-1, TEXT_LEN + VALUE_LEN, _LETTERS), labels[:, len(_PATCH) :]
    for name, columns, weight in (("text", slice(0, TEXT_LEN), 1.0), ("value", slice(TEXT_LEN, None), 0.7)):
        spelled = truth[:, columns].any(-1)
        found[name] = weight * F.cross_entropy(
            letters[spelled, columns].flatten(0, 1), truth[spelled, columns].flatten()
        )
    found |= _whole(heads, normed, batch["whole"].long())
    found["caption"] = 0.5 * _captions(heads, visual, batch["captions"].long().flatten(0, 1), table, noise)
    spread = visual.float().pow(2).mean(-1).sqrt() / table.float().pow(2).mean().sqrt()
    found["norm"] = 0.05 * spread.clamp_min(1e-4).log().pow(2).mean()
    return found


def _whole(heads: Heads, normed: Tensor, truth: Tensor) -> dict[str, Tensor]:
    logits = heads.whole(normed.mean(1)).float()
    split = len(FAMILIES), len(BACKGROUNDS), 10 * _COUNTS
    family, background, counts = logits.split(split, -1)
    number = F.cross_entropy(counts.reshape(-1, 10), truth[:, 2:].flatten(), ignore_index=IGNORE)
    return {
        "family": 0.2 * F.cross_entropy(family, truth[:, 0]),
        "background": 0.2 * F.cross_entropy(background, truth[:, 1]),
        "counts": 0.5 * number,
    }


def _captions(heads: Heads, visual: Tensor, captions: Tensor, table: Tensor, noise: Tensor) -> Tensor:
    """Contrastive loss that pulls each captioned patch to its words, among all words and ``noise``."""
    rows = (captions >= 0).any(-1)
    words = captions[rows]
    known = torch.cat([words[words >= 0], noise]).unique()
    places = torch.searchsorted(known, words.clamp_min(0))
    wanted = torch.zeros(words.shape[0], known.numel()).scatter_add_(1, places, (words >= 0).float())
    wanted = wanted / wanted.sum(-1, keepdim=True)
    pointing = F.normalize(visual.flatten(0, 1)[rows].float(), dim=-1)
    scores = pointing @ F.normalize(table[known].float(), dim=-1).T * heads.scale.exp()
    return -(wanted * scores.log_softmax(-1)).sum(-1).mean()


@torch.no_grad()
def accuracies(heads: Heads, visual: Tensor, batch: dict[str, Tensor]) -> dict[str, float]:
    """Return the accuracy of each readout on non-empty patches; ``text`` and ``value`` count whole strings.

    ``counts`` is that of the counts over the whole picture.
    """
    normed = heads.norm(visual.float())
    labels = batch["patches"].long().flatten(0, 1)
    logits = heads.patch(normed).flatten(0, 1)
    busy = labels[:, 0] > 0
    found, at = {}, 0
    printed = labels[:, 4] > 0
    for i, (name, size, _) in enumerate(_PATCH):
        rows = printed if name in ("letter", "place") else busy
        found[name] = (logits[rows, at : at + size].argmax(-1) == labels[rows, i]).float().mean().item()
        at += size
    right = logits[:, at:].view(-1, TEXT_LEN + VALUE_LEN, _LETTERS).argmax(-1) == labels[:, len(_PATCH) :]
    for name, columns in (("text", slice(0, TEXT_LEN)), ("value", slice(TEXT_LEN, None))):
        spelled = labels[:, len(_PATCH) :][:, columns].any(-1)
        found[name] = right[spelled][:, columns].all(-1).float().mean().item()
    counts = heads.whole(normed.mean(1))[:, -10 * _COUNTS :].view(-1, _COUNTS, 10).argmax(-1)
    truth = batch["whole"].long()[:, 2:]
    found["counts"] = (counts == truth)[truth != IGNORE].float().mean().item()
    return found
