"""Every setting of ``specvlm bench``. Imports nothing heavy, so that the command line can read it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, Field, SecretStr, model_validator
from pydantic_settings import CliVariadicArg, SettingsConfigDict

LATENCIES = ("ttft", "tpot", "e2e")
PICTURES = (".svg", ".png")


class BenchSettings(BaseModel):
    """Immutable. Times are in seconds, but for the limits of ``goodput``."""

    model_config = SettingsConfigDict(
        extra="forbid", cli_kebab_case=True, cli_implicit_flags=True, frozen=True, protected_namespaces=()
    )

    url: str | None = Field(
        None,
        description="base URL of an OpenAI API, ending in /v1; without one a server is started for the run",
    )
    model: str | None = Field(
        None,
        description="the name to ask for, else the first that the server lists; without a URL, the model to "
        "serve, else the demo model",
    )
    serve: str = Field("", description="without a URL: flags for 'specvlm serve', in one string")
    api_key: SecretStr | None = Field(
        None, description="sent to every URL of the run; $OPENAI_API_KEY by default"
    )
    compare: CliVariadicArg[list[str | dict[str, Any]]] = Field(
        [],
        description="two sides, measured in turn: 'speculation', 'plain' (the same server without it), a URL "
        "or NAME=URL, or a JSON object of request fields",
    )

    data: CliVariadicArg[list[str]] = Field(
        ["demo"],
        min_length=1,
        description="what is asked, set after set: 'demo', or kinds of it as in 'demo:describe+text'; a "
        "folder of pictures; a .jsonl, .json or .parquet file of dialogues; a published set, as in "
        "'llava-wild:FOLDER' (docs/reproducing.md lists them)",
    )
    prompt: str = Field(
        "Describe this picture in detail.", description="the question about each picture of a folder"
    )
    num_prompts: int = Field(16, ge=1, description="most questions of a set, from its beginning")
    concurrency: CliVariadicArg[list[Annotated[int, Field(ge=1)]]] = Field(
        [1, 2, 4, 8], min_length=1, description="requests open at a time, one sweep after another"
    )
    temperature: CliVariadicArg[list[Annotated[float, Field(ge=0, le=2)]]] = Field(
        [0.0], min_length=1, description="of sampling, one after another; 0 is greedy"
    )
    max_tokens: int = Field(128, ge=1, description="longest answer")
    fields: dict[str, Any] = Field({}, description="more fields of every request, as a JSON object")
    repeats: int = Field(3, ge=1, description="times that everything is measured")
    seed: int = Field(0, ge=0, description="of the demo's questions; question i is asked with seed + i")
    goodput: CliVariadicArg[list[str]] = Field(
        [], description="limits that a good request keeps, in milliseconds: ttft:500 tpot:50 e2e:10000"
    )
    timeout: float = Field(600.0, gt=0, description="seconds that one request may take")
    out: Path | None = Field(
        None,
        description="write the JSON into this file instead of stdout, anew after every point",
    )
    plot: Path | None = Field(None, description="also draw the figures, into this .svg or .png file")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if len(self.compare) not in (0, 2):
            raise ValueError("--compare takes two sides")
        if self.serve and self.url is not None:
            raise ValueError("--serve is for a server of our own; --url names another")
        if max(self.concurrency) > self.num_prompts:
            raise ValueError(
                f"--num-prompts {self.num_prompts} cannot keep --concurrency {max(self.concurrency)} busy"
            )
        if self.plot is not None and self.plot.suffix.lower() not in PICTURES:
            raise ValueError(f"--plot {str(self.plot)!r} must end in {' or '.join(PICTURES)}")
        self.limits()
        return self

    def limits(self) -> dict[str, float]:
        """The limits of ``goodput`` by name, in seconds."""
        found = {}
        for limit in self.goodput:
            name, _, value = limit.partition(":")
            try:
                found[name] = float(value) / 1e3
            except ValueError:
                found[name] = 0.0
            if name not in LATENCIES or not found[name] > 0:
                known = ", ".join(LATENCIES)
                raise ValueError(f"--goodput {limit!r} is not NAME:MILLISECONDS with a name among {known}")
        return found
