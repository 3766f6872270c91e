"""Every setting of ``specvlm bench``. Imports nothing heavy, so that the command line can read it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, Field, SecretStr, model_validator
from pydantic_settings import CliVariadicArg, SettingsConfigDict

LATENCIES = ("ttft", "tpot", "e2e")
PICTURES = (".svg", ".png")


class BenchSettings(BaseModel):
    """Settings of a benchmark (immutable). Times are in seconds, except for the limits of ``goodput``."""

    model_config = SettingsConfigDict(
        extra="forbid", cli_kebab_case=True, cli_implicit_flags=True, frozen=True, protected_namespaces=()
    )

    url: str | None = Field(
        None,
        description="Base URL of an OpenAI-compatible API, ending in /v1; without it, a server is started "
        "for the run.",
    )
    model: str | None = Field(
        None,
        description="Model name to request; by default the first that the server lists. Without --url: the "
        "model to serve, by default the demo model.",
    )
    serve: str = Field(
        "", description="Flags for the 'specvlm serve' that is started without --url, in one string."
    )
    api_key: SecretStr | None = Field(
        None, description="API key, sent to every server of the run; $OPENAI_API_KEY by default."
    )
    compare: CliVariadicArg[list[str | dict[str, Any]]] = Field(
        [],
        description="Two sides to compare, measured in turn. Each is 'speculation', 'plain' (the same server "
        "without speculation), a URL or NAME=URL, or a JSON object of request fields.",
    )

    data: CliVariadicArg[list[str]] = Field(
        ["demo"],
        min_length=1,
        description="Data sets with the questions to ask: 'demo', or some of its tasks as in "
        "'demo:describe+text'; a folder of images; a .jsonl, .json or .parquet file of dialogues; or a "
        "published set as in 'llava-wild:FOLDER' (see docs/reproducing.md).",
    )
    prompt: str = Field(
        "Describe this picture in detail.", description="Question to ask about each image of a folder."
    )
    num_prompts: int = Field(
        16, ge=1, description="Maximum number of questions per data set, taken from its beginning."
    )
    concurrency: CliVariadicArg[list[Annotated[int, Field(ge=1)]]] = Field(
        [1, 2, 4, 8],
        min_length=1,
        description="Numbers of concurrent requests to measure, one after the other.",
    )
    temperature: CliVariadicArg[list[Annotated[float, Field(ge=0, le=2)]]] = Field(
        [0.0],
        min_length=1,
        description="Sampling temperatures to measure, one after the other; 0 is greedy.",
    )
    max_tokens: int = Field(128, ge=1, description="Maximum number of tokens per answer.")
    fields: dict[str, Any] = Field({}, description="Additional fields for every request, as a JSON object.")
    repeats: int = Field(3, ge=1, description="Number of times to repeat each measurement.")
    seed: int = Field(
        0, ge=0, description="Random seed for the demo's questions; question i is sampled with seed + i."
    )
    goodput: CliVariadicArg[list[str]] = Field(
        [],
        description="Latency limits in milliseconds that a request must meet to count as goodput, as in "
        "ttft:500 tpot:50 e2e:10000.",
    )
    timeout: float = Field(600.0, gt=0, description="Timeout of each request in seconds.")
    out: Path | None = Field(
        None,
        description="Write the JSON to this file instead of stdout, updated after every point.",
    )
    plot: Path | None = Field(None, description="Also plot the results, to this .svg or .png file.")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if len(self.compare) not in (0, 2):
            raise ValueError("--compare needs exactly two sides")
        if self.serve and self.url is not None:
            raise ValueError("--serve and --url cannot be combined: --url names a server that already runs")
        if max(self.concurrency) > self.num_prompts:
            raise ValueError(
                f"--num-prompts {self.num_prompts} is too few for --concurrency {max(self.concurrency)}"
            )
        if self.plot is not None and self.plot.suffix.lower() not in PICTURES:
            raise ValueError(f"--plot {str(self.plot)!r} must end in {' or '.join(PICTURES)}")
        self.limits()
        return self

    def limits(self) -> dict[str, float]:
        """Return the limits of ``goodput`` by name, in seconds."""
        found = {}
        for limit in self.goodput:
            name, _, value = limit.partition(":")
            try:
                found[name] = float(value) / 1e3
            except ValueError:
                found[name] = 0.0
            if name not in LATENCIES or not found[name] > 0:
                known = ", ".join(LATENCIES)
                raise ValueError(f"--goodput {limit!r} must be NAME:MILLISECONDS, with NAME one of {known}")
        return found
