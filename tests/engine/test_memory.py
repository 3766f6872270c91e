"""A GPU's memory, as far as a CPU can tell: what is left for KV, and that the step which is measured runs."""

from __future__ import annotations

from pathlib import Path

import msgspec
import psutil
import pytest
import torch

from engine import memory
from engine.attention import ATTENTION_NAME
from engine.config import EngineConfig
from engine.draft.eagle import EagleDraft
from engine.draft.features import MAX_WAITING_IN_ALL
from engine.draft.model import DraftModel
from engine.errors import ModelLoadError
from engine.host import cpus
from engine.host.cpus import cpu_quota, set_num_threads
from engine.host.memory import available_memory
from engine.kv_cache import KVCache, KVShape
from engine.memory import draft_bytes, encode_most, forward_most
from engine.sizing import choose_sizes
from engine.target import TargetModel
from tests.conftest import BuildCheckpoint
from tests.tiny_vlms import qwen

GIB = 1 << 30
SHAPE = KVShape(num_layers=8, num_kv_heads=2, head_dim=64, dtype=torch.bfloat16)
CUDA = torch.device("cuda")


def pages(monkeypatch: pytest.MonkeyPatch, reserved: int, draft: str = "none") -> int:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (6 * GIB, 10 * GIB))
    config = EngineConfig(model="m", gpu_memory_utilization=0.9, draft=draft, max_num_seqs=4096)
    return choose_sizes(config, SHAPE, 4096, CUDA, reserved=lambda _: reserved).num_pages


def test_kv_gets_what_its_share_of_a_gpu_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    page_bytes = 16 * SHAPE.bytes_per_token
    assert pages(monkeypatch, 0) == 5 * GIB // page_bytes  # 0.9 of 10, of which 4 are taken
    assert pages(monkeypatch, 2 * GIB) == 3 * GIB // page_bytes
    assert pages(monkeypatch, 2 * GIB, "folder") == 3 * GIB // (page_bytes * 9 // 8), "a draft's layer more"
    with pytest.raises(ModelLoadError, match="there are"):
        pages(monkeypatch, 6 * GIB)


def test_kv_on_a_cpu_leaves_room_for_pictures_and_others(monkeypatch: pytest.MonkeyPatch) -> None:
    page_bytes = 16 * SHAPE.bytes_per_token

    def on_cpu(free: int, draft: str = "none") -> int:
        monkeypatch.setattr("engine.sizing.available_memory", lambda: free)
        config = EngineConfig(model="m", draft=draft, max_num_seqs=4096, max_num_batched_tokens=4096)
        return choose_sizes(config, SHAPE, 4096, torch.device("cpu")).num_pages

    assert on_cpu(8 * GIB) == 2 * GIB // page_bytes
    assert on_cpu(8 * GIB, "folder") == 2 * GIB // (page_bytes * 9 // 8), "a draft's layer more"
    assert on_cpu(100 * GIB) == 4 * GIB // page_bytes


def cgroup(folder: Path, limit: str, current: int, inactive_file: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{current}\n")
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {inactive_file}\n")


def test_a_containers_limit_counts_and_that_of_the_groups_around_it(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.write_text("4:memory:/else\n0::/outer/inner\n")
    root = tmp_path / "cgroup"
    cgroup(root / "outer" / "inner", "max", 100, 0)
    free = psutil.virtual_memory().available
    assert available_memory(root, own) > free // 2, "no limit: what the machine has"
    cgroup(root / "outer", "5000", 3000, 1000)
    assert available_memory(root, own) == 3000, "what is in use, less what files can give back"
    cgroup(root / "outer" / "inner", "2500", 100, 0)
    assert available_memory(root, own) == 2400
    cgroup(root / "outer" / "inner", "50", 100, 0)
    assert available_memory(root, own) == 0
    own.write_text("4:memory:/else\n")
    assert available_memory(root, own) > free // 2, "version 1 is not looked at"


def test_threads_are_no_more_than_a_container_has_time_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, root = tmp_path / "own", tmp_path / "cgroup"
    own.write_text("0::/outer/inner\n")
    (root / "outer" / "inner").mkdir(parents=True)

    def limited(outer: str, inner: str) -> int | None:
        (root / "outer" / "cpu.max").write_text(outer)
        (root / "outer" / "inner" / "cpu.max").write_text(inner)
        return cpu_quota(root, own)

    assert cpu_quota(root, own) is None
    assert limited("max 100000\n", "max 100000\n") is None
    assert limited("max 100000\n", "150000 100000\n") == 2
    assert limited("100000 100000\n", "800000 100000\n") == 1
    assert limited("5000 100000\n", "max 100000\n") == 1, "there is always one"

    found: list[int] = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(torch, "set_num_threads", found.append)
    for quota in (None, 3, 16):
        monkeypatch.setattr(cpus, "cpu_quota", lambda quota=quota: quota)
        set_num_threads(None)
    set_num_threads(12)
    assert found == [8, 3, 8, 12], "what is asked for goes"


@pytest.mark.parametrize("family", ["llava", "llama"])
def test_the_step_that_is_measured_is_as_large_as_steps_get(family: str, tiny: BuildCheckpoint) -> None:
    config = EngineConfig(model=str(tiny(family)), device="cpu", max_num_seqs=2, page_size=4)
    target = TargetModel.load(config)
    num_encoded, width = encode_most(config, target, 40)
    assert (20 < num_encoded <= 40) if family == "llava" else num_encoded == 0
    assert width == (64 if family == "llava" else 0)
    cache = KVCache(target.kv_shape, 10, 4, target.device, target.attention)
    drawn = forward_most(config, target, cache, 38)
    assert drawn == (38, target.vocab_size)  # fewer than 2 trees of 33 nodes


def test_the_largest_picture_is_encoded_and_all_its_columns_are_kept(
    tiny: BuildCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Qwen3-VL: pictures keep their size up to 64 tokens, and early layers get features of their own."""
    config = EngineConfig(model=str(tiny("qwen3_vl")), device="cpu")
    target = TargetModel.load(config)
    deep = len(target.adapter._model.config.vision_config.deepstack_visual_indexes)  # type: ignore[attr-defined]
    assert deep > 0
    wide = 64 * (1 + deep)
    assert encode_most(config, target, 10) == (64, wide)
    monkeypatch.setattr(memory, "_SIDES", tuple(n * qwen.EDGE for n in (2, 4, 8, 16)))
    assert encode_most(config, target, 10) == (64, wide), "a step encodes one picture, however large it is"
    assert encode_most(config, target, 200) == (192, wide)
    few = msgspec.structs.replace(config, encoder_cache_tokens=20)
    assert encode_most(few, target, 10) == (16, wide), "larger ones are refused"


def test_a_drafts_own_head_has_room_and_what_waits_for_it(tiny: BuildCheckpoint) -> None:
    """A large vocabulary weighs more than the draft's layer."""
    config = EngineConfig(model=str(tiny("llama")), device="cpu", cpu_kernels=False)
    target = TargetModel.load(config)
    draft = EagleDraft(target.adapter.text_config, attn_implementation="eager")
    parameters = [*draft.parameters(), target.head_of(torch.arange(target.vocab_size)).weight]
    waiting = MAX_WAITING_IN_ALL * 2 * target.adapter.text_config.hidden_size * target.dtype.itemsize
    assert draft_bytes(config, target) >= sum(p.numel() * p.element_size() for p in parameters) + waiting


def test_a_draft_in_half_precision_keeps_its_positions(tiny: BuildCheckpoint) -> None:
    folder: Path = tiny("llava")
    half = EngineConfig(model=str(folder), device="cpu", dtype="bfloat16", cpu_kernels=False)
    target = TargetModel.load(half)
    config = target.adapter.text_config
    exact = EagleDraft(config, attn_implementation="eager").rotary
    model = DraftModel(
        EagleDraft(config, attn_implementation=ATTENTION_NAME), target.head_of(None), None, target
    )
    positions, hidden = torch.tensor([[3001]]), torch.zeros(1, 1, 1)
    for ours, wanted in zip(model._module.rotary(hidden, positions), exact(hidden, positions), strict=True):
        torch.testing.assert_close(ours, wanted)
    assert {parameter.dtype for parameter in model._module.parameters()} == {torch.bfloat16}
