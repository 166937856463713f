"""Why the model registry gives no answer, or not to this account."""

from collections.abc import Iterator
from contextlib import contextmanager


class RegistryUnavailable(RuntimeError):
    """The registry does not answer."""


class PermissionRefused(RegistryUnavailable):
    """MLflow answers, and does not let this account do what was asked."""


@contextmanager
def refusals_explained(address: str, what: str, permission: str) -> Iterator[None]:
    """What MLflow refuses in the block is raised as PermissionRefused: what, whose account, what it lacks."""
    from mlflow.exceptions import MlflowException
    from mlflow.utils.credentials import read_mlflow_creds
    from requests import HTTPError

    try:
        yield
    except (MlflowException, HTTPError) as error:  # the latter where MLflow serves artifacts
        code = error.error_code if isinstance(error, MlflowException) else getattr(error.response, "status_code", None)
        name = read_mlflow_creds().username
        account = f"account {name}" if name else "this process, which names no account"
        if code in ("UNAUTHENTICATED", 401):
            raise PermissionRefused(
                f"MLflow at {address} does not know {account}, or not with this password: correct "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
            ) from error
        if code in ("PERMISSION_DENIED", 403):
            raise PermissionRefused(
                f"MLflow at {address} refuses {account} to {what}: it needs the permission {permission}; "
                "an administrator of MLflow gives it, as docs/governance.md says"
            ) from error
        raise
