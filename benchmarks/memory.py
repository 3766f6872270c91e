"""Compares the peak memory of processes that answer about a picture: our engine and ``transformers``."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from typing import Any

from benchmarks.settings import Settings, run_measurement
from benchmarks.workload import chat, picture, question

# Small and the same in every run, so that the result reflects the code and not the configured cache size.
KV_CACHE_BYTES = 64 * 2**20


def measure(settings: Settings) -> dict[str, Any]:
    ours, reference = (_child(who, settings) for who in ("ours", "reference"))
    weights = _weight_bytes(settings)
    return {
        "unit": "bytes of peak resident memory, including loading",
        "kv_cache_bytes": KV_CACHE_BYTES,
        "weight_bytes": weights,
        "ours": ours,
        "transformers": reference,
        "ratio": ours / reference,
    }


def run_one(who: str, settings: Settings) -> int:
    prompt = chat(picture(settings.seed), question(0))
    if who == "ours":
        from benchmarks.ours import Ours

        Ours(settings, kv_cache_memory=KV_CACHE_BYTES).run([prompt], settings.num_tokens)
    else:
        from benchmarks.reference import Reference

        Reference(settings).run(prompt, settings.num_tokens)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _child(who: str, settings: Settings) -> int:
    command = [sys.executable, "-m", "benchmarks.memory", json.dumps(settings.as_dict()), who]
    return int(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def _weight_bytes(settings: Settings) -> int:
    from pathlib import Path

    return sum(path.stat().st_size for path in Path(settings.model).glob("*.safetensors"))


if __name__ == "__main__":
    if len(sys.argv) == 3:
        print(run_one(sys.argv[2], Settings(**json.loads(sys.argv[1]))))
    else:
        run_measurement(measure)
