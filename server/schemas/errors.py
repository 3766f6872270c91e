"""The format of all errors, that of the OpenAI API."""

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
