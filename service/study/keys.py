"""Names for what is kept in the database: hashes of all that it depends on."""

from collections.abc import Mapping

from bitfront.plan import Configuration, digest
from bitfront.spec import JobSpec
from workers.scheduling.model_info import ModelInfo


def evaluation_key(spec: JobSpec, model_info: ModelInfo, configuration: Configuration) -> str:
    """Names everything that a configuration's values depend on."""
    ids = model_info.identities
    vision = {} if spec.profile.vision is None else {"bounds": ids["cells"]}
    return digest(
        {
            **vision,
            "configuration": configuration.digest,
            "splits": [ids["model"], ids["calibration"], ids["tuning"], ids["selection"]],
            "quantizer": spec.quantizer.model_dump(mode="json"),
            "objectives": [objective.value for objective in spec.objectives],
            "device": model_info.provenance["device"],
            "seed": spec.search.seed,
        }
    )


def bounds_key(spec: JobSpec, identities: Mapping[str, str]) -> str:
    """Names everything that learned bounds depend on."""
    assert spec.profile.vision is not None
    return digest(
        {
            "model": [identities["model"], identities["calibration"]],
            "quantizer": spec.quantizer.model_dump(mode="json"),
            "vision": spec.profile.vision.model_dump(mode="json"),
            "seed": spec.search.seed,
        }
    )
