"""Messages of the package, in the scanpy manner: quiet by default, louder with ``settings.verbosity``."""

from __future__ import annotations

import logging
import sys

from diffbio_sc import _settings as _settings  # sets the logger's level


class _StandardError(logging.Handler):
    """Writes to whatever ``sys.stderr`` is at the time of the message (notebooks and pytest replace it)."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr)


logger = logging.getLogger("diffbio_sc")
if not logger.handlers:
    logger.addHandler(_StandardError())
