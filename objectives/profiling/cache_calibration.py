"""What calibration samples say of a KV cache: the ends of keys' channels, and fitted levels."""

from collections.abc import Callable, Iterable
from functools import partial

import torch

from bitfront.errors import SpecError
from bitfront.kv_cache import Kept, KvFormat, projection
from bitfront.layers import Tower
from bitfront.vlm import GenerativeModel, PlanSwitch
from bitfront.vlm.kv_rounding import FittedPlace, fit_place, show_cache
from objectives.data.split_name import SplitName
from objectives.data.task import Task
from objectives.profiling.full_precision import DRAWS, FullPrecisionReference


class CacheCalibration:
    """Formats fitted to the places of a KV cache in the full model, when first asked for.

    The first question about an attention takes any plan off the model and runs the calibration
    split through it, and answers for all formats of the job at once; what the samples showed is
    not kept. Levels that are not uniform take gradients of the loss on labels that are drawn from
    the model's own probabilities.

    Args:
        task: The model with its samples.
        switch: Of its model.
        forms: The formats that the job may give keys, and those it may give values.
        seed: Of the drawn labels.
    """

    def __init__(
        self,
        task: Task,
        switch: PlanSwitch,
        forms: Iterable[tuple[Kept, KvFormat]],
        seed: int,
    ) -> None:
        self._task = task
        self._switch = switch
        self._forms = tuple(forms)
        self._seed = seed
        self._reference: FullPrecisionReference | None = None
        self._found: dict[tuple[str, KvFormat], FittedPlace] = {}

    def __call__(self, place: str, form: KvFormat) -> FittedPlace:
        """The place's format as it is put onto the model.

        Raises:
            SpecError: The model has no such place.
        """
        if (place, form) not in self._found:
            self._fit(place, form)
        return self._found[place, form]

    def _fit(self, place: str, form: KvFormat) -> None:
        model = self._task.model
        if not isinstance(model, GenerativeModel) or projection(place) not in {
            layer.name for layer in model.layers
        }:
            raise SpecError(f"the model has no KV cache {place!r}: the plan is of another model")
        attention, _, asked = place.rpartition(":")
        wanted = dict.fromkeys((*self._forms, (Kept(asked), form)))
        for are_rotated in (False, True):
            own = [(kept, one) for kept, one in wanted if one.is_rotated is are_rotated]
            if own:
                self._fit_all(model, attention, own, are_rotated=are_rotated)

    def _fit_all(
        self,
        model: GenerativeModel,
        attention: str,
        forms: list[tuple[Kept, KvFormat]],
        *,
        are_rotated: bool,
    ) -> None:
        """Fits the keys and values of an attention, keys on one side of the rotary embedding."""
        places = {kept: f"{attention}:{kept}" for kept, _ in forms}
        rotated = {places[Kept.KEYS]} if are_rotated else set()
        self._switch.clear()
        names = list(places.values())
        if all(form.is_uniform for _, form in forms):
            shown = show_cache(model.module, self._forward, names, rotated)
        else:
            with torch.inference_mode(mode=False):
                shown = show_cache(model.module, self._backward(), names, rotated, repeats=DRAWS)
        for kept, form in forms:
            self._found[places[kept], form] = fit_place(kept, form, shown[places[kept]])

    def _backward(self) -> Callable[[], None]:
        if self._reference is None:
            self._reference = FullPrecisionReference(
                self._task, self._switch, self._seed, cache_nbytes=0
            )
        return partial(self._reference.backward, Tower.LANGUAGE)

    @torch.no_grad()
    def _forward(self) -> None:
        streams = self._task.streams(SplitName.CALIBRATION)
        stream = next(one for one in streams if Tower.LANGUAGE in one.towers)
        for batch in range(len(stream.sizes)):
            stream.run(batch)
