"""Every setting of ``specvlm train``. Imports nothing heavy, so that the command line can read it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, Field, model_validator
from pydantic_settings import SettingsConfigDict

# What may differ between a stopped run and the one that goes on: none of these reaches the weights.
_FREE_ON_RESUME = frozenset(
    {"out", "publish", "resume", "workers", "save_seconds", "log_every", "eval_data", "eval_every"}
    | {"eval_size", "eval_steps", "generate", "generate_temperature", "generate_max_tokens", "device"}
    | {"data", "image_folder", "model", "revision", "init_draft"}  # compared by what is in them
)


class TrainSettings(BaseModel):
    """Immutable. Lengths are in tokens."""

    model_config = SettingsConfigDict(
        extra="forbid", cli_kebab_case=True, cli_implicit_flags=True, frozen=True, protected_namespaces=()
    )

    model: str = Field(description="the target: a folder, or a hub id")
    revision: str | None = Field(None, description="of a hub id")
    out: Path = Field(description="folder for checkpoints, logs, the curve and the draft")
    publish: Path | None = Field(None, description="folder of the finished draft; OUT/draft by default")
    resume: bool = Field(True, description="go on from the checkpoint in OUT; otherwise begin again")

    data: list[Path] = Field(
        min_length=1,
        description=".jsonl, .json or .parquet files of dialogues, folders of .txt and .md files",
    )
    eval_data: list[Path] = Field([], description="the same, held out: measures acceptance while training")
    image_folder: Path | None = Field(
        None, description="where relative picture paths begin; the folder of each data file by default"
    )
    generate: Literal["off", "first", "only"] = Field(
        "off", description="let the target write the answers: before training (first), or nothing else (only)"
    )
    generate_temperature: float = Field(0.0, ge=0.0, le=2.0, description="of those answers; 0 is greedy")
    generate_max_tokens: int = Field(512, ge=1, description="length limit of one of those answers")

    mask: Literal["assistant", "all"] = Field(
        "assistant", description="tokens whose prediction is trained: assistants' answers, or every token"
    )
    max_length: int = Field(2048, ge=2, description="longer dialogues are left out (and counted)")
    row_length: int = Field(1024, ge=2, description="dialogues are packed into rows of about this length")
    tokens_per_pass: int = Field(
        4096, ge=2, description="of one forward; a batch of more accumulates gradients over several"
    )
    batch_size: int = Field(128, ge=1, description="dialogues of one optimiser step, over all processes")
    epochs: int = Field(1, ge=1, description="times that the data are gone through")
    max_steps: int | None = Field(None, ge=1, description="stop earlier; the schedule ends there too")

    draft_vocab: int | None = Field(
        None,
        ge=1,
        description="tokens that the draft can propose, the answers' most frequent; all by default",
    )
    init_from_target: bool = Field(False, description="start from the target's last layer, not from noise")
    init_draft: Path | None = Field(
        None,
        description="start from this draft's weights and vocabulary; branches that it has are taken over",
    )
    unroll: int = Field(1, ge=1, le=16, description="draft steps that are trained, on the draft's own states")
    unroll_decay: float = Field(0.8, gt=0.0, le=1.0, description="weight of a draft step to the one before")
    noise: float = Field(0.0, ge=0.0, description="uniform noise on features, -NOISE to NOISE (EAGLE-1: 0.1)")
    ce_weight: float = Field(0.1, ge=0.0, description="of cross-entropy with the target's distribution")
    feature_weight: float = Field(1.0, ge=0.0, description="of SmoothL1 to the target's feature")

    compressor: Literal["off", "select", "weight", "concat"] = Field(
        "off", description="train branches that shrink pictures for the draft, combined in this way"
    )
    branches: list[str] = Field(
        [],
        description="NAME or NAME:RATIO of each branch; by default those of the mode (docs/compressors.md)",
    )
    num_queries: int = Field(16, ge=1, description="of the resampler: the most tokens that it gives")
    ratios: list[float] = Field(
        [], description="select: ratios at which branches are trained too; by default only their own"
    )
    whole_share: float = Field(0.2, ge=0.0, le=1.0, description="of pictures that stay whole in training")
    gate_every: int = Field(2, ge=1, description="steps between those in which a gate that selects learns")
    gate_cost: float = Field(
        0.05, ge=0.0, description="what keeping a whole picture costs the gate, in nats a predicted token"
    )
    gate_balance: float = Field(0.01, ge=0.0, description="weight of the gate's balance term")
    gate_temperature: float = Field(1.0, gt=0.0, description="of its Gumbel-softmax")

    lr: float = Field(8e-5, gt=0.0, description="peak learning rate of AdamW (0.9, 0.95), no weight decay")
    compressor_lr: float = Field(
        1.0, gt=0.0, description="learning rate of the compressor, times that of the draft"
    )
    schedule: Literal["constant", "linear", "cosine"] = Field("constant", description="how it falls, to zero")
    warmup_steps: int = Field(0, ge=0, description="steps in which it rises")
    clip: float = Field(1.0, gt=0.0, description="largest norm of a step's gradient")
    seed: int = Field(0, description="of the first weights, the order of the data and the noise")

    device: Literal["auto", "cpu"] = Field("auto", description="auto: what accelerate finds")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="of the target's weights; auto as when serving"
    )
    feature_cache_gb: float = Field(
        0.0,
        ge=0.0,
        description="keep the target's features in OUT while training, in bfloat16, if they take no more "
        "than this (1e9 bytes): later epochs need no forward of the target; 0: never",
    )
    mixed_precision: Literal["auto", "no", "bf16"] = Field(
        "auto", description="of the arithmetic, by autocast; auto: bf16, but not on a CPU without it"
    )
    workers: int = Field(1, ge=0, description="processes that prepare batches, besides each training process")

    eval_every: int = Field(200, ge=1, description="steps between evaluations")
    eval_size: int = Field(64, ge=1, description="dialogues of an evaluation")
    eval_steps: int = Field(6, ge=1, le=32, description="drafts a round in evaluations")
    save_seconds: float = Field(300.0, ge=0.0, description="between checkpoints")
    log_every: int = Field(10, ge=1, description="steps between lines of the log")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.init_draft is not None and (self.draft_vocab is not None or self.init_from_target):
            raise ValueError(
                "--init-draft brings its own weights and vocabulary: no --draft-vocab, no "
                "--init-from-target beside it"
            )
        if self.compressor == "off" and (self.branches or self.ratios):
            raise ValueError("--branches and --ratios need --compressor select, weight or concat")
        if self.compressor != "select" and self.ratios:
            raise ValueError("--ratios goes with --compressor select only")
        if any(ratio < 1.0 for ratio in self.ratios):
            raise ValueError("--ratios must be at least 1")
        return self

    @property
    def draft_folder(self) -> Path:
        return self.publish or self.out / "draft"

    def of_weights(self) -> dict[str, Any]:
        """Settings that the weights depend on: a stopped run goes on only with the same."""
        values: dict[str, Any] = self.model_dump(mode="json")
        return {name: value for name, value in values.items() if name not in _FREE_ON_RESUME}
