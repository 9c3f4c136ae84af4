"""The log of a service, a line an event: as text, or as JSON with the id of the request that it is about."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

from qsplit.server.middleware.request_log import REQUEST_ID

__all__ = ["JsonLines", "configure"]


class JsonLines(logging.Formatter):
    """One object a line: time, level, logger, message, request id, what is told beside, and the traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record.

        >>> line = JsonLines().format(logging.LogRecord("qsplit", logging.INFO, "", 0, "%d done", (3,), None))
        >>> json.loads(line)["message"]
        '3 done'
        """
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request_id := REQUEST_ID.get():
            line["request_id"] = request_id
        line |= getattr(record, "told", {})
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def configure(*, as_json: bool) -> None:
    """Send everything that this process logs to stderr, and nothing of it elsewhere."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if as_json else logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    for name in ("httpx", "httpcore", "lance", "multipart"):
        logging.getLogger(name).setLevel(logging.WARNING)
