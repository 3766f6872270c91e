"""Requests to ``/v1/completions`` and their responses, which look the same whole and in chunks."""

from __future__ import annotations

from typing import Annotated, ClassVar, Final, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from server.schemas.answers import Extension, FinishReason, Usage
from server.schemas.base import NO_EFFECT, AnswerModel, Refused, refusal
from server.schemas.generation import GenerationFields
from server.schemas.labels import Label
from server.schemas.sampling import INT32_MAX, TokenId

DEFAULT_MAX_TOKENS: Final = 16
"""The default of the OpenAI API."""

MAX_CHOICES: Final = 1024

TokenIds = Annotated[list[TokenId], Field(min_length=1, max_length=1_000_000)]


def prompt_kind(value: object) -> str:
    """Return the kind of a prompt, judged by its first item, so that errors refer to what was meant."""
    if not isinstance(value, list):
        return "str"
    match value:
        case [str(), *_]:
            return "list[str]"
        case [list(), *_]:
            return "list[list]"
        case _:
            return "list[int]"


AnyPrompt = Annotated[
    Annotated[str, Tag("str")]
    | Annotated[list[str], Field(max_length=MAX_CHOICES), Tag("list[str]")]
    | Annotated[TokenIds, Tag("list[int]")]
    | Annotated[list[TokenIds], Field(max_length=MAX_CHOICES), Tag("list[list]")],
    Discriminator(prompt_kind),
]


class CompletionRequest(GenerationFields):
    """Every field of the OpenAI schema; ``suffix`` and ``best_of`` only with values that have no effect."""

    prompt_field: ClassVar[str] = "prompt"

    prompt: AnyPrompt = Field(
        description="Text, token IDs, or a list of either. Special tokens in text are parsed."
    )
    max_tokens: int | None = Field(
        None, ge=0, le=INT32_MAX, description=f"{DEFAULT_MAX_TOKENS} by default; 0 only with 'echo'."
    )
    echo: bool | None = Field(
        None, description="Prepend the prompt to each answer, and its 'logprobs' to those of the answer."
    )
    logprobs: int | None = Field(None, ge=0, le=20, description="Number of most likely tokens to return.")
    add_special_tokens: bool = Field(True, description="Add the tokenizer's special tokens, such as BOS.")

    user: Annotated[Label | None, NO_EFFECT] = None
    best_of: int | None = Field(None, ge=1, le=128, description="Refused unless it equals 'n'.")
    suffix: Annotated[str | None, Refused((None, ""))] = None

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        if self.best_of is not None and self.best_of != self.num_choices:
            raise refusal("best_of", "Leave it out, or set it to the value of 'n'.")
        if self.max_tokens == 0 and not self.echo:
            raise refusal("max_tokens", "0 is allowed only with 'echo'.")
        if len(self.prompts) * self.num_choices > MAX_CHOICES:
            raise PydanticCustomError(
                "invalid_combination",
                "'prompt' and '{name}' together ask for more than {limit} answers.",
                {"name": "n", "limit": MAX_CHOICES},
            )
        return self

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [self.prompt]
        return self.prompt

    @property
    def token_limit(self) -> int:
        return DEFAULT_MAX_TOKENS if self.max_tokens is None else self.max_tokens

    @property
    def starts_text(self) -> bool:
        return False

    @property
    def num_logprobs(self) -> int | None:
        return self.logprobs

    @property
    def num_prompt_logprobs(self) -> int | None:
        return self.logprobs if self.echo else None


class CompletionLogprobs(AnswerModel):
    """One entry per token; ``text_offset`` is where its text starts in the text of the choice, or would start
    if a stop string had not cut it off. The first token of a prompt has no logprobs, as nothing precedes it.
    """

    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None]


class CompletionChoice(AnswerModel):
    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: FinishReason | None = None


class Completion(Extension):
    id: str
    system_fingerprint: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None
