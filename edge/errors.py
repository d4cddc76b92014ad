"""The one exception tree. Every error that a person or a client can meet says what is wrong and, where there is one,
the cure.

`status` is the HTTP status, `kind` the `type` field of OpenAI's error object, `code` its `code` field. `retryable`
errors
carry `Retry-After`; the official SDKs obey it. The API renders these in one place (`edge.api.render`), the command line
in one place (`edge.cli`); nothing else formats an error.
"""

from __future__ import annotations

from typing import ClassVar

_SOONEST_RETRY_S = 0.2


class EdgeError(Exception):
    """Base of all errors that edge raises on purpose.

    `message` is one sentence for people; `param` names the request field at fault; `retry_after_s` is seconds until a
    retry is worth while (None: the class's default).
    """

    status: ClassVar[int] = 500
    kind: ClassVar[str] = "server_error"
    code: ClassVar[str | None] = None
    retryable: ClassVar[bool] = False
    default_retry_after_s: ClassVar[float | None] = None

    def __init__(self, message: str, *, param: str | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.reason: str | None = None
        """Why, in a word that says more than the code; None if none does."""
        self.retry_after_s = retry_after_s if retry_after_s is not None else self.default_retry_after_s


class InvalidRequest(EdgeError):
    """The request itself is wrong; sending it again cannot help."""

    status = 400
    kind = "invalid_request_error"
    code = "invalid_value"


class UnsupportedParameter(InvalidRequest):
    """A field that would change the answer and that this node cannot honour. Refused by name, never ignored."""

    code = "unsupported_parameter"


class UnsupportedSchema(InvalidRequest):
    """A JSON schema keyword that the grammar cannot enforce."""

    code = "unsupported_schema"


class ContextLengthExceeded(InvalidRequest):
    """Prompt (plus the tokens asked for) longer than the context. Never truncated."""

    code = "context_length_exceeded"


class InvalidApiKey(EdgeError):
    """No key, or one that this node does not know."""

    status = 401
    kind = "invalid_request_error"
    code = "invalid_api_key"


class PermissionDenied(EdgeError):
    """A known key without the scope that the route asks for."""

    status = 403
    kind = "invalid_request_error"
    code = "insufficient_scope"


class HostNotAllowed(EdgeError):
    """A request by a name that is not the node's: a web page may have sent it (DNS rebinding)."""

    status = 403
    kind = "invalid_request_error"
    code = "host_not_allowed"


class RouteNotFound(EdgeError):
    """No such path."""

    status = 404
    kind = "invalid_request_error"
    code = "not_found"


class ModelNotFound(EdgeError):
    """The model named in the request is not served here."""

    status = 404
    kind = "invalid_request_error"
    code = "model_not_found"


class WrongModel(ModelNotFound):
    """The model is here, and is for something else."""

    status = 400
    code = "wrong_model"


class MethodNotAllowed(EdgeError):
    """The path exists, the method does not."""

    status = 405
    kind = "invalid_request_error"
    code = "method_not_allowed"


class SlowClient(EdgeError):
    """The client did not deliver its request body in time."""

    status = 408
    kind = "invalid_request_error"
    code = "request_timeout"


class BodyTooLarge(EdgeError):
    """The request body is over `server.max_body_bytes`."""

    status = 413
    kind = "invalid_request_error"
    code = "body_too_large"


class Overloaded(EdgeError):
    """The bounded queue is full."""

    status = 429
    kind = "rate_limit_error"
    code = "overloaded"
    retryable = True
    default_retry_after_s = 1.0


class Declined(Overloaded):
    """The engine foresees that it would answer too late. `reason` as in `edge.messages.Outlook`; `late_s` until the first token
    if it were answered all the same; `hopeless`: not in time on an idle node either."""

    def __init__(self, message: str, *, reason: str, late_s: float, hopeless: bool, prompt_tokens: int) -> None:
        super().__init__(message, retry_after_s=max(_SOONEST_RETRY_S, late_s))
        self.reason = reason
        self.late_s = late_s
        self.hopeless = hopeless
        self.prompt_tokens = prompt_tokens


class NotInTime(EdgeError):
    """In mode strict: the answer could not begin in time on an idle node either, so trying again is no use."""

    status = 429
    kind = "rate_limit_error"
    code = "slo_unreachable"


class FleetUnavailable(EdgeError):
    """No upstream of the fleet answered in time, or none may be asked now."""

    status = 503
    kind = "service_unavailable"
    code = "fleet_unavailable"
    retryable = True
    default_retry_after_s = 2.0


class RateLimited(Overloaded):
    """The key has used up its requests per minute."""

    code = "rate_limit_exceeded"


class Unavailable(EdgeError):
    """The node cannot answer at present."""

    status = 503
    kind = "service_unavailable"
    code = "unavailable"
    retryable = True
    default_retry_after_s = 1.0


class ModelLoading(Unavailable):
    """The model is being loaded."""

    code = "loading"


class NodeDraining(Unavailable):
    """The node is shutting down and takes no new work."""

    code = "draining"
    default_retry_after_s = 5.0


class EngineDown(Unavailable):
    """The engine child died or wedged; it is being replaced."""

    code = "engine_down"


class EngineFault(EdgeError):
    """The engine failed on this one request."""

    code = "engine_fault"


class ModelUnusable(EdgeError):
    """A model file that cannot be served: missing, truncated or corrupt, or refused by the native library."""

    status = 503
    kind = "service_unavailable"
    code = "model_unusable"


class DoesNotFit(ModelUnusable):
    """A model for which the memory does not suffice, however it is laid out."""

    status = 503
    kind = "service_unavailable"
    code = "no_memory"

    @classmethod
    def of(cls, name: str, needed_bytes: int, available_bytes: int) -> DoesNotFit:
        """With the figures and the cure."""
        return cls(
            f"the model {name!r} needs {needed_bytes / 2**20:,.0f} MiB, and {max(0, available_bytes) / 2**20:,.0f} MiB can be "
            "had for it; give it fewer slots or a shorter context, unpin others, or raise memory.budget_mib"
        )


class CannotUnload(EdgeError):
    """A model that stays loaded."""

    status = 409
    kind = "invalid_request_error"
    code = "cannot_unload"


class NoSuchRecord(EdgeError):
    """The fleet has no node or token of that name."""

    status = 404
    kind = "invalid_request_error"
    code = "no_such_record"


class RecordConflict(EdgeError):
    """What is asked does not go with the state that a node or token is in."""

    status = 409
    kind = "invalid_request_error"
    code = "conflict"


class DownloadFailed(EdgeError):
    """A model's file could not be fetched. What came of it is kept and gone on from, unless it was wrong."""

    code = "download_failed"


class DiskFull(EdgeError):
    """There is not, or no longer, enough space for a model's file."""

    code = "disk_full"


class StoreBusy(EdgeError):
    """Another process is fetching or changing the same model."""

    code = "store_busy"


class ArchiveUnusable(EdgeError):
    """An archive of a container image that is damaged, not whole, or of another image."""

    code = "archive_unusable"


class NodeUnreachable(EdgeError):
    """Nothing answers at a node's address, or not as such a server does. Raised by clients."""

    code = "unreachable"


class EnrollmentFailed(EdgeError):
    """A node could not get, or renew, its identity. What was begun is kept: the same command goes on with it."""

    code = "enrollment_failed"


class PinMismatch(EnrollmentFailed):
    """What answers is not the fleet that the token, or this node, trusts."""

    code = "not_our_fleet"


class EnrollmentRefused(EnrollmentFailed):
    """The fleet is the right one, and does not let this node in. `reason` is the fleet's word for it, where it gave one."""

    code = "enrollment_refused"

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason


class EnrollmentPending(EnrollmentFailed):
    """Somebody has to approve this node first."""

    code = "enrollment_pending"
    retryable = True
    default_retry_after_s = 10.0


class EnrollmentUnreachable(EnrollmentFailed):
    """The fleet, or its broker, does not answer, or not as such a server does."""

    code = "enrollment_unreachable"
    retryable = True


class ConfigurationError(EdgeError):
    """Settings, flags or the machine stand in the way of starting. The message ends with the cure."""

    code = "configuration"


class NotYet(ConfigurationError):
    """What stands in the way may go by itself: a file on a disk that is mounted later, a name that no server knows yet, an outbox
    that is being sent. The command ends so that a service manager tries again."""

    code = "not_yet"


class StoreUnwritable(ConfigurationError):
    """The store of models cannot be written to."""


def _tree(base: type[EdgeError]) -> list[type[EdgeError]]:
    return [base, *(leaf for child in base.__subclasses__() for leaf in _tree(child))]


def from_code(code: str, message: str, *, param: str | None = None) -> EdgeError:
    """Rebuild an error that crossed the pipe as (code, message, param). An unknown code becomes EngineFault."""
    for kind in _tree(EdgeError):
        if kind.code == code:
            return kind(message, param=param)
    return EngineFault(message, param=param)
