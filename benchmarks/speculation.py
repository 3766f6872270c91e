"""Measures the speed-up by speculation for one stream, by kind of question and temperature.

Held-out questions about pictures of all kinds and free chat are answered to their natural end, with
speculation on and off in one engine. Only answers with the same tokens both ways are compared; others, which
differ at a near-tie, are counted.
"""

from __future__ import annotations

import statistics
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from benchmarks.ours import SPECULATE, Ours
from benchmarks.settings import Settings, run_measurement
from benchmarks.timing import judged
from benchmarks.workload import Chat, Trace
from demo.pictures import sample
from demo.text import prompts
from engine.draft.eagle import EagleDraft
from engine.draft.files import draft_config, save_draft
from engine.messages import SamplingParams, SpeculativeParams

SEED = 910_000
KINDS = {
    "describe": ("describe",),
    "short question": ("color", "position", "count", "yesno"),
    "read": ("word", "number"),
    "chart": ("bar", "line", "pie"),
    "free chat": (),
}
PICTURES = tuple(kind for kind in KINDS if kind != "free chat")
OFF = SpeculativeParams(enabled=False)
MOST_TOKENS = 160
_SUMMED = (
    *("seconds_on", "seconds_off", "tokens", "rounds", "spec_tokens", "drafted", "parted"),
    *("draft_seconds", "step_seconds"),
)
WEAK = 0.02  # standard deviation of the random draft's weights


@dataclass(slots=True)
class Tally:
    """Sums over the answers of one kind. ``histogram``: rounds by number of accepted drafts."""

    seconds_on: float = 0.0
    seconds_off: float = 0.0
    tokens: int = 0
    rounds: int = 0
    spec_tokens: int = 0
    drafted: int = 0
    histogram: list[int] = field(default_factory=list)
    parted: int = 0
    draft_seconds: float = 0.0
    step_seconds: float = 0.0
    ratios: list[float] = field(default_factory=list)

    def add(self, on: Trace, off: Trace) -> None:
        if on.token_ids != off.token_ids:  # a near-tie: counted, and left out of the times
            self.parted += 1
            return
        if len(on.token_ids) < 2:
            return
        self.seconds_on += on.decode_seconds
        self.seconds_off += off.decode_seconds
        self.ratios.append(off.decode_seconds / on.decode_seconds)
        self.tokens += len(on.token_ids)
        stats = on.speculation
        assert stats is not None
        self.rounds += stats.num_spec_steps
        self.spec_tokens += stats.num_spec_tokens
        self.drafted += stats.num_draft_tokens
        found = stats.acceptance_histogram
        self.histogram += [0] * (len(found) - len(self.histogram))
        for accepted, rounds in enumerate(found):
            self.histogram[accepted] += rounds

    def summary(self) -> dict[str, Any]:
        reached = [sum(self.histogram[depth:]) for depth in range(1, len(self.histogram))]
        return {
            "speed_up": self.seconds_off / self.seconds_on if self.seconds_on else None,
            "median_speed_up": statistics.median(self.ratios) if self.ratios else None,
            "tokens": self.tokens,
            "tokens_per_second": self.tokens / self.seconds_on if self.seconds_on else None,
            "mean_acceptance_length": self.spec_tokens / self.rounds if self.rounds else None,
            "accepted_per_depth": [count / self.rounds for count in reached],
            "nodes_per_round": self.drafted / self.rounds if self.rounds else None,
            "draft_share_of_time": self.draft_seconds / self.step_seconds if self.step_seconds else None,
            "answers": len(self.ratios),
            "answers_that_parted_at_a_near_tie": self.parted,
        }


def measure(settings: Settings) -> dict[str, Any]:
    ours = Ours(settings)
    results: dict[str, Any] = {"draft": ours.core.info.draft}
    for temperature in (0.0, 1.0):
        tallies = compare(ours, settings, temperature)
        results[f"temperature {temperature:g}"] = {
            kind: tally.summary() for kind, tally in tallies.items()
        } | {"all pictures": joined([tallies[kind] for kind in PICTURES]).summary()}
    results["random draft"] = joined(list(compare(random_draft(settings), settings, 0.0).values())).summary()
    greedy, sampled = results["temperature 0"], results["temperature 1"]
    results["figures"] = [
        judged("speed-up, images, T=0", greedy["all pictures"]["speed_up"], 2.0, at_least=True),
        judged("speed-up, images, T=1", sampled["all pictures"]["speed_up"], 1.6, at_least=True),
        judged("acceptance length, images, T=0", _length(greedy["all pictures"]), 3.5, at_least=True),
        judged("acceptance length, free chat, T=0", _length(greedy["free chat"]), 1.7, at_least=True),
        judged("speed-up, random draft, T=0", results["random draft"]["speed_up"], 0.97, at_least=True),
    ]
    return results


def _length(summary: dict[str, Any]) -> float:
    """Return the tokens per round; if nothing was drafted, 1, as in plain decoding."""
    return summary["mean_acceptance_length"] or 1.0


def compare(
    ours: Ours,
    settings: Settings,
    temperature: float,
    speculative: SpeculativeParams = SPECULATE,
    *,
    salt: str = "",
) -> dict[str, Tally]:
    """Answer the same questions with and without speculation, alternating the order (AB, BA).

    To ask them again in the same engine, use another ``salt``, or n-gram lookup would find the old answers.
    """
    tallies = {kind: Tally() for kind in KINDS}
    warm = questions("describe", settings, 1)[0]
    ours.answer([warm], SamplingParams(max_tokens=8, temperature=0.0))
    for kind, tally in tallies.items():
        for index, chat in enumerate(questions(kind, settings, 2 * settings.repeats)):
            sampling = SamplingParams(max_tokens=MOST_TOKENS, temperature=temperature, seed=index)
            ways = {"on": speculative, "off": OFF}
            found: dict[str, Trace] = {}
            for way in ("on", "off") if index % 2 else ("off", "on"):
                before = ours.core.stats
                (found[way],) = ours.answer([chat], sampling, ways[way], salt=f"{way}{temperature}{salt}")
                if way == "on":
                    after = ours.core.stats
                    tally.draft_seconds += after.draft_seconds - before.draft_seconds
                    tally.step_seconds += after.step_seconds - before.step_seconds
            tally.add(found["on"], found["off"])
    return tallies


def questions(kind: str, settings: Settings, count: int) -> list[Chat]:
    """Return held-out questions about pictures, or for free chat, prompts that no training text answers."""
    if kind == "free chat":
        texts = prompts()[:: max(1, len(prompts()) // count)][:count]
        return [[{"role": "user", "content": [{"type": "text", "text": text}]}] for text in texts]
    tasks, chats = KINDS[kind], []
    for index in range(count):
        drawn = sample(SEED + settings.seed, index, "heldout", tasks[index % len(tasks)])
        pictures = [{"type": "image", "image": image} for image in drawn.images]
        chats.append([{"role": "user", "content": [*pictures, {"type": "text", "text": drawn.turns[0][0]}]}])
    return chats


def random_draft(settings: Settings) -> Ours:
    """Create an engine with an untrained draft, for which speculation must cost next to nothing."""
    folder = Path(tempfile.mkdtemp(prefix="random-draft-"))
    text_config = AutoConfig.from_pretrained(settings.model).get_text_config()
    draft = EagleDraft(text_config, attn_implementation="sdpa")
    generator = torch.Generator().manual_seed(settings.seed)
    for parameter in draft.parameters():
        torch.nn.init.normal_(parameter, std=WEAK, generator=generator)
    vocabulary = torch.randperm(int(text_config.vocab_size), generator=generator)[:8192]
    save_draft(folder, draft, draft_config(text_config, "random", Path(settings.model)), vocabulary)
    return Ours(settings, draft=str(folder))


def joined(tallies: list[Tally]) -> Tally:
    total = Tally()
    for tally in tallies:
        for name in _SUMMED:
            setattr(total, name, getattr(total, name) + getattr(tally, name))
        total.ratios += tally.ratios
        longest = max(len(total.histogram), len(tally.histogram))
        padded = [h + [0] * (longest - len(h)) for h in (total.histogram, tally.histogram)]
        total.histogram = [a + b for a, b in zip(*padded, strict=True)]
    return total


if __name__ == "__main__":
    run_measurement(measure)
