"""Every setting of ``specvlm train``. Imports nothing heavy, so that the command line can read it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, Field, model_validator
from pydantic_settings import SettingsConfigDict

# Settings that may change when a stopped run is resumed, because none of them affects the weights.
_FREE_ON_RESUME = frozenset(
    {"out", "publish", "resume", "workers", "save_seconds", "log_every", "eval_data", "eval_every"}
    | {"eval_size", "eval_steps", "generate", "generate_temperature", "generate_max_tokens", "device"}
    | {"data", "image_folder", "model", "revision", "init_draft"}  # compared by content
)


class TrainSettings(BaseModel):
    """Settings of a training run (immutable). Lengths are in tokens."""

    model_config = SettingsConfigDict(
        extra="forbid", cli_kebab_case=True, cli_implicit_flags=True, frozen=True, protected_namespaces=()
    )

    model: str = Field(description="Target model: a local folder or a Hugging Face Hub ID.")
    revision: str | None = Field(None, description="Revision of a model from the Hub.")
    out: Path = Field(description="Folder for checkpoints, logs, the acceptance curve and the draft.")
    publish: Path | None = Field(
        None, description="Folder to write the finished draft to; OUT/draft by default."
    )
    resume: bool = Field(True, description="Resume from the checkpoint in OUT; otherwise start over.")

    data: list[Path] = Field(
        min_length=1,
        description="Training data: .jsonl, .json or .parquet files of dialogues, or folders of .txt and "
        ".md files.",
    )
    eval_data: list[Path] = Field(
        [], description="Held-out data, in the same formats, to measure acceptance on during training."
    )
    image_folder: Path | None = Field(
        None,
        description="Folder that relative image paths start from; by default the folder of each data file.",
    )
    generate: Literal["off", "first", "only"] = Field(
        "off",
        description="Replace the answers in the data with the target's own, before training (first) or "
        "without training at all (only).",
    )
    generate_temperature: float = Field(
        0.0, ge=0.0, le=2.0, description="Sampling temperature for --generate; 0 is greedy."
    )
    generate_max_tokens: int = Field(
        512, ge=1, description="Maximum length in tokens of each answer that --generate writes."
    )

    mask: Literal["assistant", "all"] = Field(
        "assistant",
        description="Tokens that the draft learns to predict: the assistant's answers (assistant), or all "
        "tokens except those of images (all).",
    )
    max_length: int = Field(
        2048, ge=2, description="Maximum length of a dialogue in tokens; longer ones are skipped and counted."
    )
    row_length: int = Field(
        1024, ge=2, description="Approximate length in tokens of the rows that dialogues are packed into."
    )
    tokens_per_pass: int = Field(
        4096,
        ge=2,
        description="Tokens in one forward pass; a batch that has more accumulates gradients over several "
        "passes.",
    )
    batch_size: int = Field(128, ge=1, description="Dialogues per optimiser step, over all processes.")
    epochs: int = Field(1, ge=1, description="Number of times to go through the training data.")
    max_steps: int | None = Field(
        None, ge=1, description="Stop after this many steps; the learning-rate schedule ends there too."
    )

    draft_vocab: int | None = Field(
        None,
        ge=1,
        description="Size of the draft's vocabulary, made of the most frequent tokens in the answers; the "
        "target's whole vocabulary by default.",
    )
    init_from_target: bool = Field(
        False, description="Initialise the draft from the target's last layer instead of at random."
    )
    init_draft: Path | None = Field(
        None,
        description="Folder of a draft to start from: its weights, its vocabulary, and those of its "
        "compressor branches that are trained here too.",
    )
    unroll: int = Field(
        1,
        ge=1,
        le=16,
        description="Number of draft steps to train; those after the first run on the draft's own states.",
    )
    unroll_decay: float = Field(
        0.8, gt=0.0, le=1.0, description="Loss weight of each draft step relative to the step before it."
    )
    noise: float = Field(
        0.0,
        ge=0.0,
        description="Amplitude of the uniform noise added to features, from -NOISE to NOISE (EAGLE-1: 0.1).",
    )
    ce_weight: float = Field(
        0.1, ge=0.0, description="Weight of the cross-entropy with the target's distribution."
    )
    feature_weight: float = Field(
        1.0, ge=0.0, description="Weight of the SmoothL1 loss against the target's features."
    )

    compressor: Literal["off", "select", "weight", "concat"] = Field(
        "off",
        description="How to combine the branches that compress images for the draft; off trains none.",
    )
    branches: list[str] = Field(
        [],
        description="Branches to train, each as NAME or NAME:RATIO; by default those of the chosen mode "
        "(see docs/compressors.md).",
    )
    num_queries: int = Field(
        16, ge=1, description="Number of queries of the resampler: the most tokens that it outputs."
    )
    ratios: list[float] = Field(
        [],
        description="Compression ratios to train the branches at, with --compressor select; by default "
        "each branch only at its own.",
    )
    whole_share: float = Field(
        0.2, ge=0.0, le=1.0, description="Share of images that are not compressed in training."
    )
    gate_every: int = Field(
        2, ge=1, description="Train the gate at every n-th step, with --compressor select."
    )
    gate_cost: float = Field(
        0.05,
        ge=0.0,
        description="Cost to the gate of keeping all tokens of an image, in nats per predicted token; "
        "proportionally less for fewer tokens.",
    )
    gate_balance: float = Field(0.01, ge=0.0, description="Weight of the gate's balance term.")
    gate_temperature: float = Field(1.0, gt=0.0, description="Temperature of the gate's Gumbel-softmax.")

    lr: float = Field(
        8e-5, gt=0.0, description="Peak learning rate of AdamW (betas 0.9 and 0.95, no weight decay)."
    )
    compressor_lr: float = Field(
        1.0, gt=0.0, description="Learning rate of the compressor, as a multiple of --lr."
    )
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant",
        description="Learning-rate schedule after warm-up; linear and cosine fall to zero at the last step.",
    )
    warmup_steps: int = Field(0, ge=0, description="Learning-rate warm-up steps.")
    clip: float = Field(1.0, gt=0.0, description="Maximum gradient norm; larger gradients are scaled down.")
    seed: int = Field(
        0, description="Random seed: initial weights, data order, noise, choice of branches, --generate."
    )

    device: Literal["auto", "cpu"] = Field(
        "auto", description="Device to train on; auto is the one that accelerate finds."
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Data type of the target's weights; auto chooses as specvlm serve does."
    )
    feature_cache_gb: float = Field(
        0.0,
        ge=0.0,
        description="Maximum size, in GB of 1e9 bytes, of a cache in OUT that keeps the target's features "
        "(bfloat16) during training, so that later epochs need no forward pass of the target; 0 disables it.",
    )
    mixed_precision: Literal["auto", "no", "bf16"] = Field(
        "auto",
        description="Precision of autocast; auto is bf16, except on a CPU without bfloat16 instructions.",
    )
    workers: int = Field(
        1, ge=0, description="Worker processes that prepare batches, for each training process."
    )

    eval_every: int = Field(200, ge=1, description="Steps between evaluations.")
    eval_size: int = Field(64, ge=1, description="Number of held-out dialogues in an evaluation.")
    eval_steps: int = Field(6, ge=1, le=32, description="Tokens to draft per round in evaluations.")
    save_seconds: float = Field(300.0, ge=0.0, description="Seconds between checkpoints.")
    log_every: int = Field(10, ge=1, description="Steps between entries in the log.")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.init_draft is not None and (self.draft_vocab is not None or self.init_from_target):
            raise ValueError(
                "--init-draft brings its own weights and vocabulary; it cannot be combined with "
                "--draft-vocab or --init-from-target"
            )
        if self.compressor == "off" and (self.branches or self.ratios):
            raise ValueError("--branches and --ratios need --compressor select, weight or concat")
        if self.compressor != "select" and self.ratios:
            raise ValueError("--ratios can be used with --compressor select only")
        if any(ratio < 1.0 for ratio in self.ratios):
            raise ValueError("--ratios must be at least 1")
        return self

    @property
    def draft_folder(self) -> Path:
        return self.publish or self.out / "draft"

    def of_weights(self) -> dict[str, Any]:
        """Return the settings that affect the weights; a run can be resumed only with the same values."""
        values: dict[str, Any] = self.model_dump(mode="json")
        return {name: value for name, value in values.items() if name not in _FREE_ON_RESUME}
