"""Has the target write the answers that its draft is trained on, with the engine.

ViSpec (arXiv 2509.15235) finds such data essential: a draft learns to imitate its target. Only the messages
that are not the assistant's are taken from a file, and each of the user's turns is answered in order. The
answers are written to ``NAME.answers.jsonl`` beside it, record for record, in OpenAI's format; a run that was
stopped resumes after the last complete chunk.
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
"""Number of dialogues answered together: the most that can be lost when a run is stopped."""


def answers_path(path: Path) -> Path:
    """Return the file for the answers to the prompts in ``path``."""
    return path.with_name(path.stem + ".answers.jsonl")


def generate(settings: TrainSettings, folder: Path, paths: Sequence[Path]) -> list[Path]:
    """Answer every file of ``paths`` that has not been answered yet, and return the files of answers.

    ``folder``: the target's folder. Raises ``TrainingError`` if there are no prompts, or if there already are
    answers that were generated with other settings or for other prompts.
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
                f"{target} answers {done} records, but {path} has {len(prompts)}; remove {target.name}"
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
        raise TrainingError(f"{path} is a folder of texts; --generate needs files of dialogues")
    items = read_items([path], settings.image_folder, settings.max_length)
    return [item.without_answers() for item in items if isinstance(item, Dialogue)]


def _num_answered(path: Path, made_by: dict[str, Any]) -> int:
    """Return the number of complete lines in ``path``; a truncated last line is removed."""
    if not path.exists():
        return 0
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        os.truncate(path, len(whole))
    lines = whole.splitlines()
    before = json.loads(lines[-1]).get("generated") if lines else None
    if before is not None and before != {name: made_by.get(name) for name in before}:
        raise TrainingError(
            f"{path} holds answers generated with {before}, not {made_by}; remove it to start over"
        )
    return len(lines)


def _answer(
    llm: LLM, prompts: Sequence[Dialogue], made_by: dict[str, Any], first: int
) -> list[tuple[Dialogue, str | None]]:
    """Return each dialogue with an answer after every user turn, and the error that ended it, if any.

    The first turns of all dialogues are answered together, then the second ones, and so on. All requests of
    one call share their sampling noise (it depends on the seed and the position only), so every call has a
    seed of its own.
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
