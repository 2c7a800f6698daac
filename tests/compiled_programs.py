"""What JAX compiles while a test runs."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import jax


@contextmanager
def compiled_programs() -> Iterator[list[str]]:
    """Names and shapes of the programs that are compiled within, or loaded from a store: none was there in memory."""
    found: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            message = record.getMessage()
            if message.startswith("Compiling "):
                found.append(message)

    handler, logger = Handler(), logging.getLogger("jax")
    before = logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        with jax.log_compiles():
            yield found
    finally:
        logger.removeHandler(handler)
        logger.propagate = before
