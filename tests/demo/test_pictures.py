"""Samples follow from their arguments, are right by their own checks, and the splits share no wording."""

import random
import re

import pytest

from demo import wordings
from demo.pictures import FAMILIES, TASKS, Split, generator, questions, sample, scene
from demo.scoring import score


@pytest.mark.parametrize("task", TASKS)
def test_a_sample_follows_from_its_arguments(task: str) -> None:
    first = sample(7, 3, "heldout", task)
    random.seed(1)  # the process-wide generator must not matter
    again = sample(7, 3, "heldout", task)
    assert first.turns == again.turns
    assert [image.tobytes() for image in first.images] == [image.tobytes() for image in again.images]
    other = sample(7, 4, "heldout", task)
    assert [image.tobytes() for image in other.images] != [image.tobytes() for image in first.images]


def test_drawing_leaves_the_process_wide_generator_alone() -> None:
    random.seed(5)
    before = random.getstate()
    for index in range(32):
        sample(1, index)
    assert random.getstate() == before


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_every_answer_is_right_by_its_own_check(split: Split) -> None:
    for index in range(160):
        one = sample(11, index, split)
        assert len(one.turns) == len(one.checks)
        for (question, answer), check in zip(one.turns, one.checks, strict=True):
            assert score(answer, check) == 1.0, (question, answer, check)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_question_of_a_scene_has_a_right_answer(family: str) -> None:
    for index in range(25):
        rng = generator(3, index, "train")
        drawn = scene(rng, family)
        for question in questions(drawn, rng, "train"):
            assert score(question.answer, question.check) == 1.0, question


def test_another_answer_is_wrong() -> None:
    """A check that everything passes would score any model well."""
    right = wrong = 0
    for index in range(200):
        rng = generator(4, index, "train")
        asked, other = questions(scene(rng), rng, "train"), questions(scene(rng), rng, "train")
        for question in asked:
            for stranger in other:
                right += score(stranger.answer, question.check) == 1.0
                wrong += score(stranger.answer, question.check) < 1.0
    assert right < 0.12 * wrong


@pytest.mark.parametrize("key", wordings.keys())
def test_heldout_wordings_are_never_trained_on(key: str) -> None:
    train, heldout = wordings.templates(key)
    assert train
    assert heldout

    def bare(text: str) -> str:
        return re.sub(r"\W+", " ", text).strip().lower()

    assert not {bare(text) for text in train} & {bare(text) for text in heldout}
    assert {frozenset(re.findall(r"{(\w+)}", text)) for text in heldout}


def test_splits_draw_other_pictures() -> None:
    train, heldout = sample(7, 3, "train", "count"), sample(7, 3, "heldout", "count")
    assert train.images[0].tobytes() != heldout.images[0].tobytes()


def test_pictures_come_in_many_sizes_and_two_where_asked() -> None:
    sizes = {sample(2, index, task="shape").images[0].size for index in range(40)}
    assert len(sizes) > 5
    assert len(sample(2, 0, task="two_pictures").images) == 2
    assert len(sample(2, 0, task="dialogue").turns) == 2


def test_an_unknown_task_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown task 'colour', choose one of color"):
        sample(1, 1, task="colour")
