"""Question wordings, in two disjoint sets: one for training and one for the held-out split.

The wordings are in ``assets/wordings.toml``. Knows nothing of scenes; fields in braces are filled in by the
module that asks.
"""

import tomllib
from functools import cache
from pathlib import Path
from random import Random

_FILE = Path(__file__).with_name("assets") / "wordings.toml"


def wording(key: str, rng: Random, split: str, **fields: str) -> str:
    """Return a wording of question ``key`` from ``split`` ("train" or "heldout"), with fields filled in."""
    train, heldout = templates(key)
    options = heldout if split == "heldout" else train
    return options[rng.randrange(len(options))].format(**fields)


def keys() -> tuple[str, ...]:
    """Return all question keys."""
    return tuple(_wordings())


def templates(key: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the (train, heldout) templates of one question."""
    own = _wordings()[key]
    return tuple(own["train"]), tuple(own["heldout"])


@cache
def _wordings() -> dict[str, dict[str, list[str]]]:
    return tomllib.loads(_FILE.read_text(encoding="utf-8"))
