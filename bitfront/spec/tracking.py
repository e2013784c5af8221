"""The section `tracking`: where a study is mirrored to."""

from typing import Annotated, Final

from pydantic import AfterValidator

from bitfront.passwords import masked
from bitfront.spec.section import Section

SQLITE: Final = "sqlite:///"


def tracking_uri(uri: str) -> str:
    """An address of MLflow, as it was given.

    Raises:
        ValueError: It is none, or holds a password.
    """
    place = uri.removeprefix("http://").removeprefix("https://").removeprefix(SQLITE)
    if place in ("", uri):
        raise ValueError(
            f"{masked(uri)!r} is not an MLflow tracking URI: write http://HOST:PORT for a server, "
            "or sqlite:///FILE"
        )
    if masked(uri) != uri:
        raise ValueError(
            f"the tracking URI {masked(uri)} would show its password to all who read the job: "
            "leave it out, and set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        )
    return uri


class TrackingSpec(Section):
    """Where a study is mirrored to while it runs.

    `mlflow` is MLflow's tracking URI: a server (`http://` or `https://`), or `sqlite:///FILE`.
    """

    mlflow: Annotated[str, AfterValidator(tracking_uri)] | None = None

    @property
    def mlflow_file(self) -> str | None:
        """The path in `mlflow` where that is a file."""
        uri = self.mlflow or ""
        return uri.removeprefix(SQLITE) if uri.startswith(SQLITE) else None
