"""The one shape of an error, as the OpenAI API has it."""

from __future__ import annotations

from typing import Literal

from server.schemas.base import AnswerModel

ErrorType = Literal["invalid_request_error", "authentication_error", "server_error"]


class ErrorDetail(AnswerModel):
    message: str
    type: ErrorType
    param: str | None = None
    code: str | None = None


class ErrorAnswer(AnswerModel):
    error: ErrorDetail
