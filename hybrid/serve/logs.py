"""Logs of a server: a line a request that ended, with its decision id and no text of anybody's."""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

from hybrid.errors import Cancelled
from hybrid.serve.call import Call, Choice, Head
from hybrid.serve.errors import api_error

_log = logging.getLogger("hybrid.serve.requests")
_FIELDS = "hybrid"  # the attribute of a log record that holds what JSON logs write as fields


def log_to_stderr(as_json: bool) -> None:
    """Write hybrid's and uvicorn's logs to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if as_json else logging.Formatter("%(levelname)s %(message)s"))
    for name, level in (("hybrid", logging.INFO), ("uvicorn", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)


def log_choice(call: Call, head: Head, choice: Choice | None, error: BaseException | None) -> None:
    """One line for a choice that ended, well or not."""
    fields: dict[str, Any] = {
        "decision_id": head.decision_id,
        "endpoint": call.endpoint,
        "policy": head.model,
        "stream": call.stream,
    }
    if choice is not None:
        result = choice.result
        fields |= {
            "outcome": result.finish_reason,
            "plan": result.plan.label,
            "steps": result.usage.denoising_steps,
            "tokens": result.usage.completion_tokens,
            "ms": round(result.timing.total_s * 1e3, 1),
            "within_budget": result.timing.within_budget,
        }
    elif isinstance(error, Exception) and not isinstance(error, Cancelled):
        told = api_error(error)
        fields |= {"outcome": "error", "status": told.status, "code": told.code}
    else:
        fields |= {"outcome": "cancelled"}
    line = " ".join(f"{name}={value}" for name, value in fields.items())
    _log.info("%s", line, extra={_FIELDS: fields})


class _Json(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter.format`."""
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        values = {"at": at, "level": record.levelname, "logger": record.name}
        fields = getattr(record, _FIELDS, None)
        values |= fields if fields is not None else {"message": record.getMessage()}
        if record.exc_info:
            values["exception"] = self.formatException(record.exc_info)
        return json.dumps(values)
