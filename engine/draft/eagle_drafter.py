"""Grows draft trees for many sequences at once with an EAGLE draft (EAGLE-2, arXiv 2406.16858, section 4).

In each round the draft first catches up with what the target has computed since, using the target's true
features; this also rebuilds the KV of accepted drafts and overwrites what the last tree had written. The last
state of each sequence gives the children of its root. Then, level by level, the best nodes of every sequence
run in one batched forward pass and give their children, with a single copy to the host at the end.
Alternatively the CPU kernels do all of this in one call, or the levels run as CUDA graphs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq
from contextlib import contextmanager
from itertools import groupby

import numpy as np
import torch

from engine.attention import prepare
from engine.batch import Batch, Part, build_batch, padded
from engine.config import SpeculativeConfig, TreeLimits
from engine.draft.branches import Branches
from engine.draft.candidates import Candidates, nothing
from engine.draft.features import FeatureStore
from engine.draft.follower import CATCH_UP_TOKENS, Follower, can_follow, draft_of, num_behind, reserve
from engine.draft.level_graphs import LevelGraphs, Trees
from engine.draft.levels import Grown, Ints, children, first_level, next_frontier, to_host
from engine.draft.model import DraftModel
from engine.draft.ngram_drafter import NgramDrafter
from engine.draft.pages import DraftPages, spare_pages
from engine.graphs import Capture, captured
from engine.kernels.grow import Roots
from engine.kv_cache import KVCache
from engine.pages import PagePool
from engine.plan import Span
from engine.runner import Outcome, is_out_of_memory
from engine.sequence import Sequence


class EagleDrafter:
    """Drafter with an EAGLE draft and its own KV cache.

    ``embed`` returns the target's embeddings ``[N, hidden]`` of token ids ``[N]``. ``num_pages``: the number
    of the target's pages. The draft has as many and some for each of ``max_num_seqs`` sequences
    (``spare_pages``), so that it has pages whenever the target has. Where the target shares pages, the draft
    shares its own or skips the tokens.
    """

    kind = "eagle"

    def __init__(
        self,
        model: DraftModel,
        num_pages: int,
        page_size: int,
        embed: Callable[[torch.Tensor], torch.Tensor],
        *,
        caching: bool,
        max_num_seqs: int,
        lookup: NgramDrafter | None = None,
        settings: SpeculativeConfig | None = None,
        knows_attention: bool = False,
    ) -> None:
        own_pages = num_pages + spare_pages(max_num_seqs, page_size)
        self.model, self.lookup = model, lookup
        self.branches: Branches | None = Branches(
            settings or SpeculativeConfig(), model.compressor, knows_attention=knows_attention
        )
        self.cache = KVCache(model.kv_shape, own_pages, page_size, model.device, model.attention)
        pages = DraftPages(
            PagePool(own_pages),
            page_size,
            num_kept=self.branches.num_kept,
            version=model.version,
            slot_bytes=model.kv_shape.bytes_per_token,
        )
        self.pages: DraftPages | None = pages
        features = FeatureStore(num_pages, page_size, model.feature_size, model.dtype, model.device)
        self._follower = Follower(model, self.branches, pages, self.cache, features, embed, caching=caching)
        self._page_size = page_size
        self._embed = embed
        self.graphs: LevelGraphs | None = None

    def capture(
        self, max_num_seqs: int, max_pages: int, axes: int, limits: TreeLimits, capture: Capture
    ) -> None:
        """Capture CUDA graphs that run small batches from now on.

        ``max_pages``: the most pages of a sequence. ``axes``: the number of position axes.
        """

        def make() -> LevelGraphs:
            graphs = LevelGraphs(
                self.model,
                self.cache,
                self._embed,
                capture,
                max_num_seqs=max_num_seqs,
                max_pages=max_pages,
                axes=axes,
                num_steps=limits.num_steps,
                topk=limits.topk,
            )
            graphs.prepare()
            self.model.capture(self.cache, max_num_seqs, max_pages, axes, capture)
            return graphs

        self.graphs = captured("the draft", make)

    def keep(self, spans: Seq[Span], outcome: Outcome) -> None:
        with _at_stake([span.sequence for span in spans]):
            self._follower.features.keep(
                spans, outcome.paths, outcome.features, outcome.embeddings, outcome.image_scores
            )

    def num_behind(self, sequence: Sequence) -> int:
        """Return how many slots the draft has to run before it can propose."""
        return num_behind(sequence)

    def ready(self, sequence: Sequence, num_steps: int, topk: int) -> bool:
        return can_follow(sequence, (num_steps - 1) * topk)

    def follow(self, running: Seq[Sequence]) -> None:
        for sequence in running:
            with _at_stake([sequence]):
                self._follower.follow(sequence)

    def forget(self, sequence: Sequence) -> None:
        if self.lookup is not None:  # all other state is dropped with the sequence's ``DraftKV``
            self.lookup.forget(sequence)

    @torch.inference_mode()
    def propose(self, sequences: Seq[Sequence], num_steps: int, topk: int) -> Candidates:
        """Propose candidates at most ``num_steps`` deep with ``topk`` children per node, within each
        sequence's limits.

        A sequence that gets no pages, since others have taken them, gets no candidates. Costs one forward
        pass over the waiting tokens, then one of ``S * topk`` rows per level.
        """
        granted = [reserve(sequence, (num_steps - 1) * topk) for sequence in sequences]
        served = [sequence for sequence, has_room in zip(sequences, granted, strict=True) if has_room]
        if not served:
            return nothing(len(sequences))
        try:
            candidates = self._grow(served, num_steps, topk)
        finally:
            for draft in [sequence.draft for sequence in served if sequence.draft is not None]:
                draft.table.truncate(draft.num_slots)
        return candidates if len(served) == len(sequences) else candidates.spread(granted)

    def _grow(self, sequences: Seq[Sequence], num_steps: int, topk: int) -> Candidates:
        states = self._catch_up(sequences)
        grow = self._level_by_level
        if self.model.grower is not None:
            grow = self._in_one_call
        elif self.graphs is not None:
            grow = self._by_graphs
        with _at_stake(sequences):  # or the same sequences would run out of memory again in every step
            token_ids, parents, scores, width = grow(sequences, states, num_steps, topk)
        depths = np.repeat(np.arange(1, num_steps + 1), [width, *[width * width] * (num_steps - 1)])
        deepest = np.array([s.tree_limits(num_steps, topk).num_steps for s in sequences])
        return Candidates(
            token_ids=token_ids,
            parents=parents,
            depths=np.broadcast_to(depths, token_ids.shape),
            scores=np.where(depths > deepest[:, None], np.float32("-inf"), scores),
        )

    def _catch_up(self, sequences: Seq[Sequence]) -> torch.Tensor:
        """Catch up with all sequences; return the last state of each, ``[S, hidden]``.

        A sequence that is far behind runs alone: if memory does not suffice for a long prompt, no other
        sequence loses its draft.
        """
        groups: list[list[Sequence]] = []
        for is_far, group in groupby(sequences, lambda sequence: num_behind(sequence) > CATCH_UP_TOKENS):
            members = list(group)
            groups += [[sequence] for sequence in members] if is_far else [members]
        states = []
        for members in groups:
            with _at_stake(members):
                states.append(self._follower.catch_up(members, [one.draft_reach for one in members]))
        return torch.cat(states)

    def _in_one_call(
        self, sequences: Seq[Sequence], states: torch.Tensor, num_steps: int, topk: int
    ) -> Grown:
        grower, drafts = self.model.grower, [draft_of(sequence) for sequence in sequences]
        assert grower is not None
        tables = padded([draft.table.pages for draft in drafts])
        slots = tables[:, :, None] * self._page_size + np.arange(self._page_size)
        positions = _positions(sequences, num_steps)
        roots = Roots(
            states,
            limits=np.array([s.limits.topk for s in sequences], np.int64),
            starts=np.array([draft.num_slots for draft in drafts], np.int64),
            table=slots.reshape(len(drafts), -1),
        )
        angles = self.model.angles(torch.from_numpy(positions.reshape(*positions.shape[:-2], -1)))
        width = min(topk, grower.num_outputs)
        kv = self.cache.keys[0], self.cache.values[0]
        return *grower.grow(roots, angles, kv, width, num_steps), width

    def _by_graphs(self, sequences: Seq[Sequence], states: torch.Tensor, num_steps: int, topk: int) -> Grown:
        drafts = [draft_of(sequence) for sequence in sequences]
        trees = Trees(
            states,
            limits=np.array([s.limits.topk for s in sequences], np.int64),
            starts=np.array([draft.num_slots for draft in drafts], np.int64),
            table=padded([draft.table.pages for draft in drafts]),
            positions=_positions(sequences, num_steps),
        )
        assert self.graphs is not None
        if not self.graphs.takes(trees, num_steps, topk):
            return self._level_by_level(sequences, states, num_steps, topk)
        return self.graphs.grow(trees, num_steps)

    def _level_by_level(
        self, sequences: Seq[Sequence], states: torch.Tensor, num_steps: int, topk: int
    ) -> Grown:
        rank_limits = torch.tensor([s.limits.topk for s in sequences], device=states.device)
        levels, frontier = first_level(self.model, states, topk, rank_limits)
        for run in range(1, num_steps):
            batch = self._level_batch(sequences, run, frontier.masks)
            joined = self.model.join(frontier.states.flatten(0, 1), self._embed(frontier.token_ids.flatten()))
            out = self.model.forward(prepare(batch, self.cache), joined)
            out = out.unflatten(0, (-1, frontier.token_ids.shape[1]))
            levels.append(children(self.model, frontier, out, rank_limits))
            if run + 1 < num_steps:
                frontier = next_frontier(frontier, out, levels, run)
        return to_host(levels, len(sequences))

    def _level_batch(self, sequences: Seq[Sequence], run: int, masks: torch.Tensor) -> Batch:
        """Build the batch of one frontier. Its masks are on the device and stay there."""
        width = masks.shape[1]
        parts = []
        for sequence in sequences:
            draft, at = draft_of(sequence), sequence.num_tokens - 1 + run
            parts.append(
                Part(
                    token_ids=np.zeros(width, dtype=np.int64),
                    positions=sequence.positions(at, at + 1).repeat(width, axis=-1),
                    pages=draft.table.pages,
                    first=draft.num_slots + (run - 1) * width,
                    tree_start=draft.num_slots,
                    masks=np.zeros(width, dtype=np.uint64),
                )
            )
        batch = build_batch(parts, self._page_size, self.model.device)
        return dataclasses.replace(batch, tree_masks=masks.flatten())


@contextmanager
def _at_stake(sequences: Seq[Sequence]) -> Iterator[None]:
    """Context in which running out of memory ends drafting for these sequences.

    Features that their drafts have not seen are then lost. The sequences continue without a draft, which
    frees its pages and all waiting features.
    """
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error):
            for sequence in sequences:
                if sequence.draft is not None:
                    sequence.draft.release()
                    sequence.draft = None
        raise


def _positions(sequences: Seq[Sequence], num_steps: int) -> Ints:
    """Return the positions of the levels that run, ``[num_steps - 1, S]`` or ``[3, num_steps - 1, S]``."""
    ahead = [s.positions(s.num_tokens, s.num_tokens + num_steps - 1) for s in sequences]
    return np.stack(ahead, axis=-1)
