"""Maps the tokens of a sequence to slots of the draft's KV, and hashes full pages of slots. No torch.

A text token takes one slot. A picture is a block, from its first placeholder to its last. If compressed, it
takes one slot for each visual token that is kept, and one for each text token between its placeholders. With
a picture of six tokens compressed to two:

    token   0 1 [2 3 4 5 6 7] 8 9
    slot    0 1 [   2 3     ] 4 5

Slots are in the order of positions, so a slot depends only on the tokens up to its own. The exception is a
compressed block, whose slots depend on the whole block: it is processed as a whole or not at all.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

from engine.hashing import DIGEST_SIZE
from processing.prompt import ImageInput

Sources = npt.NDArray[np.int32]

WHOLE = "none"
"""The tag of the branch that keeps every visual token."""


@dataclass(slots=True, frozen=True)
class View:
    """How the draft is to see one picture of a request.

    ``key``: the key under which the picture is remembered, its hash with the cache salt. ``tag``: the branch;
    ``None`` leaves the choice to the gate. ``grids``: (rows, columns) of its visual tokens.
    """

    image: ImageInput
    key: bytes
    grids: tuple[tuple[int, int], ...]
    tag: str | None


@dataclass(slots=True)
class Block:
    """A picture in the draft: tokens ``start .. end`` in ``num_slots`` slots from ``first_slot`` on.

    ``tag``: the branch that its visual tokens went through, which kept ``num_kept``; ``None`` if the draft
    does without the picture because its features were not available. ``digest``: a hash of everything that,
    together with what precedes the block, determines the contents of its slots. ``sources`` int32
    ``[num_kept]``: the visual tokens whose places its slots take; ``None`` until known, at the latest when
    the slots are made.
    """

    view: View
    start: int
    end: int
    first_slot: int
    tag: str | None
    num_kept: int
    digest: bytes
    sources: Sources | None = field(default=None, compare=False)

    @property
    def num_slots(self) -> int:
        num_text = self.end - self.start - self.view.image.num_tokens
        return 0 if self.tag is None else num_text + self.num_kept

    @property
    def end_slot(self) -> int:
        return self.first_slot + self.num_slots

    @property
    def is_cut(self) -> bool:
        """Whether some of the tokens have no slot of their own."""
        return self.tag != WHOLE


def draft_root(root: bytes, version: bytes) -> bytes:
    """Return the parent hash of a draft's first page.

    ``root``: that of the target's first page. ``version`` identifies everything that determines the contents
    of slots.
    """
    return blake2b(root + version, digest_size=DIGEST_SIZE, person=b"draft").digest()


@dataclass(slots=True)
class SlotMap:
    """The slots of a sequence without skipped tokens.

    ``blocks``: its pictures, in order, as far as their branches are decided. ``hashes``: the hashes of full
    pages of slots, a chain that starts from ``root``.
    """

    root: bytes
    page_size: int
    blocks: list[Block] = field(default_factory=list)
    hashes: list[bytes] = field(default_factory=list)

    def add(
        self,
        view: View,
        token_ids: Seq[int],
        tag: str | None,
        num_kept: int = 0,
        sources: Sources | None = None,
    ) -> None:
        """Add the next picture of the prompt ``token_ids``, whose branch is now decided."""
        image = view.image
        first, digest = self.slot_of(image.start), _digest(image, token_ids, tag, num_kept)
        self.blocks.append(Block(view, image.start, image.end, first, tag, num_kept, digest, sources))

    def slot_of(self, token: int) -> int:
        """Return how many slots the first ``token`` tokens take; ``token`` must not be inside a cut block."""
        index = bisect_left(self.blocks, token, key=_start)
        if not index:
            return token
        block = self.blocks[index - 1]
        if token >= block.end:
            return block.end_slot + token - block.end
        assert not block.is_cut, "a compressed picture is seen whole or not at all"
        return block.first_slot + token - block.start

    def before_cut(self, token: int) -> int:
        """Return ``token``, or the start of the cut block that it is inside of."""
        block = self._cut_around(token)
        return token if block is None else block.start

    def behind_cut(self, token: int) -> int:
        """Return ``token``, or the end of the cut block that it is inside of."""
        block = self._cut_around(token)
        return token if block is None else block.end

    def extend_hashes(self, token_ids: Seq[int], num_slots: int) -> None:
        """Hash the full pages of the first ``num_slots`` slots; no block among them may be missing."""
        for page in range(len(self.hashes), num_slots // self.page_size):
            first = page * self.page_size
            self.hashes.append(self._hash(token_ids, first, first + self.page_size, b"page"))

    def part_hash(self, token_ids: Seq[int], num_slots: int) -> bytes:
        """Return a hash of the slots in the last, partial page of ``num_slots`` and of all before them."""
        self.extend_hashes(token_ids, num_slots)
        first = num_slots // self.page_size * self.page_size
        return self._hash(token_ids, first, num_slots, b"part")

    def _cut_around(self, token: int) -> Block | None:
        index = bisect_left(self.blocks, token, key=_start)
        block = self.blocks[index - 1] if index else None
        return block if block is not None and block.is_cut and token < block.end else None

    def _hash(self, token_ids: Seq[int], first: int, end: int, person: bytes) -> bytes:
        """Hash slots ``first .. end`` of one page.

        A block, even one without slots, contributes its digest where it starts; text tokens contribute their
        ids.
        """
        page = first // self.page_size
        digest = blake2b(self.hashes[page - 1] if page else self.root, digest_size=DIGEST_SIZE, person=person)
        digest.update((end - first).to_bytes(8))
        at = first  # everything up to this slot has been hashed
        index = bisect_left(self.blocks, first, key=_end_slot)
        before = self.blocks[index - 1] if index else None
        ahead = 0 if before is None else before.end - before.end_slot  # offset of token indices from slots
        for block in self.blocks[index:]:
            if block.first_slot >= end:
                break
            if block.first_slot >= first:
                digest.update(array("q", token_ids[at + ahead : block.first_slot + ahead]).tobytes())
                digest.update(block.digest)
            at, ahead = block.end_slot, block.end - block.end_slot
        digest.update(array("q", token_ids[at + ahead : max(at, end) + ahead]).tobytes())
        return digest.digest()


def _start(block: Block) -> int:
    return block.start


def _end_slot(block: Block) -> int:
    return block.end_slot


def _digest(image: ImageInput, token_ids: Seq[int], tag: str | None, num_kept: int) -> bytes:
    digest = blake2b(digest_size=DIGEST_SIZE, person=b"picture")
    for part in (image.hash, repr((tag, num_kept)).encode()):
        digest.update(len(part).to_bytes(8) + part)
    runs = [number for start, length in image.spans for number in (start - image.start, length)]
    digest.update(len(runs).to_bytes(8) + array("q", runs).tobytes())
    digest.update(array("q", token_ids[image.start : image.end]).tobytes())
    return digest.digest()
