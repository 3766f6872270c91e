"""The target writes the answers that its draft is trained on, with the engine.

Key data, says ViSpec (arXiv 2509.15235): a draft learns to speak as its target speaks. Only what others than
the assistant said is taken from a file, and each of the user's turns is answered in order. The answers stand
in ``NAME.answers.jsonl`` beside it, record for record, in OpenAI's format; a run that was stopped goes on
after the last chunk of them.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from engine.draft.files import fingerprint
from engine.llm import LLM
from training.errors import TrainingError
from training.records import Dialogue, Message, pictures_key, to_record
from training.settings import TrainSettings
from training.sources import read_items

CHUNK = 256
"""Dialogues answered together, and lost at most when a run is stopped."""


def answers_path(path: Path) -> Path:
    """Where the answers to the prompts in ``path`` go."""
    return path.with_name(path.stem + ".answers.jsonl")


def generate(settings: TrainSettings, folder: Path, paths: Sequence[Path]) -> list[Path]:
    """Answer every file of ``paths`` that is not answered yet; returns the files of answers.

    ``folder``: the target's. Raises ``TrainingError`` where there are no prompts, or answers that were made
    with other settings, or to other prompts, are in the way.
    """
    shared = {
        "model": folder.name,
        "weights": fingerprint(folder),
        "temperature": settings.generate_temperature,
        "max_tokens": settings.generate_max_tokens,
        "seed": settings.seed,
    }
    llm: LLM | None = None
    for path in paths:
        prompts = _prompts(path, settings)
        prompts_key = hashlib.sha256(path.read_bytes()).hexdigest()
        made_by = {**shared, "prompts": prompts_key, "pictures": pictures_key(prompts)}
        target, partial = answers_path(path), answers_path(path).with_suffix(".partial")
        done = _num_answered(target if target.exists() else partial, made_by)
        if done > len(prompts) or (target.exists() and done < len(prompts)):
            raise TrainingError(
                f"{target} answers {done} records, {path} has {len(prompts)}; remove the former"
            )
        if target.exists():
            continue
        llm = llm or LLM(str(folder), dtype=settings.dtype, device=settings.device)
        bar = tqdm(total=len(prompts), initial=done, desc=f"answering {path.name}", unit="dialogue")
        with open(partial, "ab") as out, bar:
            for first in range(done, len(prompts), CHUNK):
                answered = _answer(llm, prompts[first : first + CHUNK], made_by, first)
                for dialogue, error in answered:
                    record = to_record(dialogue, settings.image_folder or path.parent)
                    record |= {"generated": made_by} | ({"error": error} if error else {})
                    out.write(json.dumps(record).encode() + b"\n")
                out.flush()
                os.fsync(out.fileno())
                bar.update(len(answered))
        os.replace(partial, target)
    return [answers_path(path) for path in paths]


def _prompts(path: Path, settings: TrainSettings) -> list[Dialogue]:
    if path.is_dir():
        raise TrainingError(f"{path} holds texts, not prompts to answer")
    items = read_items([path], settings.image_folder, settings.max_length)
    return [item.without_answers() for item in items if isinstance(item, Dialogue)]


def _num_answered(path: Path, made_by: dict[str, Any]) -> int:
    """Whole lines in ``path``; a last one that was cut off is removed."""
    if not path.exists():
        return 0
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        os.truncate(path, len(whole))
    lines = whole.splitlines()
    if lines and (before := json.loads(lines[-1]).get("generated")) != made_by:
        raise TrainingError(
            f"{path} holds answers made with {before}, not {made_by}; remove it to begin again"
        )
    return len(lines)


def _answer(
    llm: LLM, prompts: Sequence[Dialogue], made_by: dict[str, Any], first: int
) -> list[tuple[Dialogue, str | None]]:
    """Each dialogue with an answer after every turn of the user, and why the last one is missing, if it is.

    All dialogues' first turns are answered together, then their second ones. All choices of one call share
    their noise (it depends on the seed and the position only), so every call has a seed of its own.
    """
    waiting = [list(prompt.messages) for prompt in prompts]
    said: list[list[Message]] = [[] for _ in prompts]
    errors: list[str | None] = [None for _ in prompts]
    for turn in range(max(sum(m.role == "user" for m in prompt.messages) for prompt in prompts)):
        for own, coming in zip(said, waiting, strict=True):
            while coming and not (own and own[-1].role == "user"):
                own.append(coming.pop(0))
        asked = [i for i, own in enumerate(said) if own[-1].role == "user" and errors[i] is None]
        replies = llm.generate(
            [Dialogue(tuple(said[i]), prompts[i].where).chat() for i in asked],
            progress=False,
            temperature=made_by["temperature"],
            max_tokens=made_by["max_tokens"],
            seed=(made_by["seed"] * 1_000_003 + first * 64 + turn) % 2**31,
        )
        for i, reply in zip(asked, replies, strict=True):
            errors[i] = reply.error
            if reply.error is None:
                said[i].append(Message("assistant", reply.text))
    return [(Dialogue(tuple(m), p.where), e) for m, p, e in zip(said, prompts, errors, strict=True)]
