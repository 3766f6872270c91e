"""The command ``specvlm train``. Heavy imports are deferred until it runs."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType

from training.settings import TrainSettings


class Train(TrainSettings):
    """Train a draft for a model by online-logit distillation, and print the folder that it is written to.

    A run that was stopped resumes from its checkpoint. On Ctrl-C or SIGTERM, the current step is finished, a
    checkpoint is saved, and the draft is published as it is.
    For several processes: accelerate launch --num_processes N -m server train …
    """

    def cli_cmd(self) -> None:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # workers are forked
        from engine.errors import ModelLoadError
        from training.errors import TrainingError
        from training.run import model_folder, train, with_answers

        try:
            if self.generate == "only":
                answered = with_answers(self, model_folder(self))
                print(*answered.data, *answered.eval_data, sep="\n")
            else:
                print(train(self, stop=stop_signal().is_set))
        except (TrainingError, ModelLoadError) as error:
            sys.exit(f"specvlm: {error}")


def stop_signal() -> threading.Event:
    """Return an event that the first SIGINT or SIGTERM sets; a second one has its default effect."""
    asked = threading.Event()

    def on_signal(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 (signal handler signature)
        asked.set()
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)
    return asked
