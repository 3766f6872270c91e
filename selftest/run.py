"""Runs all checks on one device. Failures and exceptions are reported; nothing is skipped silently."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import torch

from engine.checkpoint import read_config, resolve_dtype
from engine.config import Device, DType, EngineConfig
from engine.errors import ModelLoadError
from engine.memory import reserved_bytes
from engine.sizing import choose_sizes
from engine.target import TargetModel
from processing.processor import Processor
from selftest.answers import Engine, golden, speculation
from selftest.kernels import compare
from selftest.reference import EPSILON, Reference

log = logging.getLogger(__name__)

_KV_BYTES = 1 << 30  # leaves room for the reference's weights on a small GPU
GOLDEN_TOKENS, SPEED_TOKENS = 24, 64


def selftest(model: str, device: Device, dtype: DType) -> dict[str, Any]:
    """Run all checks and return the report; ``passed`` says whether all ``checks`` passed."""
    started = time.monotonic()
    config = EngineConfig(model=model, device=device, dtype=dtype, kv_cache_memory=_KV_BYTES, max_num_seqs=8)
    report: dict[str, Any] = {"model": model, "versions": _versions(), "checks": []}
    try:
        target = TargetModel.load(config)
    except ModelLoadError as error:
        return report | {"passed": False, "error": str(error)}
    report |= _where(config, target)
    for check in _checks(config, target):
        log.info("%s", check)
        report["checks"].append(check)
    report["seconds"] = round(time.monotonic() - started, 1)
    report["passed"] = all(check["passed"] for check in report["checks"])
    return report


def _checks(config: EngineConfig, target: TargetModel) -> Iterable[dict[str, Any]]:
    yield from _caught("attention", lambda: compare(target))
    if target.device.type == "cuda":
        yield from _caught("memory", lambda: [_memory(config, target)])
    processor = Processor.from_pretrained(config.model)
    types = (_weights(config), target.dtype)
    reference = Reference(config.model, target.device, *types, sees=processor.supports_images)
    epsilon = EPSILON[target.dtype]
    parts = (reference, processor, epsilon)
    yield from _caught(
        "answers", lambda: [golden(Engine(config, target, forced=True), *parts, GOLDEN_TOKENS)]
    )
    yield from _caught(
        "speculation", lambda: [speculation(Engine(config, target, forced=False), *parts, SPEED_TOKENS)]
    )


def _caught(name: str, run: Callable[[], Iterable[dict[str, Any]]]) -> Iterable[dict[str, Any]]:
    """Run a part; if it raises, report a failed check, so that the other parts still run."""
    try:
        yield from run()
    except Exception as error:
        log.exception("%s failed", name)
        yield {"name": name, "passed": False, "error": f"{type(error).__name__}: {error}"}


def _memory(config: EngineConfig, target: TargetModel) -> dict[str, Any]:
    """Measure the memory that ``serve`` would reserve and not use for the KV cache."""
    block = target.adapter.longest_block
    sizes = choose_sizes(config, target.kv_shape, target.max_position, target.device, block)
    taken = reserved_bytes(config, target, sizes.limits)
    return {"name": "largest step fits into memory", "passed": True, "reserved_bytes": taken}


def _weights(config: EngineConfig) -> torch.dtype:
    """Return the dtype that weights are rounded to; on a CPU, kernels still compute in float32."""
    return resolve_dtype(config, read_config(config))


def _where(config: EngineConfig, target: TargetModel) -> dict[str, Any]:
    kernels = type(target.attention).__name__ if target.attention is not None else "plain torch"
    types = {"weights": _weights(config), "dtype": target.dtype}
    where = {"device": str(target.device)} | {k: str(v).removeprefix("torch.") for k, v in types.items()}
    where["attention"] = kernels
    if target.device.type == "cuda":
        where["gpu"] = torch.cuda.get_device_name(target.device)
        where["cuda"] = str(torch.version.cuda)
    return where


def _versions() -> dict[str, str]:
    names = ("specvlm", "torch", "transformers", *(("triton",) if find_spec("triton") else ()))
    return {name: version(name) for name in names}
