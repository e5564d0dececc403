"""Logging to stderr: text for a terminal, one JSON object per line otherwise."""

from __future__ import annotations

import logging
import sys
from typing import Literal, TextIO

import structlog

LogFormat = Literal["auto", "json", "console"]


def choose_format(log_format: LogFormat) -> Literal["json", "console"]:
    if log_format == "auto":
        return "console" if sys.stderr.isatty() else "json"
    return log_format


def _escape_control_characters(
    _logger: object, _method: str, event: structlog.types.EventDict
) -> structlog.types.EventDict:
    """Paths of requests may contain sequences that control a terminal."""
    return {key: _escaped(value) if isinstance(value, str) else value for key, value in event.items()}


def _escaped(text: str) -> str:
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


class _StderrHandler(logging.StreamHandler[TextIO]):
    """Writes to the present ``sys.stderr``, which tests replace."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr


def configure_logging(level: str = "info", log_format: LogFormat = "auto") -> None:
    """``level`` applies to Vidlex; of other packages only warnings and errors are logged."""
    chosen = choose_format(log_format)
    if chosen == "json":
        stamp = structlog.processors.TimeStamper(fmt="iso", utc=True)
        renderers: list[structlog.types.Processor] = [
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ]
    else:
        stamp = structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False)
        # The default formatter prints local variables: slow, and they may contain an upload.
        formatter = structlog.dev.plain_traceback
        console = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=formatter)
        renderers = [_escape_control_characters, console]
    shared: list[structlog.types.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        stamp,
        structlog.processors.StackInfoRenderer(),
    ]
    level_number = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(level_number),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    handler = _StderrHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderers],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(level_number, logging.WARNING))
    logging.getLogger("vidlex").setLevel(level_number)
    logging.captureWarnings(True)
    if chosen == "console" and level_number > logging.DEBUG:
        logging.getLogger("py.warnings").setLevel(logging.ERROR)  # of libraries; they do not concern operators
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
    logging.getLogger("uvicorn.access").disabled = True  # RequestContext writes the access log
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # its messages contain bytes of uploads
