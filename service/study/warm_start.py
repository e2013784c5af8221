"""Starting from what earlier studies of the same model found: their fronts are tried first."""

from bitfront.errors import SpecError
from bitfront.spec import JobSpec
from bitfront.trial import Origin, Proposal
from search.keep import holds_keep
from search.ties import holds_ties, ties_of
from storage.store import Store
from workers.scheduling.model_info import ModelInfo


def warm_seeds(store: Store, spec: JobSpec, model_info: ModelInfo) -> list[Proposal]:
    """The fronts of the studies that the job starts from, the lowest error first.

    What was measured on the same data comes from the cache of evaluations; all else is
    measured again. A configuration that breaks the job's `keep`, or parts what its target
    fuses, is left out.

    Raises:
        UnknownStudy: There is no such study.
        SpecError: It searched another model.
    """
    seeds = []
    ties = ties_of(spec.target, model_info.layers)
    for name in spec.search.warm_start:
        if store.study(name).provenance.get("model") != model_info.identities.model:
            raise SpecError(
                f"search.warm_start: study {name!r} searched another model, so its plans mean "
                "nothing here: leave it out"
            )
        seeds += [
            Proposal(row.configuration, Origin.WARM_START)
            for row in store.front(name)
            if holds_keep(row.configuration.plan, model_info.layers, spec.space)
            and holds_ties(row.configuration.plan, ties)
        ]
    return seeds
