"""The program ``specvlm``. Each command imports what it needs when it runs, so that ``--help`` is quick."""

from __future__ import annotations

import sys

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import CliApp, CliSubCommand, SettingsError

from server.settings import ServeSettings


class Serve(ServeSettings):
    __doc__ = ServeSettings.__doc__

    def cli_cmd(self) -> None:
        from engine.process import ProcessClient
        from server.run import serve

        if self.model is not None:
            model = self.model
        else:
            from demo.build import build

            model = str(build())
        sys.exit(serve(self, model, ProcessClient(self.engine_config(model))))


class DemoBuild(BaseModel):
    """Assemble the embedded demo model in the cache folder and print its path."""

    def cli_cmd(self) -> None:
        from demo.build import build

        print(build())


class Demo(BaseModel):
    """The embedded demo model."""

    build: CliSubCommand[DemoBuild]

    def cli_cmd(self) -> None:
        CliApp.run_subcommand(self)


class Specvlm(BaseModel):
    """OpenAI-compatible inference server for vision-language models."""

    serve: CliSubCommand[Serve]
    demo: CliSubCommand[Demo]

    def cli_cmd(self) -> None:
        CliApp.run_subcommand(self)


def main(argv: list[str] | None = None) -> None:
    try:
        CliApp.run(Specvlm, cli_args=argv)
    except ValidationError as error:
        sys.exit("\n".join(f"specvlm: {complaint(detail)}" for detail in error.errors()))
    except SettingsError as error:
        sys.exit(f"specvlm: {error}")


def complaint(detail: ErrorDetails) -> str:
    """``('serve', 'max_num_seqs')`` is the flag ``--max-num-seqs``."""
    fields = [str(part).replace("_", "-") for part in detail["loc"][1:2]]
    return ": ".join([f"--{field}" for field in fields] + [detail["msg"]])
