"""How the engine process logs: as the front end does, to the same stderr."""

from __future__ import annotations

import logging
import sys
from typing import TextIO

import structlog

from engine.config import LogFormat


def renderers(log_format: LogFormat, stream: TextIO) -> list[structlog.typing.Processor]:
    """What makes a line of an event, in that order."""
    for_people = stream.isatty() if log_format == "auto" else log_format == "console"
    if for_people:
        return [structlog.dev.ConsoleRenderer(colors=stream.isatty())]
    return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]


def configure_logging(level: int, log_format: LogFormat) -> None:
    """For the standard library's loggers."""
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
