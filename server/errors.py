"""All errors in the OpenAI format, with texts fixed here. No traceback or library message gets out.

Knows HTTP status codes and how pydantic reports a bad field. Does not know what the requests mean.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic_core import ErrorDetails
from starlette.exceptions import HTTPException

from engine.client import EngineDeadError, RequestRejectedError
from server.schemas.errors import ErrorAnswer, ErrorDetail, ErrorType

CLIENT_CLOSED_REQUEST: Final = 499
RETRY_AFTER_SECONDS: Final = 5
MAX_MESSAGE_LEN: Final = 500
MAX_PARAM_LEN: Final = 200
MAX_TAG_LEN: Final = 40

HTTP_TEXTS: Final = {
    400: ("The request body could not be read as JSON.", "invalid_json"),
    404: ("There is no endpoint at this path.", "not_found"),
    405: ("This endpoint does not support this method.", "method_not_allowed"),
    408: ("The request body did not arrive in time.", "request_timeout"),
    415: ("Send the request body uncompressed, without 'Content-Encoding'.", "unsupported_media_type"),
}

ERROR_RESPONSES: Final[dict[int | str, dict[str, Any]]] = {
    "4XX": {"model": ErrorAnswer, "description": "The request was refused; the error says why."},
    500: {"model": ErrorAnswer, "description": "The server or the model failed."},
    504: {"model": ErrorAnswer, "description": "The answer took longer than `--request-timeout`."},
    503: {"model": ErrorAnswer, "description": "Unavailable for now; retry after `Retry-After` seconds."},
}

log = structlog.get_logger(__name__)


class ApiError(Exception):
    """A failure reported to the client, before or in the middle of a stream. ``message`` and ``param`` may
    hold client input of any length, so they are truncated.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        param: str | None = None,
        type_: ErrorType | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers or {}
        if status in (502, 503):
            self.headers.setdefault("Retry-After", str(RETRY_AFTER_SECONDS))
        kind: ErrorType = type_ or ("invalid_request_error" if status < 500 else "server_error")
        text = message[:MAX_MESSAGE_LEN].encode("utf-8", "replace").decode()
        named = None if param is None else param[:MAX_PARAM_LEN].encode("utf-8", "replace").decode()
        self.answer = ErrorAnswer(error=ErrorDetail(message=text, type=kind, param=named, code=code))

    def renamed(self, names: Mapping[str, str]) -> ApiError:
        """Return this error in terms of a request before translation; ``names`` maps patterns of translated
        parameter names to the original ones."""
        error = self.answer.error
        for name, given in names.items():
            if error.param is not None and re.match(name, error.param):
                param = re.sub(name, given, error.param, count=1)
                message = error.message.replace(f"'{error.param}'", f"'{param}'")
                code = error.code or "invalid_value"
                return ApiError(self.status, message, code=code, param=param, headers=self.headers)
        return self

    def response(self) -> Response:
        return JSONResponse(self.answer.model_dump(), self.status, self.headers)


class BodyRefused(HTTPException):
    """``error`` raised while a body is read, where the framework replaces all other exceptions by its own."""

    def __init__(self, error: ApiError) -> None:
        super().__init__(error.status)
        self.error = error


class ClientGone(Exception):
    """The client has disconnected."""


def bad_request(message: str, *, param: str | None = None, code: str = "invalid_value") -> ApiError:
    return ApiError(400, message, param=param, code=code)


def missing_parameter(param: str) -> ApiError:
    return bad_request(f"Missing parameter: '{param}'.", param=param, code="missing_parameter")


def unauthorized() -> ApiError:
    return ApiError(
        401,
        "A valid API key is needed: send the header 'Authorization: Bearer KEY'.",
        code="invalid_api_key",
        type_="authentication_error",
        headers={"WWW-Authenticate": "Bearer"},
    )


def forbidden_origin(origin: str) -> ApiError:
    return ApiError(
        400,
        f"Pages from '{origin}' may not make this request; '--allowed-origins' lists the allowed origins.",
        code="forbidden_origin",
    )


def model_not_found(name: str) -> ApiError:
    message = f"The model '{name}' is not served here; '/v1/models' lists those that are."
    return ApiError(404, message, param="model", code="model_not_found")


def context_overflow(
    max_model_len: int, param: str, prompt_len: int, max_tokens: int | None = None, *, at_least: bool = False
) -> ApiError:
    """Return the error for a prompt that is too long; ``param`` names the field that holds it."""
    if max_tokens is None:
        count = f"at least {prompt_len}" if at_least else prompt_len
        wanted = f"'{param}' takes {count} tokens, which leaves no room for an answer"
    else:
        wanted = (
            f"you requested {prompt_len + max_tokens} tokens ({prompt_len} in '{param}', "
            f"{max_tokens} in the completion)"
        )
    return ApiError(
        400,
        f"This model's maximum context length is {max_model_len} tokens, but {wanted}.",
        param=param,
        code="context_length_exceeded",
    )


def engine_unavailable() -> ApiError:
    return ApiError(503, "The model is not ready to answer; try again soon.", code="engine_unavailable")


def body_too_large(max_size: int) -> ApiError:
    message = f"The request body has more than {max_size} bytes, the limit set by '--max-request-size'."
    return ApiError(413, message, code="request_too_large")


def head_too_large(max_size: int) -> ApiError:
    return ApiError(
        431,
        f"The request line and headers, including cookies, have more than {max_size} bytes.",
        code="headers_too_large",
    )


def body_too_costly(excess: str) -> ApiError:
    return ApiError(
        413,
        f"The request body has {excess}. Send fewer messages, parts, prompts or token IDs at once.",
        code="request_too_large",
    )


def too_many_tokens(num_tokens: int, num_prompts: int, most: int) -> ApiError:
    return bad_request(
        f"'prompt' has {num_tokens} tokens in {num_prompts} prompts; at most {most} can be queued at once "
        "('--max-num-queued-tokens'). Send fewer prompts at once.",
        param="prompt",
        code="too_many_tokens",
    )


def too_many_prompt_logprobs(count: int, most: int) -> ApiError:
    return bad_request(
        f"The prompts have {count} log-probabilities in all choices; at most {most} can be returned at once. "
        "Ask for fewer choices, prompts or alternatives.",
        code="too_many_logprobs",
    )


def too_many_token_details(most: int) -> ApiError:
    return bad_request(
        f"The answer has details of more than {most} tokens, alternatives and traced nodes, the most that "
        "can be returned at once. Ask for fewer of them, or stream a chat or completion.",
        code="too_many_logprobs",
    )


def too_much_unread() -> ApiError:
    return ApiError(503, "The answer was read too slowly; too much of it is unread.", code="too_much_unread")


def queue_full() -> ApiError:
    return ApiError(503, "Too many requests are waiting; try again soon.", code="queue_full")


def pictures_full() -> ApiError:
    text = "The memory for images of open requests is full; try again soon, or send fewer or smaller images."
    return ApiError(503, text, code="pictures_full")


def images_unavailable() -> ApiError:
    return ApiError(503, "Images cannot be decoded at the moment; try again soon.", code="images_unavailable")


def request_timeout() -> ApiError:
    """The client is told not to retry, as the request would take as long again."""
    return ApiError(
        504,
        "The answer took longer than this server allows.",
        code="request_timeout",
        headers={"x-should-retry": "false"},
    )


def shutting_down() -> ApiError:
    return ApiError(503, "The server is shutting down.", code="shutting_down")


def internal_error() -> ApiError:
    return ApiError(500, "The server failed to answer this request.", code="internal_error")


def as_api_error(error: Exception) -> ApiError:
    """Return the error that a client gets for ``error``, wherever it was raised."""
    match error:
        case ApiError():
            return error
        case RequestRejectedError() if error.code != "internal_error":
            # The engine writes these messages for clients. Retrying would not help.
            return ApiError(400, str(error), code=error.code)
        case EngineDeadError():
            return ApiError(500, "The model stopped while it was answering.", code="engine_dead")
        case _:
            log.error("request_failed", exc_info=error)
            return internal_error()


def install_error_handlers(app: FastAPI) -> None:
    """Answer every exception that leaves a route, and the framework's own."""

    async def on_invalid(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return validation_error(error).response()

    async def on_http_error(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if isinstance(error, BodyRefused):
            return error.error.response()
        message, code = HTTP_TEXTS.get(error.status_code, ("The request was refused.", "refused"))
        headers = dict(error.headers or {})
        return ApiError(error.status_code, message, code=code, headers=headers).response()

    async def on_client_gone(_: Request, __: Exception) -> Response:
        return Response(status_code=CLIENT_CLOSED_REQUEST)

    async def on_unexpected(request: Request, _: Exception) -> Response:
        response = internal_error().response()
        response.headers["X-Request-Id"] = request.state.request_id
        return response

    async def on_error(_: Request, error: Exception) -> Response:
        return as_api_error(error).response()

    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(ClientGone, on_client_gone)
    for known in (ApiError, EngineDeadError, RequestRejectedError):
        app.add_exception_handler(known, on_error)
    app.add_exception_handler(Exception, on_unexpected)


def validation_error(error: RequestValidationError) -> ApiError:
    """Return the most deeply nested error, preferably one that is not about a value's type: for a union,
    pydantic also reports the branches that were not meant.
    """
    detail: ErrorDetails = max(error.errors(), key=lambda one: (len(one["loc"]), not is_of_type(one)))
    param = parameter_name(detail["loc"][1:], error.body, missing=detail["type"] == "missing")
    param = param[:MAX_PARAM_LEN]  # here too, or it leaves no room in the message for what is wrong
    match detail["type"]:
        case _ if isinstance(error.body, bytes):
            return ApiError(415, "Send the body as 'application/json'.", code="unsupported_media_type")
        case "too_many_fields":
            return bad_request(detail["msg"], param=param or None, code="request_too_large")
        case _ if not param and detail["type"] not in ("unsupported_parameter", "invalid_combination"):
            return bad_request("The request body must be a JSON object.", code="invalid_json")
        case "extra_forbidden":
            return bad_request(f"Unknown parameter: '{param}'.", param=param, code="unknown_parameter")
        case "missing":
            return missing_parameter(param)
        case "union_tag_not_found":
            field = detail["ctx"]["discriminator"].strip("'")
            return missing_parameter(f"{param}.{field}")
        case "model_type" | "model_attributes_type" | "dict_type":
            return bad_request(f"Invalid value for '{param}': Input should be an object", param=param)
        case "union_tag_invalid":
            expected = re.sub(r"[\[\]]", "", detail["ctx"]["expected_tags"])
            tag = re.sub(r"[\[\]]", "", str(detail["ctx"]["tag"]))[:MAX_TAG_LEN]
            message = f"Invalid value for '{param}': '{tag}' is not supported; expected one of: {expected}."
            return bad_request(message, param=param)
        case "unsupported_parameter" | "invalid_combination":
            return bad_request(detail["msg"], param=detail["ctx"]["name"], code=detail["type"])
        case _:
            return bad_request(f"Invalid value for '{param}': {detail['msg']}", param=param)


def is_of_type(detail: ErrorDetails) -> bool:
    """Whether a value of another type was expected."""
    kind = detail["type"]
    return kind.endswith("_type") or (kind == "literal_error" and not isinstance(detail["input"], str))


def parameter_name(loc: tuple[int | str, ...], body: Any, *, missing: bool = False) -> str:
    """``('messages', 0, 'user', 'content', 'list[…]', 1, 'text', 'text')`` → ``messages[0].content[1].text``.

    Pydantic mixes the names of union branches into a location. A part that is not a field of ``body`` is
    such a name, except for the last part where a field is ``missing``.
    """
    name = ""
    for part in _fields(loc, body, missing):
        name += f"[{part}]" if isinstance(part, int) else f".{part}" if name else part
    return name


def _fields(loc: tuple[int | str, ...], body: Any, missing: bool) -> list[int | str]:
    """Return as many parts of ``loc`` as lead into ``body``. A branch may have the same name as a field."""
    if not loc:
        return []
    part, rest = loc[0], loc[1:]
    if isinstance(part, int):
        inner = body[part] if isinstance(body, list) and part < len(body) else None
        return [part, *_fields(rest, inner, missing)]
    skipped = _fields(rest, body, missing)
    if isinstance(body, dict) and part in body:
        taken = [part, *_fields(rest, body[part], missing)]
        return taken if len(taken) > len(skipped) else skipped
    return [part] if missing and not rest else skipped
