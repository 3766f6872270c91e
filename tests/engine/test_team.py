"""The threads that share the CPU kernels' work: every piece is done once, however late a thread comes."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from engine.attention import ATTENTION_NAME, prepare, register
from engine.batch import Part, build_batch
from engine.host.cache_folder import cache_folder
from engine.kernels import build
from engine.kernels.cpu import Kernels
from engine.kernels.install import install
from engine.kernels.layer import KernelLayer
from engine.kernels.rows import CpuAttention
from engine.kv_cache import KVCache, KVShape
from tests.engine.own_kernels import own_kernels

PROGRAM = Path(__file__).with_name("team.cpp")
SECONDS = "3"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    own_kernels()
    made = tmp_path_factory.mktemp("team") / "team"
    flags = [flag for flag in build.FLAGS if flag != "-shared"]
    command = [*(build._compiler() or ()), *flags, "-I", build.SOURCE.parent, PROGRAM, "-o", made]
    subprocess.run(command, check=True)
    return made


@pytest.mark.parametrize("threads", [2, 8])
def test_every_piece_of_every_job_is_done_once(program: Path, threads: int) -> None:
    """Though a thread may fall asleep anywhere, and wake up when another job is under way."""
    done = subprocess.run([program, str(threads), SECONDS], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


def test_a_layer_is_the_same_however_many_threads_share_it() -> None:
    own_kernels()
    alone, many = (SharedLayer(threads) for threads in (1, 4))
    wanted = alone(9)
    assert not wanted.isnan().any()
    for _ in range(300):
        assert torch.equal(many(9), wanted)
    for rows in range(1, 40):
        assert torch.equal(many(rows), alone(rows))


class SharedLayer:
    """A layer with ``threads`` of its own, over the first rows of an empty sequence."""

    def __init__(self, threads: int) -> None:
        sizes = {"hidden_size": 96, "num_attention_heads": 6, "num_key_value_heads": 3}
        config = LlamaConfig(
            **sizes,
            intermediate_size=300,
            num_hidden_layers=1,
            head_dim=16,
            attn_implementation=ATTENTION_NAME,
        )
        register()
        torch.manual_seed(0)
        kernels = Kernels(build.load_library(cache_folder() / "kernels"), threads)
        model = nn.ModuleList([LlamaDecoderLayer(config, 0).eval()])
        install(model, kernels)
        (self.layer,) = model
        assert isinstance(self.layer, KernelLayer)
        self.cache = KVCache(KVShape(1, 3, 16, torch.float32), 4, 16, CPU, CpuAttention(kernels))
        self.hidden = torch.randn(1, 64, 96, generator=torch.Generator().manual_seed(2))

    @torch.inference_mode()
    def __call__(self, rows: int) -> torch.Tensor:
        order = np.arange(rows)
        context = prepare(build_batch([Part(order, order, pages=[2, 0, 1], first=0)], 16, CPU), self.cache)
        angles = torch.arange(rows)[None, :, None] / torch.arange(1, 17)
        out: torch.Tensor = self.layer(
            self.hidden[:, :rows], position_embeddings=(angles.cos(), angles.sin()), context=context
        )
        return out
