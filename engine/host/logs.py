"""Logging setup of the engine process: the same format as the front end's, to the same stderr."""

from __future__ import annotations

import logging
import sys
from typing import TextIO

import structlog

from engine.config import LogFormat


def renderers(log_format: LogFormat, stream: TextIO) -> list[structlog.typing.Processor]:
    """Return the processors that render an event as a line, in order."""
    for_people = stream.isatty() if log_format == "auto" else log_format == "console"
    if for_people:
        return [structlog.dev.ConsoleRenderer(colors=stream.isatty())]
    return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]


def configure_logging(level: int, log_format: LogFormat) -> None:
    """Configure the standard library's loggers."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[
                structlog.stdlib.add_log_level,
                structlog.stdlib.add_logger_name,
                structlog.stdlib.ExtraAdder(),
                structlog.processors.TimeStamper(fmt="iso", utc=True),
            ],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *renderers(log_format, sys.stderr),
            ],
        )
    )
    logging.basicConfig(level=level, handlers=[handler])
