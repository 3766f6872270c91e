"""Draft-tree speculation as clients ask for it and hear of it. None of it changes the text of an answer."""

from __future__ import annotations

from pydantic import Field

from engine.config import MAX_STEPS, MAX_TOPK, MAX_TREE_NODES, CompressorName
from server.schemas.base import AnswerModel, ClientModel, is_absent


class SpeculativeFields(ClientModel):
    """``None`` takes the server's setting, which also is the upper limit."""

    enabled: bool = Field(True, description="False is plain decoding.")
    num_steps: int | None = Field(None, ge=0, le=MAX_STEPS, description="Bounds the depth of a draft tree.")
    topk: int | None = Field(None, ge=0, le=MAX_TOPK, description="Bounds the children of a node.")
    num_draft_tokens: int | None = Field(
        None, ge=0, le=MAX_TREE_NODES - 1, description="Bounds the nodes of a tree, its root left out."
    )
    compressor: CompressorName = Field(
        "auto",
        description="What the draft sees of pictures. 'auto': as the server was started, by each picture's "
        "'detail'; 'none': all of them. Which of the others this server's draft has, '/version' tells.",
    )
    trace: bool = Field(False, description="Report every verified tree, and what was kept of pictures.")


class SeenPicture(AnswerModel):
    """What the draft has of one picture, whose visual tokens lie in grids, one after the other."""

    compressor: str | None = Field(
        description="The branch that it went through; 'none': all of it; null: the draft goes without."
    )
    visual_tokens: int
    draft_visual_tokens: int = Field(description="Kept of them.")
    grids: list[tuple[int, int]] = Field(description="Rows and columns of each grid, told row by row.")
    sources: list[int] | None = Field(
        description="The visual tokens, counted from 0, whose places those of the draft take; null where all "
        "were kept, none, or where it is not known."
    )


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
    compressor: str | None = Field(
        description="The branch that the prompt's pictures went through on their way to the draft, as "
        "'pool-5', or 'mixed'; null where no draft saw a picture."
    )
    visual_tokens: int = Field(description="Of the prompt, all of which the model sees.")
    draft_visual_tokens: int | None = Field(description="What a draft had of them; null where none looks.")
    pictures: list[SeenPicture] | None = Field(
        default=None,
        exclude_if=is_absent,
        description="With 'speculative.trace': what a draft had of each picture, in their order.",
    )


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
