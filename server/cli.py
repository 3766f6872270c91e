"""The ``specvlm`` program. Each command imports what it needs when it runs, which keeps ``--help`` fast."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Sequence
from itertools import dropwhile, takewhile
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import CliApp, CliSubCommand, SettingsError

from server.listening import take_address
from server.schemas.base import MAX_SHOWN
from server.settings import ENV_PREFIX, ServeSettings


class Serve(ServeSettings):
    """Serve a model over HTTP. Without --model: the embedded demo model."""

    def cli_cmd(self) -> None:
        sockets = take_address(self.host, self.port)
        from engine.ipc.process import ProcessClient
        from server.run import serve

        model = self.model or demo_model()
        client = ProcessClient(self.engine_config(model), log_format=self.log_format)
        sys.exit(serve(self, model, client, sockets))


class DemoBuild(BaseModel):
    """Assemble the embedded demo model in the cache folder and print its path."""

    def cli_cmd(self) -> None:
        print(demo_model())


class DemoTrain(BaseModel):
    """Train the adapter of the demo model, resuming an earlier run; print the path of the checkpoint."""

    out: Path = Field(description="Folder for checkpoints and logs.")
    stage: str | None = Field(None, description="Stage of the recipe to run; by default, all of them.")
    resume: bool = Field(True, description="Resume from the checkpoints in the folder.")

    def cli_cmd(self) -> None:
        from demo.train import train

        print(train(self.out, stage=self.stage, resume=self.resume))


class DemoExport(BaseModel):
    """Convert a checkpoint of ``demo train`` to the adapter file of the demo model; print its path."""

    checkpoint: Path = Field(description="Checkpoint, as printed by 'demo train'.")
    out: Path | None = Field(
        None, description="Folder for the file; by default, that of the demo model in this installation."
    )

    def cli_cmd(self) -> None:
        from demo.adapter import FOLDER
        from demo.export import export

        try:
            print(export(self.checkpoint, self.out or FOLDER))
        except (OSError, ValueError) as error:  # no such file, no checkpoint, no folder to write to
            sys.exit(f"specvlm: {error}")


class DemoEval(BaseModel):
    """Score the demo model, another model, or an OpenAI endpoint on held-out samples; print JSON."""

    model: Path | None = Field(None, description="Model folder; by default, the demo model.")
    url: str | None = Field(None, description="Base URL of an endpoint to score instead, ending in /v1.")
    samples: int = Field(320, ge=1, description="Number of samples.")

    def cli_cmd(self) -> None:
        from demo.evaluate import evaluate, evaluate_url

        if self.url is not None:
            try:
                from openai import OpenAIError
            except ImportError:
                sys.exit("specvlm: '--url' needs the package openai: pip install 'specvlm[client]'")
            try:
                report = evaluate_url(self.url, samples=self.samples)
            except OpenAIError as error:
                sys.exit(f"specvlm: request to --url {self.url} failed: {error}")
        else:
            try:
                report = evaluate(self.model, samples=self.samples)
            except OSError as error:  # the model does not exist
                sys.exit(f"specvlm: {error}")
        print(json.dumps(report, indent=2))


class Demo(BaseModel):
    """The embedded demo model."""

    build: CliSubCommand[DemoBuild] = Field(description="Assemble it and print its path.")
    train: CliSubCommand[DemoTrain] = Field(description="Train its adapter.")
    export: CliSubCommand[DemoExport] = Field(description="Convert a training checkpoint to its adapter.")
    eval: CliSubCommand[DemoEval] = Field(description="Score it, or any endpoint.")

    def cli_cmd(self) -> None:
        CliApp.run_subcommand(self)


class Selftest(BaseModel):
    """Check that this machine computes correct results; print JSON. The exit code is 1 if it does not."""

    model: str | None = Field(None, description="Model folder or hub ID; by default, the demo model.")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Device to check.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Data type of the model weights."
    )

    def cli_cmd(self) -> None:
        from selftest.run import selftest

        report = selftest(self.model or demo_model(), self.device, self.dtype)
        print(json.dumps(report, indent=2))
        sys.exit(0 if report["passed"] else 1)


def program() -> type[BaseModel]:
    """Return the class of all commands, some of which take their flags from settings of other packages."""
    from benchmarks.load.cli import Bench
    from training.cli import Train

    class Specvlm(BaseModel):
        """OpenAI-compatible inference server for vision-language models."""

        serve: CliSubCommand[Serve] = Field(description="Serve a model over HTTP.")
        train: CliSubCommand[Train] = Field(description="Distil a draft from a model.")
        demo: CliSubCommand[Demo] = Field(description="Build, train or score the embedded demo model.")
        bench: CliSubCommand[Bench] = Field(description="Load-test any OpenAI-compatible API, and compare.")
        selftest: CliSubCommand[Selftest] = Field(description="Check what this machine computes.")

        def cli_cmd(self) -> None:
            CliApp.run_subcommand(self)

    return Specvlm


def demo_model() -> str:
    """Return the folder of the demo model, which is assembled on first use."""
    from demo.build import DemoUnavailableError, build

    try:
        return str(build())
    except DemoUnavailableError as error:
        sys.exit(f"specvlm: {error}")


def main(argv: list[str] | None = None) -> None:
    try:
        CliApp.run(program(), cli_args=argv)
    except ValidationError as error:
        given = sys.argv[1:] if argv is None else argv
        sys.exit("\n".join(f"specvlm: {complaint(detail, given)}" for detail in error.errors()))
    except SettingsError as error:
        sys.exit(f"specvlm: {unread(error, sys.argv[1:] if argv is None else argv) or error}")


def unread(error: SettingsError, argv: Sequence[str]) -> str | None:
    """Return a message about a value that is not valid JSON, as the library's own is in terms of Python.

    ``None`` if ``error`` is about something else.
    """
    found = re.match(r"Parsing error encountered for (?:\w+\.)*(\w+): ", str(error))
    if found is None:
        return None
    flag = f"--{found[1].replace('_', '-')}"
    rest = list(dropwhile(lambda part: part.partition("=")[0] != flag, argv))
    values = takewhile(lambda part: not part.startswith("--"), rest[1:])
    value = " ".join(filter(None, ["".join(rest[:1]).partition("=")[2], *values]))
    return f"{flag}: {value[:MAX_SHOWN]!r} is not valid; write JSON such as '{{\"name\": 1}}' or '[1, 2]'"


def complaint(detail: ErrorDetails, argv: Sequence[str]) -> str:
    """Return the message about one setting, named as it was given: by flag or by environment variable.

    The location ``('serve', 'max_num_seqs')`` becomes ``--max-num-seqs`` or ``SPECVLM_MAX_NUM_SEQS``.
    """
    parts = [str(part) for part in detail["loc"] if part not in argv]  # without the commands
    fields = [given_as(part, argv) for part in parts[:1]]
    return ": ".join([*fields, detail["msg"].removeprefix("Value error, ")])


def given_as(field: str, argv: Sequence[str]) -> str:
    flag, variable = f"--{field.replace('_', '-')}", ENV_PREFIX + field.upper()
    is_flag = any(part.partition("=")[0] == flag for part in argv)
    return variable if os.environ.get(variable) and not is_flag else flag
