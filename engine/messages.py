"""What travels between a front end and an engine. No torch, no transport.

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
    """How the tokens of one choice are drawn. Ranges are checked at the HTTP edge and again on arrival.

    ``seed`` and ``choice_index`` key the counter-based noise: the same pair draws the same text whatever
    else is in the batch. ``temperature`` 0 is greedy. ``top_k`` 0 is off. ``logprobs`` is how many of the
    likeliest tokens to report beside the chosen one (``None``: report nothing), ``prompt_logprobs`` the same
    of the prompt's tokens, all of which are computed then. ``max_tokens`` 0 ends behind the prompt.
    ``grammar``: what the answer must be, up to ``max_tokens``, in the language of ``engine.grammar.grammar``.
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
    nodes of a tree without its root; 0 in any of them is plain decoding, as is ``enabled`` false. ``trace``:
    report every round's tree. ``compressor``: what the draft sees of pictures; ``auto`` leaves that to the
    engine and to ``details``, how finely to look at each picture (empty: ``auto`` for all). None of these
    changes the text.
    """

    enabled: bool = True
    num_steps: int | None = None
    topk: int | None = None
    num_draft_tokens: int | None = None
    trace: bool = False
    compressor: CompressorName = "auto"
    details: list[Detail] = []


class GenerateRequest(msgspec.Struct, frozen=True, kw_only=True, tag="generate"):
    """One choice to generate. ``cache_salt`` separates prefix caches; lower ``priority`` runs first.
    Pictures that the engine has travel without tensors (``engine.ipc.tensors_once``).
    ``visual_compression``: lossy; ``None`` takes the engine's setting. ``arrived_at``: monotonic seconds, as
    the engine's loop heard of it; from then on it waits.
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
    """Stop these requests. Ids that are unknown or have ended are ignored."""

    request_ids: list[str]


class ForgetPictures(msgspec.Struct, frozen=True, kw_only=True, tag="forget"):
    """No open request has these pictures any more; see ``engine.ipc.tensors_once``."""

    hashes: list[bytes]


class Shutdown(msgspec.Struct, frozen=True, kw_only=True, tag="shutdown"):
    """Abort what runs, tell its clients, and end the process."""


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
    """What a draft has of a picture: the branch of its compressor (``none``: all of it) and the visual tokens
    that it kept. No branch: the draft goes without this picture.

    For those who asked for a trace, ``grids``: (rows, columns) of each grid of the picture's visual tokens,
    row by row, one grid after the other; ``sources``: the tokens whose places the kept ones take, ``None``
    where that is not known, or where all were kept.
    """

    compressor: str | None
    visual_tokens: int
    grids: list[tuple[int, int]] = []
    sources: list[int] | None = None


class SpeculationStats(msgspec.Struct, frozen=True, kw_only=True):
    """What speculation did for one request. A round is a step that verified a tree of at least one draft.

    ``num_spec_tokens``: output tokens of all rounds, bonus tokens included. ``acceptance_histogram[k]``:
    rounds in which ``k`` drafts were accepted. ``visual_tokens``: of the prompt. ``pictures``: in their
    order, as far as a draft that sees pictures got to see them.
    """

    num_spec_steps: int = 0
    num_draft_tokens: int = 0
    num_accepted_draft_tokens: int = 0
    num_spec_tokens: int = 0
    acceptance_histogram: list[int] = []
    visual_tokens: int = 0
    pictures: list[ShownPicture] = []


class TracedRound(msgspec.Struct, frozen=True, kw_only=True):
    """One verified tree. Node ``i`` drafts ``token_ids[i]`` after node ``parents[i]``; -1 is the root, the
    last token before the round. ``accepted``: the walked nodes, root first left out; ``bonus_token_id``: the
    target's own token after them.
    """

    token_ids: list[int]
    parents: list[int]
    accepted: list[int]
    bonus_token_id: int


class RequestOutput(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens that one request gained in one step.

    ``token_ids`` includes the stop token, if that is what ended the request; ``stop_token_id`` names it.
    ``timings`` come with the last output; ``speculation`` counts so far and comes with every one (a stop
    string ends a request before its last is heard); ``rounds`` come to those who asked for a trace.
    ``num_spared_tokens``: visual tokens that lossy compression took out of the prompt. ``prompt_logprobs``:
    of the prompt's tokens but the first, with the first output of a request that asked for them.
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
    ``draft_seconds``: time spent drafting; ``step_seconds``: time of all steps. ``draft_pictures``: pictures
    that the draft took in, by the branch of its compressor; ``draft_visual_tokens``: theirs, of which
    ``draft_kept_visual_tokens`` were kept; ``draft_kv_bytes_saved``: what the others would have taken.
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


class EngineInfo(msgspec.Struct, frozen=True, kw_only=True, tag="ready"):
    """Sent once when the model is loaded."""

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
    """What drafts: ``eagle``, ``ngram`` or ``none``."""
    num_steps: int = 0
    topk: int = 0
    num_draft_tokens: int = 0
    compressors: tuple[CompressorName, ...] = ("auto", "none")
    """What a request may ask for."""
    visual_compression: VisualCompression | None = None
    """Of requests that do not say; ``None``: a request may not ask for any."""


class StepReport(msgspec.Struct, frozen=True, kw_only=True, tag="step"):
    """Outcome of one engine step; an idle engine sends empty ones as heartbeats.

    ``tree_sizes``: drafts verified for each sequence that could have had some; 0 where it decoded plainly.
    """

    outputs: list[RequestOutput]
    stats: EngineStats
    num_tokens: int = 0
    tree_sizes: list[int] = []


class LoadFailed(msgspec.Struct, frozen=True, kw_only=True, tag="load_failed"):
    """The model cannot be served; starting again would not help."""

    message: str


EngineMessage = EngineInfo | StepReport | LoadFailed
