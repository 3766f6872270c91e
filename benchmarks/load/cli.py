"""The command ``specvlm bench``. Heavy imports are deferred until it runs."""

from __future__ import annotations

import json
import sys
from typing import Any

from benchmarks.load.settings import BenchSettings


class Bench(BenchSettings):
    """Load-test a server with an OpenAI-compatible API; print JSON to stdout and a table to stderr.

    The exit code is 1 if a request failed or the run was cut short. Example: specvlm bench --compare
    speculation plain
    """

    def cli_cmd(self) -> None:
        from benchmarks.load.errors import BenchError
        from benchmarks.own_server import ServerError
        from training.errors import TrainingError

        try:
            document = self._run()
        except (BenchError, ServerError, TrainingError) as error:
            sys.exit(f"specvlm: {error}")
        except KeyboardInterrupt:
            sys.exit("specvlm: interrupted")
        failed = sum(side["failed"] for point in document["points"] for side in point["sides"].values())
        sys.exit(1 if failed else 0)

    def _run(self) -> dict[str, Any]:
        """Run the benchmark; whatever ends it, the results so far are shown."""
        from benchmarks.load.files import check_writable, write_document
        from benchmarks.load.run import bench
        from training.chart import check_plotting

        if self.plot is not None:
            check_plotting()
            check_writable("--plot", self.plot)
        if self.out is not None:
            check_writable("--out", self.out)
        found: dict[str, Any] = {}
        written = False

        def keep(document: dict[str, Any]) -> None:
            nonlocal found, written
            found, written = document, False
            if self.out is not None:
                write_document(document, self.out)
                written = True

        try:
            keep(bench(self, keep))
        finally:
            if found:
                self._show(found, written)
        return found

    def _show(self, document: dict[str, Any], written: bool) -> None:
        from benchmarks.load.plot import write_plot
        from benchmarks.load.table import render

        print(render(document), file=sys.stderr, flush=True)
        if not written:
            print(json.dumps(document), flush=True)
        if self.plot is not None:
            write_plot(document, self.plot)
