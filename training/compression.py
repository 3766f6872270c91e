"""Chooses how each picture of a batch is compressed in training, and computes the gate's loss.

The draft and the branches are trained together: every picture of every step takes a branch (and a ratio)
drawn uniformly, or stays whole, so that one draft works with all of them. The gate is trained alongside, on
what each branch would have cost: all branches run without gradients, and the choice, drawn with Gumbel noise,
is weighted by the loss that it leads to and by the tokens that it keeps.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from random import Random

import torch
from torch import Tensor

from compressors.base import Compressor, Grid, Picture, Whole
from compressors.combine import Concat, Weighted
from compressors.elastic import Elastic
from compressors.gate import QUESTION_TOKENS, gumbel, imbalance, straight_through
from processing.prompt import ImageInput
from training.batches import Batch
from training.rows import Placed
from training.settings import TrainSettings

Choose = Callable[[Batch, Tensor, Sequence[Placed]], Sequence[Compressor]]
"""Maps a batch, the target's features ``[B, N, hidden]`` and pictures to a compressor for each picture."""


def place(
    batch: Batch, scores: Tensor | None, grids_of: Callable[[ImageInput], tuple[Grid, ...]]
) -> list[Placed]:
    """Locate the pictures of a batch.

    ``scores``: the teacher's, float32 ``[B, N]``. ``grids_of``: the adapter's function from picture to grids.
    """
    grids = [grids_of(image) for image in batch.images]
    parts = batch.image_slots.split([sum(rows * columns for rows, columns in own) for own in grids])
    told = [None if scores is None else scores.flatten()[slots] for slots in parts]
    pictures = [
        Picture(own, image.hash, known) for own, image, known in zip(grids, batch.images, told, strict=True)
    ]
    return [Placed(picture, slots) for picture, slots in zip(pictures, parts, strict=True)]


def always(way: Compressor) -> Choose:
    """Return a choice of the same compressor for every picture."""
    return lambda batch, features, placed: [way] * len(placed)  # noqa: ARG005 (the signature of Choose)


def gated(compressor: Elastic) -> Choose:
    """Return the choice that serving makes for a request that does not name a compressor."""
    return lambda batch, features, placed: compressor.decide(*gate_inputs(batch, features, placed))


def gate_inputs(batch: Batch, features: Tensor, placed: Sequence[Placed]) -> tuple[Tensor, Tensor]:
    """Return the inputs of ``Gate.forward`` for P pictures, each ``[P, hidden]``.

    These are the mean feature of a picture's tokens and that of its question, the text between the picture
    and the next answer.
    """
    flat, dialogues = features.flatten(0, 1), batch.numbered_dialogues.flatten()
    text = batch.dialogues.flatten() >= 0
    text[batch.image_slots] = False
    answers = batch.predicts.flatten().nonzero().flatten()
    pictures, questions = [], []
    for one in placed:
        first = int(one.slots[-1]) + 1
        later = answers[torch.searchsorted(answers, first) :]
        end = int(later[0]) + 1 if len(later) else len(text)  # the prompt's last slot predicts it
        question = text[first:end] & (dialogues[first:end] == dialogues[one.slots[0]])
        asked = flat[first:end][question][-QUESTION_TOKENS:]
        pictures.append(flat[one.slots].mean(0))
        questions.append(asked.mean(0) if len(asked) else torch.zeros_like(flat[0]))
    empty = flat[:0]
    return (torch.stack(pictures), torch.stack(questions)) if placed else (empty, empty)


class Compression:
    """Compression in a training run. ``compressor`` is trained; ``settings.compressor`` is its mode."""

    def __init__(
        self,
        settings: TrainSettings,
        compressor: Elastic,
        grids_of: Callable[[ImageInput], tuple[Grid, ...]],
    ) -> None:
        self._settings, self.compressor, self._grids_of = settings, compressor, grids_of
        self._whole = Whole()
        ratios = settings.ratios
        self._at = [
            [way.at(ratio) for ratio in ratios if ratio <= way.max_ratio] if ratios else [way]
            for way in compressor.ways
        ]

    def place(self, batch: Batch, scores: Tensor | None) -> list[Placed]:
        return place(batch, scores, self._grids_of)

    def draw(self, batch: Batch, features: Tensor, placed: Sequence[Placed], step: int) -> list[Compressor]:
        """Draw a compressor for each picture; the result depends on step and picture, not on the batching."""
        gate, ways, weights = self.compressor.gate, self.compressor.ways, None
        if self._settings.compressor == "weight" and placed:
            assert gate is not None
            weights = gate(*gate_inputs(batch, features, placed)).softmax(-1)
        concat = Concat(ways)
        drawn: list[Compressor] = []
        for number, one in enumerate(placed):
            rng = Random(self._key("branch", batch, one, step))
            if rng.random() < self._settings.whole_share:
                drawn.append(self._whole)
            elif weights is not None:
                drawn.append(Weighted(ways, weights[number]))
            elif self._settings.compressor == "concat":
                drawn.append(concat)
            else:
                drawn.append(rng.choice(rng.choice(self._at)))
        return drawn

    def gate_loss(
        self,
        batch: Batch,
        features: Tensor,
        placed: Sequence[Placed],
        costs: Tensor,
        shares: Tensor,
        step: int,
    ) -> tuple[Tensor, Tensor]:
        """Return the loss of a selecting gate, summed over pictures, and its choices, int64 ``[P]``.

        The choices are those that it would make when serving. ``costs`` float32 ``[P, branches]``: the
        draft's loss per predicted token of the picture's dialogue if this branch is taken. ``shares`` float32
        ``[P]``: the weight of each picture.
        """
        gate, ways, settings = self.compressor.gate, self.compressor.ways, self._settings
        assert gate is not None
        logits = gate(*gate_inputs(batch, features, placed)).float()
        noise = torch.cat([self._noise(batch, one, step) for one in placed]).to(logits.device)
        kept = [[way.num_kept(one.picture) / one.picture.num_tokens for way in ways] for one in placed]
        prices = costs + settings.gate_cost * torch.tensor(kept, device=costs.device)
        chosen = straight_through(logits, noise, settings.gate_temperature)
        balance = settings.gate_balance * imbalance(logits) * shares.sum()
        return ((chosen * prices).sum(-1) * shares).sum() + balance, logits.argmax(-1)

    def _noise(self, batch: Batch, one: Placed, step: int) -> Tensor:
        seed = int.from_bytes(self._key("gate", batch, one, step)[:7])
        shape = torch.Size([1, len(self.compressor.ways)])
        return gumbel(shape, torch.Generator().manual_seed(seed))

    def _key(self, what: str, batch: Batch, one: Placed, step: int) -> bytes:
        stands = int(batch.slots.flatten()[one.slots[0]])  # its index among the tokens of all examples
        told = f"specvlm/{what}/{self._settings.seed}/{step}/{stands}"
        return hashlib.blake2b(told.encode(), digest_size=16).digest()


def by_dialogue(values: Tensor, which: Tensor, placed_in: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean of ``values`` in each dialogue of ``placed_in``, and their number: both ``[P]``.

    ``values`` ``[T]``; token ``t`` belongs to dialogue ``which[t]``. ``placed_in`` ``[P]``. Both results are
    0 for a dialogue without values.
    """
    size = int(torch.cat([which, placed_in]).max()) + 1
    sums = values.new_zeros(size).index_add(0, which, values)
    counts = values.new_zeros(size).index_add(0, which, torch.ones_like(values))
    return (sums / counts.clamp_min(1))[placed_in], counts[placed_in]


def per_picture(counts: Tensor, placed_in: Tensor) -> Tensor:
    """Divide ``counts`` ``[P]`` of the dialogues ``placed_in`` ``[P]`` among the pictures of each dialogue.

    So a dialogue has the same weight with six pictures as with one.
    """
    return counts / (placed_in[:, None] == placed_in).sum(1)
