"""The settings of ``specvlm serve``: flags, ``SPECVLM_*`` variables, a file, in that order of precedence.

Flags have the same names as in vLLM where possible. Unknown keys are errors, wherever they come from.
"""

from __future__ import annotations

import json
import os
import re
import ssl
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from pydantic import (
    AfterValidator,
    BeforeValidator,
    ByteSize,
    DirectoryPath,
    Field,
    FilePath,
    PlainValidator,
    SecretStr,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from engine.config import Device, DType, EngineConfig, LogFormat, SpeculativeConfig, VisualCompression

ENV_PREFIX = "SPECVLM_"
CONFIG_ENV = ENV_PREFIX + "CONFIG"
DEMO_MODEL_NAME = "specvlm-demo"
MAX_THREADS = 1024


def shaped(pattern: str, words: str) -> AfterValidator:
    """Return a validator for text that matches ``pattern``; ``words`` describe it in the error message."""

    def check(value: str) -> str:
        if re.fullmatch(pattern, value) is None:
            raise ValueError(f"{value!r} must {words}")
        return value

    return AfterValidator(check)


def object_in(value: Any) -> Any:
    """Return the object that JSON text holds; any other value must be an object already."""
    if not isinstance(value, str):
        return value
    try:
        told = json.loads(value)
    except ValueError:
        told = None
    if not isinstance(told, dict):
        raise ValueError(f"""{value!r} is not a JSON object such as '{{"image": 8}}'""")
    return told


def list_in(value: str) -> Any:
    """Return what JSON text holds. The error does not quote the value: it may be an API key."""
    try:
        return json.loads(value)
    except ValueError:
        raise ValueError("""a value starting with '[' must be a JSON list such as '["a", "b"]'""") from None


Names = Annotated[list[str], NoDecode]
Origin = Annotated[
    str, shaped(r"\*|null|[a-z][a-z0-9+.-]*://[^/]+", "look like 'https://example.com', or be '*' for all")
]
RootPath = Annotated[str, shaped(r"(/.*[^/])?", "start with a slash and not end with one, such as '/vlm'")]
Prefix = Annotated[
    str, shaped(r"[a-zA-Z_][a-zA-Z0-9_]*", "be letters, digits and underscores, and not start with a digit")
]
Limits = Annotated[dict[Literal["image"], Annotated[int, Field(ge=0)]], NoDecode, BeforeValidator(object_in)]


def reader(kind: Any) -> Callable[[Any], Any]:
    """Return a validator of JSON text or the object it stands for; ``kind`` defines its fields and ranges."""

    def read(value: Any) -> Any:
        if isinstance(value, str):
            return msgspec.json.decode(value, type=kind)
        return value if isinstance(value, kind) else msgspec.convert(value, kind)

    return read


Speculative = Annotated[SpeculativeConfig, NoDecode, PlainValidator(reader(SpeculativeConfig))]
VisualCompressionFlag = Annotated[
    VisualCompression | None, NoDecode, PlainValidator(reader(VisualCompression | None))
]


class ServeSettings(BaseSettings):
    """Immutable settings, from the command line or from keyword arguments (which take precedence)."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_ignore_empty=True,
        extra="forbid",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        frozen=True,
        protected_namespaces=(),
    )

    config: Path | None = Field(None, description="JSON or TOML file with any of these settings.")

    model: str | None = Field(None, description="Hub ID or folder of a vision-language model.")
    revision: str | None = Field(None, description="Branch, tag or commit of a hub model.")
    served_model_name: Names = Field([], description="Model name for clients to use; repeat for several.")
    chat_template: str | None = Field(None, description="Chat template to use, or a file with one.")
    tool_call_parser: Literal["auto", "hermes", "llama3_json", "mistral"] = Field(
        "auto", description="Format of the model's tool calls; 'auto' detects it from the chat template."
    )
    trust_remote_code: bool = Field(False, description="Run Python code that comes with the model.")

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 picks a free one.")
    root_path: RootPath = Field("", description="Path prefix that a reverse proxy strips.")
    allowed_origins: Annotated[list[Origin], NoDecode] = Field(
        [], description="Web origin allowed to call the server (CORS), or '*'; repeat for several."
    )
    ssl_keyfile: FilePath | None = Field(None, description="File with the TLS private key.")
    ssl_certfile: FilePath | None = Field(None, description="File with the TLS certificate.")
    api_key: Annotated[list[SecretStr], NoDecode] = Field([], description="API key; repeat for several.")
    api_key_file: FilePath | None = Field(
        None, description="File with one API key per line; lines that start with '#' are comments."
    )
    max_request_size: ByteSize = Field(
        ByteSize(64 * 2**20), gt=0, description="Maximum size of a request body, in bytes or such as 64MiB."
    )
    request_timeout: float | None = Field(
        None, gt=0, description="Maximum seconds from a request's last byte to its answer's last byte."
    )
    shutdown_timeout: float = Field(30.0, ge=0, description="Seconds open requests get to finish on SIGTERM.")

    draft: str = Field(
        "auto",
        min_length=1,
        description="Source of draft tokens: folder or hub ID of draft weights, 'ngram' (prompt lookup), "
        "'none', or 'auto': the draft that comes with the model, else 'ngram'.",
    )
    speculative_config: Speculative = Field(
        SpeculativeConfig(),
        description="JSON with upper limits of a draft tree (num_steps, topk, num_draft_tokens) and the "
        "compression of visual tokens for the draft (compressor, compressor_ratios).",
    )

    target_visual_compression: VisualCompressionFlag = Field(
        None,
        description="Lossy: allow fewer visual tokens for the model itself, which changes answers. JSON with "
        "method ('none', 'pool' or 'prune') and ratio, the default for requests that do not specify it.",
    )

    dtype: DType = Field("auto", description="Data type of the model weights.")
    device: Device = Field("auto", description="Device to run the model on.")
    max_model_len: int | None = Field(None, ge=2, description="Maximum tokens in a prompt and its answer.")
    max_num_seqs: int = Field(64, ge=1, description="Maximum number of answers generated at the same time.")
    max_num_batched_tokens: int | None = Field(None, ge=1, description="Maximum tokens in a forward pass.")
    max_num_queued_reqs: int = Field(256, ge=0, description="Maximum queued answers; more get a 503.")
    max_num_queued_tokens: int = Field(
        2**20,
        ge=0,
        description="Maximum prompt tokens waiting for their answers to begin; more get a 503, or a 400 if "
        "the prompts of a single request exceed it.",
    )
    max_picture_memory: ByteSize = Field(
        ByteSize(4 * 2**30), ge=0, description="Memory for processed images of open requests; more get a 503."
    )
    scheduling_policy: Literal["fcfs", "priority"] = Field(
        "fcfs", description="Order of requests: first come, first served, or lowest 'priority' first."
    )
    num_threads: int | None = Field(
        None,
        ge=1,
        le=MAX_THREADS,
        description="CPU threads; by default as PyTorch chooses, capped at a container's CPU limit.",
    )
    gpu_memory_utilization: float = Field(0.9, gt=0, le=1, description="Fraction of GPU memory to use.")
    kv_cache_memory: ByteSize | None = Field(None, gt=0, description="Size of the KV cache, such as 2GiB.")
    enable_prefix_caching: bool = Field(True, description="Reuse the KV cache of common prefixes.")
    cpu_kernels: bool = Field(
        True, description="On a CPU in float32, use SpecVLM's own kernels, compiled on first start."
    )
    triton_kernels: bool = Field(True, description="On CUDA, use Triton kernels where they work.")
    cuda_graphs: bool = Field(True, description="On CUDA with Triton kernels, run small steps as graphs.")

    limit_mm_per_prompt: Limits = Field({"image": 16}, description="Maximum images per request, as JSON.")
    max_image_pixels: int = Field(
        100_000_000, ge=1, description="Maximum image pixels per request, and of all images decoded at once."
    )
    allowed_media_domains: Names = Field([], description="Domain of image URLs; by default, any public host.")
    allowed_local_media_path: DirectoryPath | None = Field(
        None, description="Folder that 'file:' URLs may point into; by default, they are refused."
    )

    metrics_prefix: Prefix = Field("specvlm", description="Metric name prefix; 'vllm' suits vLLM dashboards.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Minimum log level.")
    log_format: LogFormat = Field("auto", description="'auto': 'console' on a terminal, else 'json'.")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        refuse_unknown_environment(set(cls.model_fields))
        path = init_settings().get("config") or os.environ.get(CONFIG_ENV)
        found = read_config(Path(path), set(cls.model_fields) - {"config"}) if path else {}
        from_file = InitSettingsSource(settings_cls, found)
        return init_settings, env_settings, from_file

    @field_validator(
        "served_model_name", "api_key", "allowed_media_domains", "allowed_origins", mode="before"
    )
    @classmethod
    def _split_commas(cls, value: Any) -> Any:
        if isinstance(value, str):
            if value.startswith("["):
                return list_in(value)
            return [part.strip() for part in value.split(",") if part.strip()]
        return value

    @field_validator("model", "draft")
    @classmethod
    def _paths_are_folders(cls, value: str | None) -> str | None:
        """Hub ids begin with neither; the hub's library would report such a path as a malformed id."""
        if value is not None and value.startswith(("/", ".")) and not Path(value).is_dir():
            raise ValueError(f"the folder {value} does not exist")
        return value

    @model_validator(mode="after")
    def _keys_are_keys(self) -> ServeSettings:
        if "api_key" in self.model_fields_set and not any(self.api_keys_given()):
            raise ValueError("--api-key is empty; omit it to serve without a key")
        self.api_keys()
        return self

    @model_validator(mode="after")
    def _a_pass_holds_all_answers(self) -> ServeSettings:
        most, answers = self.max_num_batched_tokens, self.max_num_seqs
        if most is not None and most < answers:
            raise ValueError(f"--max-num-batched-tokens {most} is less than --max-num-seqs {answers}")
        return self

    @model_validator(mode="after")
    def _tls_has_both_halves(self) -> ServeSettings:
        if (self.ssl_keyfile is None) != (self.ssl_certfile is None):
            raise ValueError("--ssl-keyfile and --ssl-certfile must be given together")
        if self.ssl_keyfile is not None and self.ssl_certfile is not None:
            try:
                ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
                    self.ssl_certfile, self.ssl_keyfile, password=no_password
                )
            except OSError as error:  # includes SSLError
                raise ValueError(f"--ssl-keyfile and --ssl-certfile cannot be used: {error}") from None
        return self

    @property
    def names(self) -> list[str]:
        return self.served_model_name or [self.model or DEMO_MODEL_NAME]

    @property
    def max_images(self) -> int:
        return self.limit_mm_per_prompt.get("image", 16)

    def api_keys_given(self) -> list[str]:
        return [key.get_secret_value() for key in self.api_key]

    def api_keys(self) -> list[str]:
        """Return the keys given directly and those in the file."""
        keys = self.api_keys_given()
        if self.api_key_file is not None:
            try:
                text = self.api_key_file.read_text(encoding="utf-8-sig")
            except (OSError, ValueError) as error:
                raise ValueError(
                    f"--api-key-file {self.api_key_file} cannot be read as UTF-8: {error}"
                ) from None
            lines = [line.strip() for line in text.splitlines()]
            keys += [line for line in lines if not line.startswith("#")]
            if not any(keys):
                raise ValueError(f"--api-key-file {self.api_key_file} holds no key")
        return [key for key in keys if key]

    def engine_config(self, model: str) -> EngineConfig:
        return EngineConfig(
            model=model,
            revision=self.revision,
            draft=self.draft,
            speculative=self.speculative_config,
            target_visual_compression=self.target_visual_compression,
            device=self.device,
            dtype=self.dtype,
            max_model_len=self.max_model_len,
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens,
            kv_cache_memory=None if self.kv_cache_memory is None else int(self.kv_cache_memory),
            num_threads=self.num_threads,
            gpu_memory_utilization=self.gpu_memory_utilization,
            enable_prefix_caching=self.enable_prefix_caching,
            cpu_kernels=self.cpu_kernels,
            triton_kernels=self.triton_kernels,
            cuda_graphs=self.cuda_graphs,
            trust_remote_code=self.trust_remote_code,
        )


def no_password() -> str:
    """Called for an encrypted key; OpenSSL would otherwise prompt on the terminal each time it is read."""
    raise ValueError("--ssl-keyfile is encrypted; give a key without a password ('openssl pkey' makes one)")


def refuse_unknown_environment(fields: set[str]) -> None:
    given = {name[len(ENV_PREFIX) :].lower() for name in os.environ if name.startswith(ENV_PREFIX)}
    if unknown := sorted(given - fields):
        names = ", ".join(ENV_PREFIX + name.upper() for name in unknown)
        raise SettingsError(f"unknown environment variables: {names}")


def read_config(path: Path, fields: set[str]) -> dict[str, Any]:
    """Return the settings in a file. Keys are spelled like flags (``max-num-seqs``) or fields."""
    try:
        text = path.read_text()
        values = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except (OSError, ValueError) as error:
        raise SettingsError(f"cannot read the config file {path}: {error}") from error
    if not isinstance(values, dict):
        raise SettingsError(f"the config file {path} does not hold an object")
    if unknown := [key for key in values if key.replace("-", "_") not in fields]:
        raise SettingsError(f"unknown setting in the config file {path}: {unknown[0]!r}")
    return {key.replace("-", "_"): value for key, value in values.items()}
