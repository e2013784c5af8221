"""How long a study still takes, from the pace of its own trials."""

from bitfront.trial import StudyState, TrialState
from service.views.status import is_driven
from storage.records import Status


def remaining_s(status: Status) -> float | None:
    """Seconds until the planned trials are finished, estimated; None where that is not known.

    It is the mean time of a trial that was run, times the trials to do, over those that run side by
    side now.
    """
    study = status.study
    if study.state is not StudyState.RUNNING or not is_driven(study):
        return None
    run = status.counts[TrialState.COMPLETE] + status.counts[TrialState.PRUNED]
    at_once = status.counts[TrialState.RUNNING]
    if not run or not at_once or not status.seconds:
        return None
    left = study.planned_trials - status.finished
    return max(0, left) * status.seconds / run / at_once
