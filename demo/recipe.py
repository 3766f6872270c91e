"""The training recipe as data: stages with their lengths, learning rates and seeds.

Contains only numbers. ``demo.train`` runs it; the model card quotes it.
"""

from dataclasses import dataclass

MIX = (8, 7, 2, 1.5, 1.5, 1.5, 2)
READING = (3, 9, 2.5, 2, 2, 3, 3.5)
TALK = (8, 7, 2.5, 2, 2, 2, 2.5)
WHERE = (18, 6, 2, 2.5, 2, 2, 2)
"""Relative frequencies of ``demo.pictures.FAMILIES`` (shapes, sign, bar, line, pie, table, receipt): first,
while learning to read, in dialogues, and in the last dialogues, which are mostly about positions."""


@dataclass(slots=True, frozen=True)
class Stage:
    """One stage of training.

    ``kind`` is ``eyes`` (tower and projector on dense labels) or ``joint`` (through the language model).
    ``matrix_lr`` is the learning rate of Muon for the tower's hidden matrices, ``lr`` that of AdamW for the
    rest of tower, projector and heads, ``lora_lr`` that of AdamW for the delta. ``batch`` counts pictures
    (eyes) or rows (joint), ``extra`` the pictures that get dense labels only. All random draws are determined
    by the seed; with ``places``, the dense labels of shapes also say where they are.
    """

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
    mix: tuple[float, ...] = MIX
    places: bool = False


RECIPE: tuple[Stage, ...] = (
    Stage("eyes", "eyes", steps=480, batch=64, seed=101, matrix_lr=2e-3, lr=1e-3, final=1.0),
    Stage("reading", "eyes", steps=1100, batch=64, seed=111, matrix_lr=2e-3, lr=1e-3, mix=READING),
    Stage(
        "joint",
        "joint",
        mix=TALK,
        steps=592,
        batch=4,
        seed=202,
        matrix_lr=6e-4,
        lr=5e-4,
        lora_lr=1e-3,
        extra=12,
        dense_weight=0.3,
        text_weight=0.5,
        final=1.0,
    ),
    Stage(
        "polish",
        "joint",
        mix=TALK,
        steps=264,
        batch=4,
        seed=303,
        matrix_lr=4e-4,
        lr=4e-4,
        lora_lr=8e-4,
        extra=12,
        warmup=20,
        dense_weight=0.3,
        text_weight=1.0,
        final=1.0,
    ),
    Stage(
        "places",
        "joint",
        mix=TALK,
        steps=340,
        batch=4,
        seed=404,
        matrix_lr=5e-4,
        lr=5e-4,
        lora_lr=8e-4,
        extra=12,
        warmup=10,
        dense_weight=0.4,
        text_weight=1.0,
        places=True,
    ),
    Stage(
        "sight",
        "eyes",
        steps=300,
        batch=64,
        seed=505,
        matrix_lr=8e-4,
        lr=5e-4,
        warmup=20,
        final=0.5,
        mix=READING,
        places=True,
    ),
    Stage(
        "speak",
        "joint",
        mix=TALK,
        steps=2000,
        batch=4,
        seed=606,
        matrix_lr=5e-4,
        lr=5e-4,
        lora_lr=1e-3,
        extra=12,
        warmup=20,
        dense_weight=0.4,
        text_weight=1.0,
        places=True,
    ),
    Stage(
        "where",
        "joint",
        mix=WHERE,
        steps=560,
        batch=4,
        seed=707,
        matrix_lr=4e-4,
        lr=4e-4,
        lora_lr=1e-3,
        extra=8,
        warmup=15,
        final=0.03,
        dense_weight=0.3,
        text_weight=1.0,
        places=True,
    ),
)


def stage(name: str) -> Stage:
    """Return the stage called ``name``. Raises KeyError if there is none."""
    return {one.name: one for one in RECIPE}[name]
