"""The training recipe as data: which stages, how long, how fast, with which seeds.

Knows numbers only. ``demo.train`` runs it; the model card quotes it.
"""

from dataclasses import dataclass


@dataclass(slots=True, frozen=True)
class Stage:
    """One stage. ``kind`` is ``eyes`` (tower and projector against dense labels) or ``joint`` (through the
    language model). ``matrix_lr`` drives Muon on the tower's hidden matrices, ``lr`` AdamW on the rest of
    tower, projector and heads, ``lora_lr`` AdamW on the delta. ``batch`` counts pictures (eyes) or rows
    (joint),
    ``extra`` pictures that get dense labels only. Everything drawn follows from ``seed`` and the step."""

    name: str
    kind: str
    steps: int
    batch: int
    seed: int
    matrix_lr: float
    lr: float
    lora_lr: float = 0.0
    rank: int = 16
    extra: int = 0
    warmup: int = 50
    final: float = 0.05
    dense_weight: float = 1.0
    text_weight: float = 0.0


RECIPE: tuple[Stage, ...] = (
    Stage("eyes", "eyes", steps=1100, batch=64, seed=101, matrix_lr=2e-3, lr=1e-3),
    Stage(
        "joint",
        "joint",
        steps=2000,
        batch=6,
        seed=202,
        matrix_lr=6e-4,
        lr=5e-4,
        lora_lr=6e-4,
        extra=16,
        dense_weight=0.3,
        text_weight=0.5,
    ),
)


def stage(name: str) -> Stage:
    """The stage called ``name``; KeyError when there is none."""
    return {one.name: one for one in RECIPE}[name]
