"""Text-only training data that preserve the language model's behaviour: help topics and its own answers.

Deals with strings; the language model is passed in where it has to answer.
"""

import json
from pathlib import Path
from typing import Any

SYSTEM = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
)
USER, END, ASSISTANT = "<|im_start|>user\n", "<|im_end|>\n", "<|im_start|>assistant\n"

_THINGS = (
    "the moon",
    "bread",
    "a bicycle",
    "photosynthesis",
    "the water cycle",
    "chess",
    "a volcano",
    "honey",
    "gravity",
    "the Roman Empire",
    "jazz music",
    "a computer",
    "friendship",
    "the ocean",
    "coffee",
    "the human heart",
    "a library",
    "football",
    "a train",
    "winter",
)
_ASKS = (
    "What is {}?",
    "Tell me something interesting about {}.",
    "Write three sentences about {}.",
)
_PLAIN = (
    "What is the capital of France?",
    "What is the capital of Japan?",
    "Hello! How are you?",
    "Who are you?",
    "What is 7 plus 5?",
    "What is 12 times 3?",
    "Write a short email to cancel a meeting.",
    "Translate 'good morning' into Spanish.",
    "List three colors.",
    "How do I boil an egg?",
    "Write a Python function that adds two numbers.",
    "Tell me a joke.",
    "What can you do?",
    "Give me a tip for sleeping better.",
    "Who wrote Romeo and Juliet?",
    "How many days are in a week?",
    "What should I cook tonight?",
    "Summarize the story of Cinderella.",
    "What is the largest planet?",
    "Thank you for your help!",
)
HELDOUT_EVERY = 8
"""Every n-th text is held out from training, to measure perplexity on."""


def prompts() -> list[str]:
    """Return all text-only prompts in a fixed order."""
    return [*_PLAIN, *(ask.format(thing) for ask in _ASKS for thing in _THINGS)]


def documents() -> list[str]:
    """Return English prose that comes with every Python: the topics of its help system."""
    from pydoc_data.topics import topics

    return [topics[name] for name in sorted(topics) if len(topics[name]) > 1500]


def chat(prompt: str, answer: str) -> str:
    """Return a one-turn dialogue as the chat template renders it."""
    return SYSTEM + USER + prompt + END + ASSISTANT + answer + END


def passages(answers: Path | None, heldout: bool = False) -> list[str]:
    """Return training (or held-out) texts: documents and, if the file ``answers`` exists, its chats."""
    own = json.loads(answers.read_text()) if answers is not None and answers.exists() else []
    chats = [chat(prompt, answer) for prompt, answer in own]
    found = []
    for texts in (documents(), chats, chats):
        found += [text for i, text in enumerate(texts) if (i % HELDOUT_EVERY == 0) == heldout]
    return found


def own_answers(model: Any, language: Path, out: Path) -> Path:
    """Return ``out/answers.json``; if it is missing, the raw language model writes it now."""
    from transformers import AutoTokenizer

    path = out / "answers.json"
    if not path.exists():
        write_answers(model, AutoTokenizer.from_pretrained(language), path)
    return path


def write_answers(model: Any, tokenizer: Any, path: Path, batch: int = 80, tokens: int = 90) -> None:
    """Let the raw language model answer every prompt greedily, and save the answers as JSON to ``path``."""
    import torch

    tokenizer.padding_side = "left"
    answers: list[tuple[str, str]] = []
    asked = prompts()
    for at in range(0, len(asked), batch):
        part = asked[at : at + batch]
        texts = [SYSTEM + USER + prompt + END + ASSISTANT for prompt in part]
        inputs = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
        with torch.inference_mode():
            made = model.generate(
                **inputs, max_new_tokens=tokens, do_sample=False, repetition_penalty=1.1, pad_token_id=2
            )
        for prompt, row in zip(part, made[:, inputs["input_ids"].shape[1] :], strict=True):
            answers.append((prompt, tokenizer.decode(row, skip_special_tokens=True).strip()))
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(answers))
    partial.rename(path)
