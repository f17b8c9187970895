"""What can go wrong with one request. A handler may raise `InputError`; whatever else it raises is its own failure."""


class InputError(ValueError):
    """The request cannot be answered because of what it holds: status 400, and the client is told the text."""


class PredictionError(Exception):
    """The handler failed on a request, or returned what is no answer: status 500, and only the log is told why."""


class WorkerLost(Exception):  # noqa: N818 (it happened to the request, which is not to blame)
    """The process that had the request died: status 503, and asking again may help."""
