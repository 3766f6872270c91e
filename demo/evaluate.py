"""Scores the demo model (or any OpenAI-compatible endpoint) on held-out pictures and wordings.

``evaluate`` runs plain ``transformers``; ``evaluate_url`` asks a server with the ``openai`` package. Both
return ``{"tasks": {task: {"score", "count"}}, "groups": {...}, "wrong": [...], ...}``. Knows samples and
scoring, but not training.
"""

import base64
import io
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from demo.pictures import TASKS, Sample, sample
from demo.scoring import score

SEED = 900_001
MAX_NEW_TOKENS = 160
GROUPS: dict[str, tuple[str, ...]] = {
    "shapes, colours, positions": ("color", "shape", "position"),
    "counting": ("count",),
    "words and numbers": ("word", "number"),
    "charts": ("bar", "line", "pie"),
    "tables and receipts": ("table", "receipt"),
    "yes/no and comparing": ("yesno", "compare"),
    "descriptions (facts)": ("describe",),
    "dialogues and two pictures": ("dialogue", "two_pictures"),
}
FLOORS = {"shapes, colours, positions": 0.85, "counting": 0.60, "words and numbers": 0.60, "charts": 0.40}

Turn = tuple[list[Image.Image], list[dict[str, Any]]]
Answer = Callable[[list[Turn]], list[str]]


def evaluate(
    model: Path | None = None,
    samples: int = 320,
    seed: int = SEED,
    batch: int = 16,
    dtype: str = "float32",
    tasks: tuple[str, ...] = TASKS,
    perplexity: bool = True,
    progress: bool = True,
) -> dict[str, Any]:
    """Score a model folder (None: the demo model) on ``samples`` held-out samples, with greedy decoding.

    Samples cycle through ``tasks``.
    """
    import torch
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    if model is None:
        from demo.build import build

        model = build()
    processor = AutoProcessor.from_pretrained(model)
    network = LlavaForConditionalGeneration.from_pretrained(model, dtype=getattr(torch, dtype)).eval()
    started = time.monotonic()
    report = _run(_transformers(network, processor), samples, seed, batch, tasks, progress)
    report["seconds"] = round(time.monotonic() - started, 1)
    if perplexity:
        report["text"] = text_perplexity(network, processor.tokenizer)
    return report


def evaluate_url(
    base_url: str,
    samples: int = 160,
    seed: int = SEED,
    model: str | None = None,
    api_key: str = "none",
    tasks: tuple[str, ...] = TASKS,
    progress: bool = True,
) -> dict[str, Any]:
    """Score an OpenAI-compatible endpoint (``base_url`` ends in /v1) on the same samples, one at a time."""
    from openai import OpenAI

    client: Any = OpenAI(base_url=base_url, api_key=api_key)
    name = model or client.models.list().data[0].id

    def answer(turns: list[Turn]) -> list[str]:
        replies = []
        for images, messages in turns:
            made = client.chat.completions.create(
                model=name,
                messages=_with_urls(messages, images),
                temperature=0.0,
                max_tokens=MAX_NEW_TOKENS,
            )
            replies.append(made.choices[0].message.content or "")
        return replies

    return _run(answer, samples, seed, 1, tasks, progress)


def _run(
    answer: Answer, samples: int, seed: int, batch: int, tasks: tuple[str, ...], progress: bool
) -> dict[str, Any]:
    from tqdm import tqdm

    results: list[tuple[str, float]] = []
    wrong: list[dict[str, Any]] = []
    todo = (sample(seed, i, "heldout", tasks[i % len(tasks)]) for i in range(samples))
    bar = tqdm(total=samples, desc="evaluate", disable=not progress, mininterval=5)
    for group in _batches(todo, batch):
        for one, replies in zip(group, dialogues(group, answer), strict=True):
            marks = [score(reply, check) for reply, check in zip(replies, one.checks, strict=True)]
            results.append((one.task, sum(marks) / len(marks)))
            if min(marks) < 1:
                wrong.append({"task": one.task, "turns": one.turns, "said": replies})
        bar.update(len(group))
    bar.close()
    return {
        "samples": samples,
        "seed": seed,
        "tasks": means(results, {task: (task,) for task in tasks}),
        "groups": means(results, GROUPS),
        "floors": FLOORS,
        "wrong": wrong,
    }


def means(
    results: list[tuple[str, float]], groups: dict[str, tuple[str, ...]]
) -> dict[str, dict[str, float]]:
    found = {}
    for name, members in groups.items():
        marks = [mark for task, mark in results if task in members]
        if marks:
            found[name] = {"score": round(sum(marks) / len(marks), 4), "count": len(marks)}
    return found


def _batches(samples: Iterator[Sample], size: int) -> Iterator[list[Sample]]:
    group: list[Sample] = []
    for one in samples:
        group.append(one)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def dialogues(group: list[Sample], answer: Answer) -> list[list[str]]:
    """Return the replies for each sample and turn; a second turn sees the model's own first reply."""
    messages: list[list[dict[str, Any]]] = [[] for _ in group]
    replies: list[list[str]] = [[] for _ in group]
    for turn in range(max(len(one.turns) for one in group)):
        live = [i for i, one in enumerate(group) if turn < len(one.turns)]
        for i in live:
            parts: list[dict[str, Any]] = [{"type": "image"} for _ in group[i].images] if turn == 0 else []
            messages[i].append(
                {"role": "user", "content": [*parts, {"type": "text", "text": group[i].turns[turn][0]}]}
            )
        for i, reply in zip(live, answer([(group[i].images, messages[i]) for i in live]), strict=True):
            replies[i].append(reply)
            messages[i].append({"role": "assistant", "content": reply})
    return replies


def _transformers(model: Any, processor: Any) -> Answer:
    import torch

    def answer(turns: list[Turn]) -> list[str]:
        texts = [processor.apply_chat_template(messages, add_generation_prompt=True) for _, messages in turns]
        images = [image for pictures, _ in turns for image in pictures]
        processor.tokenizer.padding_side = "left"
        inputs = processor(images=images, text=texts, return_tensors="pt", padding=True).to(model.device)
        inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
        with torch.inference_mode():
            made = model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
        return [
            processor.tokenizer.decode(row, skip_special_tokens=True).strip()
            for row in made[:, inputs["input_ids"].shape[1] :]
        ]

    return answer


def _with_urls(messages: list[dict[str, Any]], images: list[Image.Image]) -> list[dict[str, Any]]:
    """Return the messages with their image parts as data URLs of PNGs."""
    waiting = iter(images)
    return [
        {
            **message,
            "content": [
                _url(next(waiting)) if part["type"] == "image" else part for part in message["content"]
            ]
            if isinstance(message["content"], list)
            else message["content"],
        }
        for message in messages
    ]


def _url(image: Image.Image) -> dict[str, Any]:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return {
        "type": "image_url",
        "image_url": {"url": "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()},
    }


def text_perplexity(
    model: Any, tokenizer: Any, raw: Any = None, texts: int = 12, length: int = 256
) -> dict[str, float]:
    """Compare perplexity on held-out text with that of the raw language model (from the cache if None)."""
    from demo.language import language_folder
    from demo.text import passages

    if raw is None:
        from transformers import LlamaForCausalLM

        raw = LlamaForCausalLM.from_pretrained(language_folder(), dtype=model.dtype).eval()
    kept = passages(None, heldout=True)[:texts]
    rows = [tokenizer(text[: 8 * length], add_special_tokens=False).input_ids[:length] for text in kept]
    ours, theirs = (_perplexity(network, rows) for network in (model, raw))
    return {"perplexity": round(ours, 3), "raw": round(theirs, 3), "ratio": round(ours / theirs, 4)}


def _perplexity(model: Any, rows: list[list[int]]) -> float:
    import torch
    from torch.nn import functional as F

    total, count = 0.0, 0
    with torch.inference_mode():
        for row in rows:
            ids = torch.tensor([row], device=model.device)
            logits = model(input_ids=ids).logits[0, :-1].float()
            total += F.cross_entropy(logits, ids[0, 1:], reduction="sum").item()
            count += len(row) - 1
    return math.exp(total / count)
