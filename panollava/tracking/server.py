"""A store that may be away, a server above all: whether it answers, and how long to wait for that."""

from __future__ import annotations

import os

from panollava.tracking.database import opened
from panollava.tracking.location import PASSWORD, USER, connection_uri, database_file, store_lock

PROBE_SECONDS = 5.0
LIMITS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}
"""MLflow's own limits are seven retries of two minutes; whoever sends tries again by itself (see ``Delivery``)."""

BUSY = ("TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED", "DEADLINE_EXCEEDED")
BROKEN = 500
DENIED, DENIED_STATUS = ("UNAUTHENTICATED", "PERMISSION_DENIED", "CUSTOMER_UNAUTHORIZED"), (401, 403)

REASONS = {
    "CERTIFICATE_VERIFY_FAILED": "its certificate is not known here: MLFLOW_TRACKING_SERVER_CERT_PATH names the file, "
    "MLFLOW_TRACKING_INSECURE_TLS=true takes any",
    "is locked": "another process keeps it locked",
    "refused": "connection refused",
    "NameResolutionError": "its name is not known",
    "timed out": "no answer in time",
    "timeout": "no answer in time",
    "Connection reset": "connection reset",
    "Remote end closed": "connection closed",
}
"""What errors of connections have in their long texts, and what it means."""


def set_limits() -> None:
    """Keeps a request to a server that is gone short; what the user's environment says counts."""
    for name, value in LIMITS.items():
        os.environ.setdefault(name, value)


def check_answers(uri: str) -> None:
    """Asks a store whether it is there, in a few seconds; any answer of a server will do.

    Raises:
        ConnectionError: it is not.
    """
    if (file := database_file(uri)) is not None:
        with store_lock(uri, PROBE_SECONDS), opened(file, PROBE_SECONDS) as database:
            database.execute("begin immediate")
    if not uri.startswith("http"):
        return
    import requests
    from mlflow.exceptions import MlflowException
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    try:
        # With the certificates, the user and whatever else MLflow's variables say.
        creds = get_default_host_creds(connection_uri(uri))
        http_request(creds, "/health", "GET", max_retries=0, timeout=PROBE_SECONDS, raise_on_status=False)
    except (MlflowException, requests.RequestException) as error:
        raise ConnectionError(no_answer(uri, error)) from error


def check_access(uri: str, error: Exception) -> None:
    """Says what a server wants to know that turned a request away.

    Raises:
        PermissionError: it did so because of who asked.
    """
    code = getattr(error, "error_code", None)
    status = getattr(getattr(error, "response", None), "status_code", None)
    if code in DENIED or status in DENIED_STATUS:
        raise PermissionError(
            f"tracking.uri={uri} turns the request away ({reason_of(error)}). Set {USER} and {PASSWORD}, or "
            "MLFLOW_TRACKING_TOKEN, in the environment."
        ) from error


def answers(uri: str) -> bool:
    """Whether a server is there."""
    try:
        check_answers(uri)
    except ConnectionError:
        return False
    return True


def is_out_of_reach(error: Exception) -> bool:
    """Whether an error of MLflow's client may pass, as opposed to a request that the server will never take."""
    import requests
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        # The code of a failed connection, and of whatever MLflow has no better code for.
        return error.error_code in ("INTERNAL_ERROR", *BUSY)
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return error.response.status_code >= BROKEN
    return isinstance(error, ConnectionError | TimeoutError | requests.RequestException)


def no_answer(uri: str, error: Exception) -> str:
    """The message for a server that does not answer."""
    return (
        f"tracking.uri={uri} does not answer ({reason_of(error)}). Start the server, correct the address, or "
        "train with tracking=none."
    )


def reason_of(error: Exception) -> str:
    """Why something failed, in a few words where they are known."""
    text = " ".join(str(error).split()) or repr(error)
    for sign, words in REASONS.items():
        if sign in text:
            return words
    return text[:200]
