"""The CUDA attention kernel, run by Triton's interpreter on a CPU, against the plain formula.

No GPU is needed and none is used: this shows that the kernel computes the right thing, not that it compiles.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.kernels.check import CLOSE, Spans, difference
from engine.kernels.choose import attention_kernels
from engine.kernels.rows import CpuAttention
from engine.kv_cache import KVShape
from tests.conftest import BuildCheckpoint
from tests.engine.own_kernels import own_kernels
from tests.engine.test_attention import Scene
from tests.engine.whole_models import check_answers, loaded
from tests.golden.reference import load_golden
from tests.imports import ROOT

pytest.importorskip("triton", reason="Triton is not installed (it exists for Linux; see extra dev)")

from engine.kernels.triton_attention import TritonAttention

FEW, MANY = TritonAttention(processors=1), TritonAttention(processors=64)
CPU = torch.device("cpu")

# heads, KV heads, size of a head: shared by 3, not shared, sizes that are no power of two, shared by 7
SIZES = st.sampled_from([(6, 2, 8), (2, 2, 16), (3, 3, 20), (7, 1, 5)])


def close(scene: Scene, window: int | None) -> None:
    torch.testing.assert_close(scene.run(window), scene.expected(window), rtol=1e-4, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1 << 16),
    spans=st.lists(
        st.tuples(st.sampled_from([0, 1, 5, 17, 70]), st.integers(1, 9), st.booleans()),
        min_size=1,
        max_size=4,
    ),
    page_size=st.sampled_from([1, 3, 16]),
    window=st.sampled_from([None, None, 1, 4]),
    sizes=SIZES,
)
def test_equals_the_formula(
    seed: int,
    spans: list[tuple[int, int, bool]],
    page_size: int,
    window: int | None,
    sizes: tuple[int, int, int],
) -> None:
    prefixes, queries, trees = (list(column) for column in zip(*spans, strict=True))
    close(Scene(seed, prefixes, queries, page_size, trees, attention=FEW, sizes=sizes), window)


@settings(max_examples=10, deadline=None)
@given(
    seed=st.integers(0, 1 << 16),
    spans=st.lists(
        st.tuples(st.sampled_from([0, 1, 17]), st.integers(1, 9), st.integers(0, 40), st.booleans()),
        min_size=1,
        max_size=3,
    ),
)
def test_trees_whose_earlier_nodes_are_in_kv(seed: int, spans: list[tuple[int, int, int, bool]]) -> None:
    prefixes, queries, ran, trees = (list(column) for column in zip(*spans, strict=True))
    ran = [r if tree else 0 for r, tree in zip(ran, trees, strict=True)]
    close(Scene(seed, prefixes, queries, 4, trees, ran, FEW), None)


def test_a_tree_of_64_nodes_beside_a_prompt_of_many_tiles() -> None:
    close(Scene(7, [5, 9], [64, 80], 16, [True, False], attention=FEW), None)  # bit 63 is the sign bit
    partly = Scene(5, [9, 3], [8, 2], 4, [True, True], [56, 62], FEW)
    close(partly, None)
    with pytest.raises(RuntimeError, match="sliding windows are not supported for a tree"):
        partly.run(4)


@pytest.mark.parametrize("window", [None, 5])
def test_rows_that_see_later_ones(window: int | None) -> None:
    """Pictures that are seen in both directions, beside a tree; against plain torch."""
    scene = Scene(3, [6, 2, 4], [9, 12, 5], 4, [False, False, True], sizes=(4, 2, 8))
    ends = torch.arange(26) + 1 + torch.tensor([6] * 9 + [2 - 9] * 12 + [4 - 21] * 5)
    ends[2:7] = 6 + 7
    ends[12:21] = 2 + 12
    scene.batch = dataclasses.replace(scene.batch, visible_ends=ends)
    plain = scene.run(window)
    scene.cache.attention = FEW
    torch.testing.assert_close(scene.run(window), plain, rtol=1e-4, atol=1e-5)
    scene.batch = dataclasses.replace(scene.batch, visible_ends=None)
    assert not torch.allclose(scene.run(window), plain, rtol=1e-2), "nothing was seen in both directions"


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from engine.kernels import triton_attention as ours

whole = dict(PAGE_SIZE=16, DIM=64, BLOCK_D=64, SHARE=3, SHARE_PADDED=4, BLOCK_M=16, BLOCK_N=64, SPLIT=True)
for kernel, constants in ((ours._attend, whole), (ours._join, dict(DIM=64, BLOCK_D=64))):
    types = {name: "*bf16" for name in ("query", "keys", "values")}
    types |= {name: "*i64" for name in ("first", "limit", "masks", "tiles", "table")}
    types |= {name: "*fp32" for name in ("sums", "parts", "out")} | {"scale": "fp32"}
    types |= dict.fromkeys(constants, "constexpr")
    signature = {name: types.get(name, "i32") for name in kernel.arg_names}
    source = ASTSource(kernel, signature, {(kernel.arg_names.index(n),): v for n, v in constants.items()})
    made = triton.compile(source, target=GPUTarget("cuda", 80, 32), options=dict(num_warps=4, num_stages=2))
    assert made.asm["cubin"]
    print(made.metadata.shared)
"""


def test_compiles_for_a_gpu(tmp_path: Path) -> None:
    """To the machine code of one (an A100), which needs none. It does not show that it runs there."""
    own = {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE], env=os.environ | own, cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert max(map(int, done.stdout.split())) <= 64 << 10, "more shared memory than every GPU has"


@pytest.mark.parametrize(
    ("prefixes", "queries", "trees", "window"),
    [
        ([900, 3, 0], [1, 1, 2], [False, False, False], None),  # parts of a context that short ones lack
        ([600, 40], [5, 4], [True, True], None),
        ([1100, 2], [1, 3], [False, True], 530),
    ],
)
def test_long_contexts_are_split_where_there_is_little_to_do(
    prefixes: list[int], queries: list[int], trees: list[bool], window: int | None
) -> None:
    scene = Scene(2, prefixes, queries, 16, trees, attention=MANY, sizes=(2, 1, 8))
    whole = Scene(2, prefixes, queries, 16, trees, attention=FEW, sizes=(2, 1, 8))
    close(scene, window)
    assert not torch.equal(scene.run(window), whole.run(window)), "nothing was split: rounding is the same"


@pytest.fixture
def bfloat16_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter keeps bfloat16 as the bits of integers, and multiplies those (3.7, 3.9)."""
    from triton.runtime import interpreter

    plain = interpreter.InterpreterBuilder.create_dot

    def widened(builder, a, b, *rest):  # type: ignore[no-untyped-def]
        language = interpreter.tl
        if a.dtype.scalar == language.bfloat16:
            a, b = (builder.create_fp_ext(x, language.float32) for x in (a, b))
        return plain(builder, a, b, *rest)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", widened)


SMALL = Spans(prefixes=(20, 0, 530), queries=(5, 9, 1), trees=(True, False, False))


@pytest.mark.usefixtures("bfloat16_products")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(dtype: torch.dtype) -> None:
    shape = KVShape(1, 2, 16, dtype)
    for kernels, window in ((FEW, None), (MANY, None), (FEW, 6)):
        found = difference(kernels, shape, 4, CPU, spans=SMALL, window=window)
        # Inputs are the same rounded numbers: what is left comes from weights and results in this type.
        assert found < 4 * torch.finfo(dtype).eps, f"{kernels} {window}"


def test_the_check_at_load_sees_what_is_wrong() -> None:
    shape = KVShape(1, 2, 16, torch.float32)
    assert difference(FEW, shape, 4, CPU, spans=SMALL) < 1e-6
    for broken in (MasksForgotten(), NothingWritten()):
        assert not difference(broken, shape, 4, CPU, spans=SMALL) <= CLOSE[torch.float32]


class MasksForgotten(TritonAttention):
    """Trees as if they were causal spans."""

    def __init__(self) -> None:
        super().__init__(processors=1)

    def plan(self, batch):  # type: ignore[no-untyped-def]
        return super().plan(dataclasses.replace(batch, trees=(), tree_masks=None))


class NothingWritten(TritonAttention):
    """All NaN, as memory that was never written may be."""

    def __init__(self) -> None:
        super().__init__(processors=1)

    def plan(self, batch):  # type: ignore[no-untyped-def]
        planned = super().plan(batch)
        planned.attend = lambda query, keys, values, out, scaling, window: out.fill_(float("nan"))
        return planned


def test_is_chosen_by_device_and_falls_back_with_a_word(caplog: pytest.LogCaptureFixture) -> None:
    shape = KVShape(1, 2, 16, torch.float32)
    assert attention_kernels(CPU, shape, 4, None, triton=True) is None
    assert isinstance(attention_kernels(CPU, shape, 4, own_kernels(), triton=True), CpuAttention)
    if torch.cuda.is_available():
        assert isinstance(
            attention_kernels(torch.device("cuda"), shape, 4, None, triton=True), TritonAttention
        )
        return
    with caplog.at_level(logging.WARNING):
        assert attention_kernels(torch.device("cuda"), shape, 4, None, triton=True) is None
    assert "plain torch is slower" in caplog.text


@pytest.mark.parametrize("family", ["llava", "mistral_sliding"])
def test_a_model_says_the_same(family: str, tiny: BuildCheckpoint) -> None:
    """Prompts in chunks, pictures and trees, through the whole engine."""
    golden = load_golden(tiny(family))
    check_answers(golden, *loaded(golden, FEW, max_num_batched_tokens=23))
