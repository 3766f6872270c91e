"""Draft-tree speculation in requests and responses. None of it changes the text of an answer."""

from __future__ import annotations

from pydantic import Field

from engine.config import MAX_STEPS, MAX_TOPK, MAX_TREE_NODES, CompressorName
from server.schemas.base import AnswerModel, ClientModel, is_absent


class SpeculativeFields(ClientModel):
    """``None`` stands for the server's setting, which is also the upper limit."""

    enabled: bool = Field(True, description="False for plain decoding.")
    num_steps: int | None = Field(None, ge=0, le=MAX_STEPS, description="Maximum depth of a draft tree.")
    topk: int | None = Field(None, ge=0, le=MAX_TOPK, description="Maximum children of a node.")
    num_draft_tokens: int | None = Field(
        None, ge=0, le=MAX_TREE_NODES - 1, description="Maximum nodes of a tree, not counting the root."
    )
    compressor: CompressorName = Field(
        "auto",
        description="Compression of images for the draft. 'auto': the server's setting, adjusted to each "
        "image's 'detail'; 'none': no compression. '/version' lists those that this server's draft has.",
    )
    trace: bool = Field(False, description="Report every verified tree, and what was kept of images.")


class SeenPicture(AnswerModel):
    """What the draft sees of one picture, whose visual tokens form grids, one after the other."""

    compressor: str | None = Field(
        description="The compressor branch used; 'none': the whole image; null: the draft does not see it."
    )
    visual_tokens: int
    draft_visual_tokens: int = Field(description="Number of these kept for the draft.")
    grids: list[tuple[int, int]] = Field(description="Rows and columns of each grid, in row-major order.")
    sources: list[int] | None = Field(
        description="Indices from 0 of the visual tokens whose positions the draft's tokens take; null if "
        "all or none were kept, or if unknown."
    )


class SpeculativeDecoding(AnswerModel):
    """Statistics of speculation for an answer, over all its choices. A round verifies one draft tree."""

    num_spec_steps: int = Field(description="Number of rounds.")
    num_draft_tokens: int = Field(description="Draft tokens verified: nodes of all trees, without roots.")
    num_accepted_draft_tokens: int
    mean_acceptance_length: float | None = Field(
        description="Tokens per round, including the target's own (bonus) token; null without a round."
    )
    draft_acceptance_rate: float | None = Field(
        description="Fraction of verified draft tokens that were accepted; null if there were none."
    )
    acceptance_histogram: list[int] = Field(description="At index k: rounds with k accepted draft tokens.")
    num_spec_tokens: int = Field(description="Output tokens of all rounds, including bonus tokens.")
    compressor: str | None = Field(
        description="The compressor branch used on the prompt's images for the draft, such as 'pool-5', or "
        "'mixed'; null if no draft saw an image."
    )
    visual_tokens: int = Field(description="Visual tokens in the prompt, all seen by the model.")
    draft_visual_tokens: int | None = Field(description="Number seen by a draft; null if none looks at them.")
    pictures: list[SeenPicture] | None = Field(
        default=None,
        exclude_if=is_absent,
        description="With 'speculative.trace': what the draft saw of each image, in order.",
    )


class AnswerMetrics(AnswerModel):
    speculative_decoding: SpeculativeDecoding


class TracedRound(AnswerModel):
    """One verified tree. Node ``i`` drafts ``token_ids[i]`` to follow node ``parents[i]``; -1 is the root."""

    index: int = Field(description="Index of the choice.")
    position: int = Field(
        description="Number of tokens in the choice before the round; the last is the root."
    )
    token_ids: list[int]
    tokens: list[str]
    parents: list[int]
    accepted: list[int] = Field(description="The accepted nodes, from the root down.")
    bonus_token_id: int = Field(description="The target's own token after the accepted ones.")
    bonus_token: str
