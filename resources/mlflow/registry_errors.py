"""Errors of the model registry: not reachable, or not permitted."""

from collections.abc import Iterator
from contextlib import contextmanager


class RegistryUnavailable(RuntimeError):
    """The registry cannot be reached or returns an error."""


class PermissionRefused(RegistryUnavailable):
    """MLflow denies this account the permission for an operation."""


@contextmanager
def refusals_explained(address: str, what: str, permission: str) -> Iterator[None]:
    """Turns a denied request in the block into PermissionRefused, which names the account and what it lacks.

    Args:
        address: The address of MLflow, without a password.
        what: The operation, to follow "does not allow this account to".
        permission: The MLflow permission that the operation needs.
    """
    from mlflow.exceptions import MlflowException
    from mlflow.utils.credentials import read_mlflow_creds
    from requests import HTTPError

    try:
        yield
    except (MlflowException, HTTPError) as error:  # HTTPError: from MLflow's artifact server
        code = error.error_code if isinstance(error, MlflowException) else getattr(error.response, "status_code", None)
        name = read_mlflow_creds().username
        account = f"account {name}" if name else "this process, which has no account"
        if code in ("UNAUTHENTICATED", 401):
            raise PermissionRefused(
                f"MLflow at {address} rejects the login of {account}: check MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD"
            ) from error
        if code in ("PERMISSION_DENIED", 403):
            raise PermissionRefused(
                f"MLflow at {address} does not allow {account} to {what}: it needs the permission {permission}. "
                "An MLflow administrator can grant it; see docs/governance.md"
            ) from error
        raise
