"""Run all measurements of the engine and print the results as one JSON document.

Each measurement runs in a process of its own, which keeps memory, caches and thread pools apart. Progress
goes to stderr.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.machine import busy_warning, load, machine
from benchmarks.plot import write_svg
from benchmarks.settings import Settings
from engine.ipc.child import engine_environment
from training.chart import check_plotting

MEASUREMENTS = (
    *("rows", "decode", "half", "batch", "first_token", "overhead", "memory", "startup"),
    *("speculation", "trees", "streams", "branches"),
)


def main(argv: list[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    settings = Settings(
        model=str(arguments.model or _demo_model()),
        threads=arguments.threads,
        repeats=arguments.repeats,
        num_tokens=arguments.num_tokens,
        seed=arguments.seed,
    )
    if arguments.plot:
        check_plotting()
    before = load()
    started = time.time()
    results = {name: _run(name, settings) for name in arguments.only or MEASUREMENTS}
    after = load()
    document: dict[str, Any] = {
        "machine": machine(),
        "argv": sys.argv[1:] if argv is None else argv,
        "started_unix": round(started),
        "seconds": round(time.time() - started, 1),
        "load": {"before": before, "after": after},
        "warning": busy_warning(before, after),
        "settings": settings.as_dict(),
        "results": results,
    }
    if document["warning"]:
        print(f"warning: {document['warning']}", file=sys.stderr)
    print(json.dumps(document, indent=2))
    if arguments.plot:
        write_svg(document, arguments.plot)
    return 1 if any("error" in result for result in results.values()) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--model", type=Path, help="Checkpoint folder (default: the embedded demo model).")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=MEASUREMENTS,
        metavar="NAME",
        help=f"Run only these measurements, out of: {' '.join(MEASUREMENTS)}.",
    )
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: %(default)s).")
    parser.add_argument(
        "--repeats", type=int, default=5, help="Times to repeat each measurement (default: %(default)s)."
    )
    parser.add_argument(
        "--num-tokens", type=int, default=64, help="Output tokens per request (default: %(default)s)."
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="Seed of the images and prompts (default: %(default)s)."
    )
    parser.add_argument(
        "--plot", type=Path, metavar="FILE.svg", help="Also plot the results against their goals."
    )
    return parser


def _demo_model() -> Path:
    from demo.build import build

    return build()


def _run(name: str, settings: Settings) -> dict[str, Any]:
    """Return the JSON that ``python -m benchmarks.NAME`` prints, or its error as a result."""
    print(f"measuring {name} …", file=sys.stderr, flush=True)
    start = time.perf_counter()
    command = [sys.executable, "-m", f"benchmarks.{name}", json.dumps(settings.as_dict())]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, check=False, env=engine_environment(os.environ)
    )
    print(f"  {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    if done.returncode != 0:
        return {"error": f"exit code {done.returncode}; see its messages on stderr"}
    result = json.loads(done.stdout)
    assert isinstance(result, dict)
    return result


if __name__ == "__main__":
    sys.exit(main())
