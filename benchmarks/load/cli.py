"""The command ``specvlm bench``. Imports what it needs when it runs."""

from __future__ import annotations

import json
import sys

from benchmarks.load.settings import BenchSettings


class Bench(BenchSettings):
    """Put load on a server that speaks the OpenAI API: JSON on stdout, a table on stderr.

    The exit code is 1 if a request failed. For example: specvlm bench --compare speculation plain
    """

    def cli_cmd(self) -> None:
        from benchmarks.load.errors import BenchError
        from benchmarks.load.plot import write_svg
        from benchmarks.load.run import bench
        from benchmarks.load.table import render
        from benchmarks.own_server import ServerError
        from training.chart import check_plotting
        from training.errors import TrainingError

        try:
            if self.plot is not None:
                check_plotting()
            document = bench(self)
        except (BenchError, ServerError, TrainingError) as error:
            sys.exit(f"specvlm: {error}")
        except KeyboardInterrupt:
            sys.exit("specvlm: interrupted")
        print(render(document), file=sys.stderr, flush=True)
        print(json.dumps(document))
        if self.plot is not None:
            write_svg(document, self.plot)
        failed = sum(side["failed"] for point in document["points"] for side in point["sides"].values())
        sys.exit(1 if failed else 0)
