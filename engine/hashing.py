"""Content hashes of full pages: a chain over (parent, token ids, pictures), rooted in the cache salt.

Equal hashes mean equal keys and values in a page, since attention is causal: everything that a page's
content depends on is hashed into it or into its parents. Knows neither pages nor torch.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Sequence
from hashlib import blake2b

from processing.prompt import ImageInput

DIGEST_SIZE = 16


def root_hash(salt: str) -> bytes:
    """Return the parent hash of the first page. Each salt gives its own chain: caches are not shared."""
    return blake2b(salt.encode("utf-8", "surrogatepass"), digest_size=DIGEST_SIZE, person=b"root").digest()


def extend_hashes(
    hashes: list[bytes],
    root: bytes,
    token_ids: Sequence[int],
    images: Sequence[ImageInput],
    page_size: int,
) -> None:
    """Append to ``hashes`` the hash of every full page of ``token_ids`` that it does not cover yet."""
    num_full = len(token_ids) // page_size
    if len(hashes) == num_full:
        return
    ends = [image.end for image in images]
    for page in range(len(hashes), num_full):
        start, end = page * page_size, (page + 1) * page_size
        digest = blake2b(hashes[-1] if hashes else root, digest_size=DIGEST_SIZE, person=b"page")
        digest.update(array("q", token_ids[start:end]).tobytes())
        # Placeholder ids are the same for every picture, so the hash must include the picture itself and the
        # page's position in it.
        index = bisect_right(ends, start)
        while index < len(images) and images[index].start < end:
            place = (images[index].start - start).to_bytes(8, signed=True)
            digest.update(len(images[index].hash).to_bytes(2) + images[index].hash + place)
            index += 1
        hashes.append(digest.digest())
