"""Draft-tree speculation as clients ask for it and hear of it. None of it changes the text of an answer."""

from __future__ import annotations

from typing import Final, Literal, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from engine.config import MAX_TREE_NODES
from server.schemas.base import AnswerModel, ClientModel

MAX_STEPS: Final = 32
MAX_TOPK: Final = 32

BUILT_COMPRESSORS: Final = ("auto", "none")
"""Both give the draft every visual token, as long as no compressor is built."""


class SpeculativeFields(ClientModel):
    """``None`` takes the server's setting, which also is the upper limit."""

    enabled: bool = Field(True, description="False is plain decoding.")
    num_steps: int | None = Field(None, ge=0, le=MAX_STEPS, description="Bounds the depth of a draft tree.")
    topk: int | None = Field(None, ge=0, le=MAX_TOPK, description="Bounds the children of a node.")
    num_draft_tokens: int | None = Field(
        None, ge=0, le=MAX_TREE_NODES - 1, description="Bounds the nodes of a tree, its root left out."
    )
    compressor: Literal["auto", "none", "prune", "pool", "conv", "resampler", "text_only"] = Field(
        "auto", description="Only 'auto' and 'none' are built, and the draft sees all of a picture with both."
    )
    trace: bool = Field(False, description="Report every verified tree.")

    @model_validator(mode="after")
    def _compressor_is_built(self) -> Self:
        if self.compressor not in BUILT_COMPRESSORS:
            raise PydanticCustomError(
                "unsupported_parameter",
                "'{name}' '{value}' is not supported by this server yet; 'auto' and 'none' are.",
                {"name": "speculative.compressor", "value": self.compressor},
            )
        return self


class SpeculativeDecoding(AnswerModel):
    """What speculation did for an answer, over all its choices. A round verified one tree of drafts."""

    num_spec_steps: int = Field(description="Rounds.")
    num_draft_tokens: int = Field(description="Drafts that were verified: nodes of all trees, without roots.")
    num_accepted_draft_tokens: int
    mean_acceptance_length: float | None = Field(
        description="Tokens of a round, the target's own (bonus) token included; null without a round."
    )
    draft_acceptance_rate: float | None = Field(
        description="Share of the verified drafts that were accepted; null without a draft."
    )
    acceptance_histogram: list[int] = Field(description="At index k: rounds in which k drafts were accepted.")
    num_spec_tokens: int = Field(description="Output tokens of all rounds, bonus tokens included.")


class AnswerMetrics(AnswerModel):
    speculative_decoding: SpeculativeDecoding


class TracedRound(AnswerModel):
    """One verified tree. Node ``i`` drafts ``token_ids[i]`` to follow node ``parents[i]``, -1 is the root."""

    index: int = Field(description="The choice.")
    position: int = Field(
        description="How many tokens the choice had before the round; the last is the root."
    )
    token_ids: list[int]
    tokens: list[str]
    parents: list[int]
    accepted: list[int] = Field(description="The accepted nodes, downwards.")
    bonus_token_id: int = Field(description="The target's own token after the accepted ones.")
    bonus_token: str
