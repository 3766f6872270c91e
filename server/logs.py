"""Logging shared by the server and its libraries: human-readable on a terminal, JSON elsewhere.

Prompts and answers are never logged.
"""

from __future__ import annotations

import logging
import sys
from typing import TextIO

import structlog

from engine.config import LogFormat
from engine.host.logs import renderers


def drop_colors(
    _: structlog.typing.WrappedLogger, __: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Drop the coloured copy that uvicorn adds to its messages."""
    event.pop("color_message", None)
    return event


def configure_logging(level: str, log_format: LogFormat, stream: TextIO = sys.stderr) -> None:
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        drop_colors,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *renderers(log_format, stream),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    for noisy in ("httpx", "httpcore", "sse_starlette", "PIL"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, root.level))
