"""The incremental detokeniser against the tokenizers library decoding everything at once."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from processing.detokenizer import Detokenizer
from processing.errors import UnsupportedModelError
from processing.vocabulary import Vocabulary
from tests.processing.samples import HARD_TEXTS, KINDS, Kind, backend

VOCABULARIES = {kind: Vocabulary(backend(kind)) for kind in KINDS}


def ordinary_ids(kind: Kind) -> list[int]:
    """Every id but lone bytes of byte-fallback vocabularies: for invalid runs of those, the library gives up
    on the whole run, where we keep the characters that are valid."""
    tokenizer = backend(kind)
    fallback = kind == "byte_fallback"
    return [
        i for i in range(tokenizer.get_vocab_size()) if not (fallback and "<0x" in tokenizer.id_to_token(i))
    ]


def stream(kind: Kind, ids: list[int], cuts: list[int], **options: bool) -> list[str]:
    detokenizer = Detokenizer(VOCABULARIES[kind], **options)
    bounds = [0, *sorted(min(cut, len(ids)) for cut in cuts), len(ids)]
    pieces = [detokenizer.feed(ids[a:b]) for a, b in pairwise(bounds)]
    return [*pieces, detokenizer.finish()]


CUTS = st.lists(st.integers(0, 40), max_size=8)


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_pieces_join_to_what_the_library_decodes(kind: Kind, skip: bool, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.sampled_from(ordinary_ids(kind)), max_size=40))
    pieces = stream(kind, ids, data.draw(CUTS), skip_special_tokens=skip)
    assert "".join(pieces) == backend(kind).decode(ids, skip_special_tokens=skip)


@pytest.mark.parametrize("kind", KINDS)
@given(text=st.one_of(st.text(max_size=30), st.sampled_from(HARD_TEXTS)), cuts=CUTS)
def test_any_text_comes_back_as_the_library_decodes_it(kind: Kind, text: str, cuts: list[int]) -> None:
    ids = backend(kind).encode(text, add_special_tokens=False).ids
    pieces = stream(kind, ids, cuts)
    assert "".join(pieces) == backend(kind).decode(ids)
    if kind != "metaspace" and "<" not in text and not text.startswith(" "):
        assert "".join(pieces) == text


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback"])
@pytest.mark.parametrize("text", HARD_TEXTS)
def test_no_piece_splits_a_character_and_none_lags(kind: Kind, text: str) -> None:
    detokenizer = Detokenizer(VOCABULARIES[kind])
    out = ""
    ids = backend(kind).encode(text, add_special_tokens=False).ids
    for token_id in ids:
        piece = detokenizer.feed([token_id])
        assert "\ufffd" not in piece
        out += piece
    assert out == backend(kind).decode(ids)  # complete before finish(): nothing lags behind


def test_an_incomplete_character_is_flushed_at_the_end() -> None:
    tokenizer = backend("byte_level")
    ids = tokenizer.encode("🦊", add_special_tokens=False).ids
    assert len(ids) == 4
    detokenizer = Detokenizer(VOCABULARIES["byte_level"])
    assert [detokenizer.feed(ids[:3]), detokenizer.finish()] == ["", "\ufffd"]


@pytest.mark.parametrize(("at_start", "text"), [(True, "The fox"), (False, " The fox")])
@pytest.mark.parametrize("kind", ["byte_fallback", "metaspace"])
def test_the_space_of_a_first_word_depends_on_what_came_before(kind: Kind, at_start: bool, text: str) -> None:
    ids = backend(kind).encode("The fox", add_special_tokens=False).ids
    assert "".join(stream(kind, ids, [1], at_text_start=at_start)) == text


def test_lone_bytes_of_a_fallback_run_keep_their_valid_neighbours() -> None:
    ids = [backend("byte_fallback").token_to_id(token) for token in ("<0xE4>", "<0xB8>", "<0xAD>", "<0xFF>")]
    assert "".join(stream("byte_fallback", ids, [1])) == "中\ufffd"


@pytest.mark.parametrize("kind", KINDS)
def test_token_bytes_join_to_the_text(kind: Kind) -> None:
    text = "The 图 👩‍👧 <image>" if kind != "metaspace" else "The quick <image> fox"
    vocabulary = VOCABULARIES[kind]
    ids = backend(kind).encode(text, add_special_tokens=False).ids
    joined = b"".join(vocabulary.token_bytes(i, first=n == 0) for n, i in enumerate(ids)).decode()
    assert joined.split() == text.split()
    assert vocabulary.token_text(backend(kind).token_to_id("<image>")) == "<image>"


def test_a_part_of_a_character_has_its_true_bytes() -> None:
    (first, *_) = backend("byte_level").encode("é", add_special_tokens=False).ids
    assert VOCABULARIES["byte_level"].token_bytes(first) == b"\xc3"
    assert VOCABULARIES["byte_level"].token_text(first) == "\ufffd"
    assert VOCABULARIES["byte_level"].token_bytes(10**6) == b""


def test_unknown_decoders_are_refused() -> None:
    tokenizer = Tokenizer(models.BPE())
    with pytest.raises(UnsupportedModelError, match="no decoder"):
        Vocabulary(tokenizer)
    tokenizer.decoder = decoders.WordPiece()
    with pytest.raises(UnsupportedModelError, match="WordPiece"):
        Vocabulary(tokenizer)
