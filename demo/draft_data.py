"""Write prompts for training and measuring the demo's draft: dialogues that the target is to answer.

    python -m demo.draft_data OUT --pictures 3000 --texts 1500
    python -m demo.draft_data OUT --pictures 64 --texts 64 --split heldout
    python -m demo.draft_data OUT --pictures 1000 --texts 0 --asides 300 --albums 200

writes ``OUT/SPLIT.jsonl`` (OpenAI's message format) and the pictures next to it. Everything is determined by
seed and split. The seeds are used nowhere else: neither the training of the model nor its evaluation draws
the same pictures. Held-out prompts have other pictures, wordings and topics. Knows no models.
"""

import argparse
import json
import tomllib
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from PIL.Image import Image

from demo.pictures import Split, generator, questions, sample, scene
from demo.text import documents
from demo.wordings import templates

SEEDS: dict[Split, int] = {"train": 7_101, "heldout": 7_102}
ALBUM = 6
"""Number of pictures in an album dialogue."""
EXCERPT = 700
"""Maximum number of characters that a prompt quotes from a document."""
HELDOUT_DOCUMENTS = 8
"""Every n-th document is quoted in held-out prompts only."""
_FILE = Path(__file__).with_name("assets") / "draft_prompts.toml"

Record = dict[str, Any]


def write(
    out: Path, split: Split, num_pictures: int, num_texts: int, num_asides: int = 0, num_albums: int = 0
) -> Path:
    """Write the file of prompts, with and without pictures, in random order, and return its path."""
    folder = out / f"{split}-pictures"
    folder.mkdir(parents=True, exist_ok=True)
    records = [picture_prompts(index, split, folder) for index in range(num_pictures)]
    records += [text_prompts(index, split) for index in range(num_texts)]
    records += [aside_prompts(index, split, folder) for index in range(num_asides)]
    records += [album_prompts(index, split, folder) for index in range(num_albums)]
    Random(f"specvlm/draft/{split}").shuffle(records)
    path = out / f"{split}.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@cache
def prompts(split: Split) -> dict[str, list[str]]:
    """Return the lists of ``assets/draft_prompts.toml`` for one split."""
    lists: dict[str, list[str]] = tomllib.loads(_FILE.read_text(encoding="utf-8"))[split]
    return lists


def picture_prompts(index: int, split: Split, folder: Path) -> Record:
    """Return a dialogue about a picture (one in twenty: about two), which is saved in ``folder``.

    Two in five begin with a description; one in four has two to four turns.
    """
    rng = generator(SEEDS[split], index, split)
    if index % 20 == 0:
        pair = sample(SEEDS[split], index, split, "two_pictures")
        images, asked = pair.images, [pair.turns[0][0]]
    else:
        drawn = scene(rng)
        images = [drawn.image]
        asked = [question.text for question in questions(drawn, rng, split)]
        rng.shuffle(asked)
        asked = asked[: rng.randint(2, 4) if rng.random() < 0.25 else 1]
        if rng.random() < 0.4:
            asked[0] = rng.choice([*prompts(split)["describe"], *_plain_describe(split)])
        elif rng.random() < 0.4:
            asked[0] = f"{asked[0]} {rng.choice(prompts(split)['explain'])}"
        if len(asked) > 1 and rng.random() < 0.4:
            asked[-1] = rng.choice(prompts(split)["again"])
    first, *later = asked
    return _dialogue([_shown(images, f"{index:05d}", folder, first), *later])


def aside_prompts(index: int, split: Split, folder: Path) -> Record:
    """Return a dialogue with a picture and a question that has nothing to do with it."""
    rng = generator(SEEDS[split] + 20, index, split)
    own = prompts(split)
    image = scene(rng).image
    asked = rng.choice(own["ask"]).format(rng.choice(own["topics"]))
    if rng.random() < 0.2:
        asked = rng.choice(own["plain"])
    return _dialogue([_shown([image], f"aside-{index:05d}", folder, asked)])


def album_prompts(index: int, split: Split, folder: Path) -> Record:
    """Return a dialogue with six pictures and a question about one of them, named by its place."""
    rng = generator(SEEDS[split] + 30, index, split)
    scenes = [scene(rng) for _ in range(ALBUM)]
    which = rng.randrange(ALBUM)
    about = rng.choice([question.text for question in questions(scenes[which], rng, split)])
    if rng.random() < 0.5:
        about = rng.choice(prompts(split)["describe"])
    asked = f"Look at picture {which + 1}. {about}"
    return _dialogue([_shown([one.image for one in scenes], f"album-{index:05d}", folder, asked)])


def _shown(images: list[Image], name: str, folder: Path, text: str) -> list[dict[str, Any]]:
    """Save the pictures in ``folder`` and return the content of a message with them and a text."""
    names = [f"{name}-{number}.png" for number in range(len(images))]
    for file, image in zip(names, images, strict=True):
        image.save(folder / file)
    parts = [{"type": "image_url", "image_url": {"url": f"{folder.name}/{file}"}} for file in names]
    return [*parts, {"type": "text", "text": text}]


def text_prompts(index: int, split: Split) -> Record:
    """Return a free chat: about a topic, a plain request, or a document; one in three has more turns."""
    rng = generator(SEEDS[split] + 10, index, split)
    own = prompts(split)
    kind = rng.choices(("topic", "plain", "document"), (12, 1, 5))[0]
    if kind == "topic":
        first = rng.choice(own["ask"]).format(rng.choice(own["topics"]))
    elif kind == "plain":
        first = rng.choice(own["plain"])
    else:
        first = rng.choice(own["document"]).format(_excerpt(rng, split))
    going_on = rng.sample(own["more"], rng.randint(1, 2)) if rng.random() < 0.33 else []
    return _dialogue([first, *going_on])


def _dialogue(asked: list[Any]) -> Record:
    return {"messages": [{"role": "user", "content": content} for content in asked]}


def _excerpt(rng: Random, split: Split) -> str:
    """Return whole paragraphs of one document, about EXCERPT characters long."""
    own = [
        text
        for number, text in enumerate(documents())
        if (number % HELDOUT_DOCUMENTS == 0) == (split == "heldout")
    ]
    paragraphs = [part.strip() for part in rng.choice(own).split("\n\n") if part.strip()]
    start = rng.randrange(len(paragraphs))
    chosen = paragraphs[start][:EXCERPT]
    for paragraph in paragraphs[start + 1 :]:
        if len(chosen) + len(paragraph) > EXCERPT:
            break
        chosen += "\n\n" + paragraph
    return chosen


def _plain_describe(split: Split) -> tuple[str, ...]:
    train, heldout = templates("describe")
    return heldout if split == "heldout" else train


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m demo.draft_data", description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="Folder to write to.")
    parser.add_argument(
        "--pictures",
        type=int,
        default=3000,
        help="Number of dialogues about an image or two (default: %(default)s).",
    )
    parser.add_argument(
        "--texts", type=int, default=1500, help="Number of dialogues without images (default: %(default)s)."
    )
    parser.add_argument(
        "--asides",
        type=int,
        default=0,
        help="Number of dialogues whose question is unrelated to the image (default: %(default)s).",
    )
    parser.add_argument(
        "--albums",
        type=int,
        default=0,
        help=f"Number of dialogues about one of {ALBUM} images (default: %(default)s).",
    )
    parser.add_argument(
        "--split",
        choices=("train", "heldout"),
        default="train",
        help="Split to draw from; the two share no images, wordings or topics (default: %(default)s).",
    )
    chosen = parser.parse_args()
    counts = (chosen.pictures, chosen.texts, chosen.asides, chosen.albums)
    print(write(chosen.out, chosen.split, *counts))


if __name__ == "__main__":
    main()
