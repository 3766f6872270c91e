"""Messages exchanged between a front end and an engine. No torch, no transport.

Every request ends exactly once: with a ``RequestOutput`` that carries a ``finish_reason``.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from engine.config import CompressorName, VisualCompression
from processing.prompt import Prompt

FinishReason = Literal["stop", "length", "abort", "error"]
Detail = Literal["auto", "low", "high"]
RejectCode = Literal[
    "context_length_exceeded", "invalid_request", "invalid_grammar", "out_of_memory", "internal_error"
]


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How the tokens of one choice are sampled. Ranges are checked at the HTTP edge and again by the engine.

    ``seed`` and ``choice_index`` key the counter-based noise: the same pair draws the same text whatever else
    is in the batch. ``temperature`` 0 is greedy. ``top_k`` 0 disables it. ``logprobs`` is how many of the
    likeliest tokens to report beside the chosen one (``None``: report nothing); ``prompt_logprobs`` is the
    same for the prompt tokens, all of which are then computed. ``max_tokens`` 0 ends after the prompt.
    ``grammar`` constrains the answer, up to ``max_tokens``, in the format of ``engine.grammar.grammar``.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = {}
    seed: int = 0
    choice_index: int = 0
    min_tokens: int = 0
    ignore_eos: bool = False
    stop_token_ids: list[int] = []
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    grammar: str | None = None


class SpeculativeParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How far a request may speculate; ``None`` takes the engine's setting, which is also the upper limit.

    ``num_steps`` bounds the depth of a draft tree, ``topk`` the children of a node, ``num_draft_tokens`` the
    nodes of a tree without its root; 0 in any of them means plain decoding, as does ``enabled`` false.
    ``trace``: report the tree of every round. ``compressor``: how pictures are compressed for the draft;
    ``auto`` leaves that to the engine and to ``details``, the level of detail of each picture (empty:
    ``auto`` for all). None of these changes the generated text.
    """

    enabled: bool = True
    num_steps: int | None = None
    topk: int | None = None
    num_draft_tokens: int | None = None
    trace: bool = False
    compressor: CompressorName = "auto"
    details: list[Detail] = []


class GenerateRequest(msgspec.Struct, frozen=True, kw_only=True, tag="generate"):
    """One choice to generate.

    ``cache_salt`` separates prefix caches; lower ``priority`` runs first. Pictures that the engine already
    has are sent without tensors (``engine.ipc.tensors_once``). ``visual_compression``: lossy compression for
    the model itself; ``None`` takes the engine's setting. ``arrived_at``: when the engine's loop received the
    request, in monotonic seconds; queue time is counted from then on.
    """

    request_id: str
    prompt: Prompt
    sampling: SamplingParams
    speculative: SpeculativeParams = SpeculativeParams()
    visual_compression: VisualCompression | None = None
    cache_salt: str = ""
    priority: int = 0
    arrived_at: float | None = None


class AbortRequest(msgspec.Struct, frozen=True, kw_only=True, tag="abort"):
    """Abort these requests. Ids that are unknown or have ended are ignored."""

    request_ids: list[str]


class ForgetPictures(msgspec.Struct, frozen=True, kw_only=True, tag="forget"):
    """Drop these pictures: no open request uses them any more. See ``engine.ipc.tensors_once``."""

    hashes: list[bytes]


class Shutdown(msgspec.Struct, frozen=True, kw_only=True, tag="shutdown"):
    """Abort all open requests, report their ends, and end the process."""


ClientMessage = GenerateRequest | AbortRequest | ForgetPictures | Shutdown


class TokenLogprobs(msgspec.Struct, frozen=True, kw_only=True):
    """The model's own log-probabilities (before sampling parameters) at one position."""

    logprob: float
    top_ids: list[int]
    top_logprobs: list[float]


class RequestTimings(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds a request spent in each stage, sent with its last output."""

    queue: float
    prefill: float
    decode: float


class RequestError(msgspec.Struct, frozen=True, kw_only=True):
    """Why a request ended with finish reason ``error``."""

    code: RejectCode
    message: str


class ShownPicture(msgspec.Struct, frozen=True, kw_only=True):
    """How the draft sees a picture: the branch of its compressor and the number of visual tokens kept.

    Branch ``none`` keeps all tokens. If ``compressor`` is ``None``, the draft does not see this picture.

    For requests with a trace, ``grids``: (rows, columns) of each grid of the picture's visual tokens, row by
    row, one grid after the other; ``sources``: the tokens whose places the kept ones take, ``None`` if that
    is not known or if all were kept.
    """

    compressor: str | None
    visual_tokens: int
    grids: list[tuple[int, int]] = []
    sources: list[int] | None = None


class SpeculationStats(msgspec.Struct, frozen=True, kw_only=True):
    """What speculation did for one request. A round is a step that verified a tree of at least one draft.

    ``num_spec_tokens``: output tokens of all rounds, bonus tokens included. ``acceptance_histogram[k]``:
    rounds in which ``k`` drafts were accepted. ``visual_tokens``: the number of visual tokens in the prompt.
    ``pictures``: in order, as far as the draft has decided how to see them; empty if it ignores pictures.
    """

    num_spec_steps: int = 0
    num_draft_tokens: int = 0
    num_accepted_draft_tokens: int = 0
    num_spec_tokens: int = 0
    acceptance_histogram: list[int] = []
    visual_tokens: int = 0
    pictures: list[ShownPicture] = []


class TracedRound(msgspec.Struct, frozen=True, kw_only=True):
    """One verified tree.

    Node ``i`` drafts ``token_ids[i]`` after node ``parents[i]``; -1 is the root, the last token before the
    round. ``accepted``: the nodes on the accepted path, from the root down, without the root;
    ``bonus_token_id``: the target's own token after them.
    """

    token_ids: list[int]
    parents: list[int]
    accepted: list[int]
    bonus_token_id: int


class RequestOutput(msgspec.Struct, frozen=True, kw_only=True):
    """The tokens that one request gained in one step.

    ``token_ids`` includes the stop token if that is what ended the request; ``stop_token_id`` then holds it.
    ``timings`` come with the last output. ``speculation`` holds the counts so far and comes with every
    output, since a stop string ends a request before its last output is seen. ``rounds`` are sent only for
    requests with a trace. ``num_spared_tokens``: visual tokens that compression removed from the prompt.
    ``prompt_logprobs``: those of the prompt tokens from the second on, with the first output of a request
    that asked for them.
    """

    request_id: str
    token_ids: list[int]
    logprobs: list[TokenLogprobs] | None = None
    prompt_logprobs: list[TokenLogprobs] | None = None
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None
    num_cached_tokens: int = 0
    num_spared_tokens: int = 0
    timings: RequestTimings | None = None
    error: RequestError | None = None
    speculation: SpeculationStats | None = None
    rounds: list[TracedRound] | None = None


class EngineStats(msgspec.Struct, frozen=True, kw_only=True):
    """Gauges, and counters since the engine started. Cache queries and hits count tokens (mm: pictures).

    ``spec_accepted_per_depth[d]``: rounds in which the draft at depth ``d + 1`` was accepted.
    ``draft_seconds``: time spent drafting; ``step_seconds``: total time of all steps. ``draft_pictures``:
    pictures that the draft has processed, by the branch of its compressor; ``draft_visual_tokens``: their
    visual tokens, of which ``draft_kept_visual_tokens`` were kept; ``draft_kv_bytes_saved``: the KV cache
    bytes that the others would have taken. ``drafting_failed``: whether an error ended speculation for good.
    """

    num_running: int = 0
    num_waiting: int = 0
    kv_cache_usage: float = 0.0
    num_preemptions: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    prefix_cache_queries: int = 0
    prefix_cache_hits: int = 0
    mm_cache_queries: int = 0
    mm_cache_hits: int = 0
    spec_rounds: int = 0
    spec_draft_tokens: int = 0
    spec_accepted_tokens: int = 0
    spec_accepted_per_depth: list[int] = []
    draft_seconds: float = 0.0
    step_seconds: float = 0.0
    draft_pictures: dict[str, int] = {}
    draft_visual_tokens: int = 0
    draft_kept_visual_tokens: int = 0
    draft_kv_bytes_saved: int = 0
    drafting_failed: bool = False


class EngineInfo(msgspec.Struct, frozen=True, kw_only=True, tag="ready"):
    """Description of a loaded engine, sent once when it is ready."""

    model: str
    family: str
    dtype: str
    device: str
    vocab_size: int
    max_model_len: int
    max_images: int | None
    num_pages: int
    page_size: int
    load_seconds: float
    draft: str = "none"
    """The kind of draft: ``eagle``, ``ngram`` or ``none``."""
    num_steps: int = 0
    topk: int = 0
    num_draft_tokens: int = 0
    compressors: tuple[CompressorName, ...] = ("auto", "none")
    """The compressors that a request may ask for."""
    visual_compression: VisualCompression | None = None
    """The default for requests that do not specify it; ``None``: requests may not ask for any."""


class StepReport(msgspec.Struct, frozen=True, kw_only=True, tag="step"):
    """The outcome of one engine step; an idle engine sends empty reports as heartbeats.

    ``tree_sizes``: drafts verified for each sequence that could have had some; 0 if it decoded plainly.
    """

    outputs: list[RequestOutput]
    stats: EngineStats
    num_tokens: int = 0
    tree_sizes: list[int] = []


class LoadFailed(msgspec.Struct, frozen=True, kw_only=True, tag="load_failed"):
    """The model cannot be served, and restarting would not help."""

    message: str


EngineMessage = EngineInfo | StepReport | LoadFailed
