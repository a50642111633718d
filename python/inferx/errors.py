"""The one tree of errors: typed where they happen, rendered once for HTTP and once for gRPC.

Must never import anything outside the standard library.
"""

from __future__ import annotations

from typing import Any, ClassVar


class InferxError(Exception):
    """Base of every error a user may see.

    `code` is machine readable and stable, `http_status` an HTTP status, `grpc_code` the name of a
    gRPC status code, `retry_after_ms` a hint for clients when a retry makes sense.
    """

    code: ClassVar[str] = "internal"
    http_status: ClassVar[int] = 500
    grpc_code: ClassVar[str] = "INTERNAL"

    def __init__(
        self,
        message: str,
        *,
        retry_after_ms: int | None = None,
        details: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_ms = retry_after_ms
        self.details = details or {}

    def to_dict(self) -> dict[str, Any]:
        """The error as the body of the JSON envelope, without the request id."""
        body: dict[str, Any] = {"code": self.code, "message": self.message}
        if self.retry_after_ms is not None:
            body["retry_after_ms"] = self.retry_after_ms
        if self.details:
            body["details"] = self.details
        return body


class BadRequest(InferxError):
    """The input is wrong; the message names what and where."""

    code = "bad_request"
    http_status = 400
    grpc_code = "INVALID_ARGUMENT"


class NotFound(InferxError):
    """The named thing does not exist."""

    code = "not_found"
    http_status = 404
    grpc_code = "NOT_FOUND"


class FunctionNotFound(NotFound):
    """The called function does not exist."""

    code = "function_not_found"


class AlreadyExists(InferxError):
    """An object of that name exists already."""

    code = "already_exists"
    http_status = 409
    grpc_code = "ALREADY_EXISTS"


class Conflict(InferxError):
    """The object changed since it was read (its revision is another one)."""

    code = "conflict"
    http_status = 409
    grpc_code = "ABORTED"


class Compacted(InferxError):
    """The asked revision is no longer kept; list again and watch from there."""

    code = "compacted"
    http_status = 410
    grpc_code = "OUT_OF_RANGE"


class Unauthenticated(InferxError):
    """No valid credential came with the call."""

    code = "unauthenticated"
    http_status = 401
    grpc_code = "UNAUTHENTICATED"


class Forbidden(InferxError):
    """The principal may not do this."""

    code = "forbidden"
    http_status = 403
    grpc_code = "PERMISSION_DENIED"


class Disabled(Forbidden):
    """The tenant or namespace is disabled."""

    code = "disabled"


class QueueFull(InferxError):
    """The function's waiting queue is full."""

    code = "queue_full"
    http_status = 429
    grpc_code = "RESOURCE_EXHAUSTED"


class TenantLimit(InferxError):
    """A limit of the tenant is reached; the message names it."""

    code = "tenant_limit"
    http_status = 429
    grpc_code = "RESOURCE_EXHAUSTED"


class TenantGpuLimit(TenantLimit):
    """The tenant's GPU limit is reached."""

    code = "tenant_gpu_limit"


class NoCapacity(InferxError):
    """No node has, or can make, room; the message says why for each kind of refusal."""

    code = "no_capacity"
    http_status = 503
    grpc_code = "RESOURCE_EXHAUSTED"


class StartFailed(InferxError):
    """The worker could not be started; the message carries the reason and the end of its log."""

    code = "start_failed"
    http_status = 502
    grpc_code = "FAILED_PRECONDITION"


class QueueTimeout(InferxError):
    """No worker became free within the caller's deadline."""

    code = "queue_timeout"
    http_status = 504
    grpc_code = "DEADLINE_EXCEEDED"


class WorkerFailed(InferxError):
    """The worker failed before the first byte of its answer."""

    code = "worker_failed"
    http_status = 502
    grpc_code = "UNAVAILABLE"


class BodyTooLarge(InferxError):
    """The request body is over the limit."""

    code = "body_too_large"
    http_status = 413
    grpc_code = "INVALID_ARGUMENT"


class StaleEpoch(InferxError):
    """The caller is no longer the leading scheduler."""

    code = "stale_epoch"
    http_status = 409
    grpc_code = "FAILED_PRECONDITION"


class StaleLease(InferxError):
    """The lease was given back, expired or granted to somebody else."""

    code = "stale_lease"
    http_status = 409
    grpc_code = "FAILED_PRECONDITION"


class InvalidState(InferxError):
    """The object's state does not allow this; the message names both."""

    code = "invalid_state"
    http_status = 409
    grpc_code = "FAILED_PRECONDITION"


class Unavailable(InferxError):
    """A service this one depends on does not answer right now."""

    code = "unavailable"
    http_status = 503
    grpc_code = "UNAVAILABLE"


class NotSupported(InferxError):
    """The called service does not serve this."""

    code = "not_supported"
    http_status = 501
    grpc_code = "UNIMPLEMENTED"


class ConfigError(InferxError):
    """The configuration is unusable; the message names the entry and where it came from."""

    code = "config"


def _tree(root: type[InferxError]) -> dict[str, type[InferxError]]:
    found = {root.code: root}
    for child in root.__subclasses__():
        found = {**_tree(child), **found}  # of classes that share a code the most general counts
    return found


def from_code(code: str) -> type[InferxError]:
    """The class of a machine-readable code; `InferxError` for a code that is unknown here."""
    return _tree(InferxError).get(code, InferxError)


def codes() -> dict[str, str]:
    """The gRPC status of every machine-readable code."""
    return {code: kind.grpc_code for code, kind in _tree(InferxError).items()}
