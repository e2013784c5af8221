"""The table of targets: what each runtime has a kernel for, and whether it is installed here."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Final

from bitfront.layers import LayerKind, Tower
from bitfront.targets import TARGETS, NativeFormat, Scheme, Target
from bitfront.tasks import meant_tasks
from bitfront.trial import Trial
from service.views.tables import pairs_text, table

if TYPE_CHECKING:
    from storage.store import Store

_SCHEMES: Final[tuple[Scheme, ...]] = ("symmetric", "asymmetric")
_HEADER: Final = ("kernel", "layers", "weight bits", "groups", "input bits", "in memory")


def targets_text(targets: tuple[Target, ...]) -> str:
    """Each target: how to build for it, what is installed here, its kernels, and the rest."""
    return "\n\n".join(_target_text(target) for target in targets)


def _target_text(target: Target) -> str:
    pairs = [
        ("build", f"bitfront build STUDY --to {target.artefact} --out FOLDER"),
        ("here", ", ".join(installed_text(name, target.extra) for name in target.packages)),
        ("models", target.models),
    ]
    rows = [_row(form) for form in target.formats]
    lines = table(_HEADER, rows, left=range(len(_HEADER)))
    return f"{target.name}\n{pairs_text(pairs)}\n{lines}\nthe rest: {target.rest}"


def installed_version(package: str) -> str | None:
    """The version of a package that is installed here; None where it is not."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def installed_text(package: str, extra: str) -> str:
    """The version of a package, or how to install it."""
    found = installed_version(package)
    if found is not None:
        return f"{package} {found}"
    wanted = f"'bitfront[{extra}]'" if extra else package
    return f"{package} is not installed: pip install {wanted}"


def target_dict(target: Target) -> dict[str, object]:
    """A target as plain JSON content."""
    return {
        "target": target.name.value,
        "to": target.artefact,
        "installed": {name: installed_version(name) for name in target.packages},
        "models": target.models,
        "kernels": [_format_dict(form) for form in target.formats],
        "rest": target.rest,
    }


def _format_dict(form: NativeFormat) -> dict[str, object]:
    return {
        "kernel": form.kernel,
        "layers": sorted(kind.value for kind in form.kinds),
        "weight_bits": list(form.weight_bits),
        "activation_bits": list(form.activation_bits),
        "ranges": form.ranges,
        "group_multiple": form.group_multiple,
        "held_bits": {scheme: _held(form, scheme) for scheme in _SCHEMES},
    }


def _held(form: NativeFormat, scheme: Scheme) -> dict[int, int]:
    return {bits: form.held(bits, scheme) for bits in form.weight_bits}


def _row(form: NativeFormat) -> list[str]:
    return [
        form.kernel,
        "all" if form.kinds == frozenset(LayerKind) else ", ".join(sorted(form.kinds)),
        _numbers(form.weight_bits),
        _groups_text(form),
        _inputs_text(form),
        _held_text({scheme: _held(form, scheme) for scheme in _SCHEMES}),
    ]


def _numbers(values: tuple[int, ...]) -> str:
    return " ".join(map(str, values))


def _groups_text(form: NativeFormat) -> str:
    if form.group_multiple == 0:
        return "a row"
    return "any" if form.group_multiple == 1 else f"a row, multiples of {form.group_multiple}"


def _inputs_text(form: NativeFormat) -> str:
    return " ".join([*map(str, form.activation_bits), *filter(None, [form.ranges])])


def _held_text(held: Mapping[Scheme, Mapping[int, int]]) -> str:
    """How wide codes lie in memory; both schemes apart where they differ."""
    texts = {scheme: _widths_text(widths) for scheme, widths in held.items()}
    if len(set(texts.values())) == 1:
        return texts["symmetric"]
    return "; ".join(f"{scheme} {text}" for scheme, text in texts.items())


def _widths_text(widths: Mapping[int, int]) -> str:
    if all(bits == held for bits, held in widths.items()):
        return "as in the file"
    if len(set(widths.values())) == 1:
        return f"{next(iter(widths.values()))} bits"
    return f"{_numbers(tuple(widths.values()))} bits"


@dataclass(frozen=True, slots=True)
class Deployable:
    """A target that takes a configuration's model.

    Attributes:
        target: Its name.
        artefact: What `bitfront build --to` calls it.
        without_kernel: Layers of the plan that it has no kernel for.
        layers: Layers of the plan.
    """

    target: str
    artefact: str
    without_kernel: int
    layers: int


def deployable(store: "Store", trial: Trial) -> list[Deployable]:
    """The targets that take a trial's configuration; layers of an unknown kind count as linear."""
    spec = json.loads(store.study(trial.study).spec_json)  # parsing it would load pydantic
    profile = store.load_profile(trial.study)
    layers = () if profile is None else profile.layers
    kinds = {layer.name: layer.kind for layer in layers}
    answers = any(layer.tower is Tower.LANGUAGE for layer in layers)
    plan = [
        (kinds.get(name, LayerKind.LINEAR), precision)
        for name, precision in trial.configuration.plan
    ]
    data = spec["data"]
    tasks = meant_tasks(data["source"], data.get("task"), asks=answers)
    if not all(task.is_built for task in tasks) or trial.configuration.plan.cache:
        return []
    found = []
    recovery = trial.configuration.recovery is not None
    for target in TARGETS:
        scheme, ranges, group = (
            spec["quantizer"][name] for name in ("scheme", "activations", "activation_group")
        )
        held = target.holds((known for _, known in plan), scheme, ranges, recovery=recovery)
        if held and target.takes(answers=answers):
            natives = [target.native(kind, known, ranges, group) for kind, known in plan]
            missing = natives.count(None)
            found.append(Deployable(target.name, target.artefact, missing, len(plan)))
    return found


def deployable_text(found: Sequence[Deployable]) -> str:
    """The targets that take a configuration, with what they have no kernel for."""
    if not found:
        return "none takes this model at its task yet: see 'bitfront targets'"
    texts = []
    for one in found:
        count = f"; no kernel for {one.without_kernel} of {one.layers} layers"
        texts.append(f"{one.target} (--to {one.artefact}{count if one.without_kernel else ''})")
    return ", ".join(texts)
