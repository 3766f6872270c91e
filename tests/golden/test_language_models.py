"""Families that see pictures, over language models other than the one that their other tests run with."""

from __future__ import annotations

import pytest

from tests.conftest import BuildCheckpoint
from tests.golden import drafts
from tests.golden.drafts import Garbage
from tests.golden.reference import load_golden
from tests.golden.speculating import given, target_of
from tests.golden.test_families import check, no_draft, prompts_of
from tests.models import Family

OTHERS: tuple[Family, ...] = (
    "llava+qwen2",
    "llava_next+mistral",
    "llava_next+qwen3",
    "llava_onevision+llama",
    "idefics3+qwen2",
    "smolvlm+mistral_sliding",
    "internvl+llama",
    "internvl+qwen3",
)


@pytest.mark.parametrize("family", OTHERS)
def test_another_language_model_sees_as_well(family: Family, tiny: BuildCheckpoint) -> None:
    golden = load_golden(tiny(family))
    assert target_of(golden.folder)[0].adapter.text_config.model_type in family
    prompts = prompts_of(golden)
    check(golden, no_draft, prompts, family, page_size=5, max_num_batched_tokens=40)
    garbage = given(Garbage(drafts.mixed, 500))
    check(golden, garbage, prompts, f"{family}, garbage", page_size=16, cpu_kernels=False)
