"""The job specification: what a person writes in JOB.yaml, valid once built; a file a section."""

from bitfront.spec.data import CLASS_LISTS, DataSource, DataSpec, Samples, SplitPaths
from bitfront.spec.job import STUDY_NAME, JobSpec
from bitfront.spec.model import (
    LOCAL_FOLDER,
    REFERENCE_CLIP,
    REFERENCE_LLAVA,
    ModelSource,
    ModelSpec,
)
from bitfront.spec.profile import (
    CellSelection,
    ClipSearchKind,
    ErrorMeasure,
    Granularity,
    PartitionSpec,
    VisionSpec,
)
from bitfront.spec.quantizer import QuantizerSpec, RangeKind, Rounding, Target
from bitfront.spec.resources import ResourcesSpec
from bitfront.spec.search import (
    MOST_WORKERS,
    AllocatorKind,
    ConstraintSpec,
    Sampler,
    SearchSpec,
    StopSpec,
)
from bitfront.spec.section import AUTO, ErrorShare, Nbytes, Section
from bitfront.spec.space import (
    DistilSpace,
    KeySide,
    KvCacheSpace,
    KvLevels,
    RecoverySpace,
    SpaceSpec,
)
from bitfront.spec.tracking import SQLITE, TrackingSpec, tracking_uri

__all__ = [
    "AUTO",
    "CLASS_LISTS",
    "LOCAL_FOLDER",
    "MOST_WORKERS",
    "REFERENCE_CLIP",
    "REFERENCE_LLAVA",
    "SQLITE",
    "STUDY_NAME",
    "AllocatorKind",
    "CellSelection",
    "ClipSearchKind",
    "ConstraintSpec",
    "DataSource",
    "DataSpec",
    "DistilSpace",
    "ErrorMeasure",
    "ErrorShare",
    "Granularity",
    "JobSpec",
    "KeySide",
    "KvCacheSpace",
    "KvLevels",
    "ModelSource",
    "ModelSpec",
    "Nbytes",
    "PartitionSpec",
    "QuantizerSpec",
    "RangeKind",
    "RecoverySpace",
    "ResourcesSpec",
    "Rounding",
    "Sampler",
    "Samples",
    "SearchSpec",
    "Section",
    "SpaceSpec",
    "SplitPaths",
    "StopSpec",
    "Target",
    "TrackingSpec",
    "VisionSpec",
    "tracking_uri",
]
