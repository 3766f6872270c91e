"""The acceptance length that training reports is the one that chain speculation would have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from compressors.base import Whole
from processing.processor import Processor
from tests.training.conftest import picture_record, text_record
from tests.training.targets import draft_chain
from training.acceptance import Acceptance, answers, measure, walk
from training.batches import Batch, make_batch
from training.compression import always
from training.data import Data
from training.encode import Encoder
from training.index import build_index
from training.packing import Pass
from training.records import parse_record
from training.student import new_draft
from training.teacher import Teacher, stop_token_ids

CPU = torch.device("cpu")


def make_data(folder: Path, tmp_path: Path, mask: str = "assistant") -> Data:
    records = [picture_record(n, tmp_path) if n % 2 else text_record(n, 2) for n in range(4)]
    items = [parse_record(record, tmp_path, f"here:{n}") for n, record in enumerate(records)]
    encoder = Encoder(Processor.from_pretrained(str(folder)), stop_token_ids(folder), mask, 512)
    return Data(items, build_index(items, encoder, "key", tmp_path / "index", workers=0), encoder)


def one_batch(data: Data, rows: list[list[int]]) -> Batch:
    return make_batch(data.items, data.index, data.encoder, Pass(rows, 0))


def greedy_batch(teacher: Teacher, batch: Batch) -> Batch:
    """The same rows with the target's own greedy answers in place of the given ones."""
    ids = batch.ids.clone()
    for row, slot in batch.predicts.nonzero().tolist():  # in order: later ones follow from earlier ones
        current = replace(batch, ids=ids)
        features = teacher.features(teacher.embed(current), batch.positions)
        ids[row, slot + 1] = teacher.head(None)(features[row, slot]).argmax()
    return replace(batch, ids=ids)


@pytest.mark.parametrize("full", [True, False], ids=["full head", "draft vocabulary"])
def test_it_is_what_drafting_and_verifying_token_by_token_gives(
    full: bool, tiny: Callable[..., Path], tmp_path: Path
) -> None:
    """Rounds in plain Python: draft on the tokens that were drafted, verify, keep, go on."""
    folder, steps = tiny("llava"), 3
    teacher = Teacher.load(folder, "float32", CPU)
    data = make_data(folder, tmp_path)
    batch = greedy_batch(teacher, one_batch(data, [[0, 1], [2, 3]]))
    draft = new_draft(teacher.text_config, 0, teacher.last_layer)
    train_a_little(draft, teacher, batch)
    vocabulary = None if full else torch.arange(3, 300)
    choices = {"none": always(Whole())}
    (found,) = measure(draft, teacher, [batch], vocabulary, steps=steps, bf16=False, choices=choices).values()

    histogram = np.zeros(steps + 1, np.int64)
    embedded = teacher.embed(batch)
    features = teacher.features(embedded, batch.positions)
    head, embed = teacher.head(vocabulary), teacher._embed
    for row in range(len(batch.ids)):
        for first, last in answers(batch.predicts[row].numpy()):
            own = batch.dialogues[row] == batch.dialogues[row, first]
            offset = int(own.nonzero()[0])
            ids, e, f = batch.ids[row, own], embedded[row, own], features[row, own]
            root, end = first - offset, last - offset
            while root < end:
                drafts: list[int] = []
                for _ in range(min(steps, end - root)):
                    state = draft_chain(draft, e, f, root, [embed(torch.tensor(d)) for d in drafts])[-1]
                    best = int(head(state).argmax())
                    drafts.append(best if vocabulary is None else int(vocabulary[best]))
                wanted = ids[root + 1 : root + 1 + len(drafts)].tolist()
                kept = next(
                    (i for i, (a, b) in enumerate(zip(drafts, wanted, strict=True)) if a != b), len(drafts)
                )
                histogram[kept] += 1
                root += kept + 1
    assert found.histogram.tolist() == histogram.tolist()
    assert (histogram > 0).sum() >= 3, "the draft should be right now and then"
    assert found.num_greedy == found.num_predicted == int(batch.predicts.sum())


def train_a_little(draft: torch.nn.Module, teacher: Teacher, batch: Batch) -> None:
    """Train the draft until some of its predictions are right and others wrong."""
    from training.rows import whole_rows
    from training.unroll import unrolled

    optimizer = torch.optim.AdamW(draft.parameters(), lr=5e-3)
    embedded = teacher.embed(batch)
    features = teacher.features(embedded, batch.positions)
    labels = teacher.head(None)(features).argmax(-1)
    for _ in range(25):
        rows = whole_rows(draft, embedded, features, batch.positions, batch.dialogues)  # type: ignore[arg-type]
        states = unrolled(draft, rows, 2)  # type: ignore[arg-type]
        loss = sum(
            torch.nn.functional.cross_entropy(teacher.head(None)(s)[batch.predicts], labels[batch.predicts])
            for s in states
        )
        optimizer.zero_grad()
        loss.backward()  # type: ignore[union-attr]
        optimizer.step()


def test_rounds_of_known_hits() -> None:
    hits = np.array([[1, 1, 0, 1, 1, 1], [0, 1, 1, 1, 1, 1]], bool)
    agrees = np.ones(6, bool)
    # Tokens 0..6, two drafts a round: 0 -> hit at slot 0, slot 1 in step 1 hit: two kept, root 3; and so on.
    assert walk(hits, agrees, 0, 6) == ([2, 2], 6)
    # The data leave the target's way after slot 0: nobody can say what the second draft would have met.
    agrees[0] = False
    assert walk(hits, agrees, 0, 6) == ([1, 0, 2], 6)
    # The last round is cut by the end of the answer.
    assert walk(hits, np.ones(6, bool), 4, 5) == ([1], 1)


@given(st.integers(1, 5), st.lists(st.booleans(), min_size=2, max_size=40), st.randoms())
def test_every_token_is_gained_once(steps: int, agree: list[bool], rng: object) -> None:
    agrees = np.array(agree)
    hits = np.array([[rng.random() < 0.7 for _ in agree] for _ in range(steps)])
    accepted, gained = walk(hits, agrees, 0, len(agree))
    assert gained == len(agree)
    assert all(0 <= k <= steps for k in accepted)
    assert sum(accepted) + len(accepted) - gained in (0, 1)  # the last round may end without a bonus


def test_answers_are_runs_of_predicted_tokens() -> None:
    assert answers(np.array([0, 1, 1, 0, 0, 1, 0], bool)) == [(2, 3), (6, 6)]


def test_sums_over_processes() -> None:
    one = Acceptance(np.array([[1, 3, 0], [3, 0, 1]]), np.array([6, 7]), 12, 14, 9, 3)
    assert Acceptance.from_vector(one.vector()).describe() == one.describe()
    assert one.describe()["accepted_per_depth"] == [0.5, 0.125]
    assert one.length == 13 / 8
