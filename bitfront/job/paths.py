"""The fields of a job that name files."""

from collections.abc import Iterator

from bitfront.job.document import Place
from bitfront.spec import DataSource, JobSpec, ModelSource


def named_paths(spec: JobSpec) -> Iterator[tuple[Place, str]]:
    """Each text of the job that is a path, with its place.

    `model.name` and `model.weights` may be names on a hub, or of a library's own weights.
    """
    data, model = spec.data, spec.model
    if data.path and data.source is not DataSource.REFERENCE:
        yield ("data", "path"), data.path
    for name, path in data.splits.given.items():
        yield ("data", "splits", name), path
    if data.images is not None:
        yield ("data", "images"), data.images
    if data.classes_file is not None:
        yield ("data", "classes"), data.classes_file
    if spec.tracking.mlflow_file is not None:
        yield ("tracking", "mlflow"), spec.tracking.mlflow_file
    if model.source is not ModelSource.REFERENCE:
        yield ("model", "name"), model.name
        if model.weights is not None:
            yield ("model", "weights"), model.weights
