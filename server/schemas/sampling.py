"""Sampling parameters: the fields that OpenAI, vLLM and SGLang clients know, with their ranges.

``None`` leaves the choice to the model's generation config, see ``server.sampling``.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field

from server.schemas.base import RequestModel, few_fields

INT64_MAX = 2**63 - 1
INT32_MAX = 2**31 - 1

TokenId = Annotated[int, Field(ge=0, le=INT32_MAX)]
TokenIdKey = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]
Bias = Annotated[float, Field(ge=-100, le=100)]
Biases = Annotated[dict[TokenIdKey, Bias], BeforeValidator(few_fields)]
StopString = Annotated[str, Field(min_length=1, max_length=1024)]
MaxTokens = Annotated[int, Field(ge=1, le=INT32_MAX)]


class SamplingFields(RequestModel):
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, le=INT32_MAX, description="0 and -1 consider all tokens.")
    min_p: float | None = Field(None, ge=0, le=1)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, ge=0.01, le=100)
    logit_bias: Biases | None = Field(None, description="Maps token IDs to biases.")
    seed: int | None = Field(None, ge=-INT64_MAX - 1, le=INT64_MAX)
    min_tokens: int = Field(0, ge=0, le=INT32_MAX)
    ignore_eos: bool = False
    stop: StopString | Annotated[list[StopString], Field(max_length=16)] | None = None
    stop_token_ids: list[TokenId] | None = Field(None, max_length=128)
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True

    @property
    def stop_strings(self) -> list[str]:
        if self.stop is None:
            return []
        return [self.stop] if isinstance(self.stop, str) else self.stop
