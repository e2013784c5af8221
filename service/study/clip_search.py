"""The clips of every option that is worth having, searched on the workers and kept."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import median_low

from bitfront.choices import layer_precisions
from bitfront.identity.keys import clips_key
from bitfront.layers import Block, Layer
from bitfront.plan import Option, Plan
from bitfront.precision import Precision
from bitfront.profile import ClipChoice, StageArtefactKind
from bitfront.spec import JobSpec
from service.views.progress import Reporter
from storage.records import Lease
from storage.store import Store
from workers.scheduling.model_info import ModelInfo
from workers.scheduling.profiling_pool import ClipPool

_NO_PLAN = Plan(())


def has_clips(spec: JobSpec) -> bool:
    """Whether the job has clips to search: several, on static ranges of quantized inputs."""
    return (
        len(spec.space.clips) > 1
        and spec.quantizer.activations == "static"
        and min(spec.space.activation_bits) < 16
    )


@dataclass(slots=True)
class Clipping:
    """Searches the clips that the database does not hold yet."""

    spec: JobSpec
    store: Store
    lease: Lease
    pool: ClipPool
    model_info: ModelInfo
    reporter: Reporter

    def choose(
        self, blocks: Sequence[Block], wanted: Mapping[str, Sequence[Option]]
    ) -> dict[str, list[Option]]:
        """The options of every block with their clips, in the order given.

        Their inputs come from a prefix: every block before them at the smallest searched
        activation bits and middle weight bits, with the clips that were found for it.

        Args:
            blocks: All blocks, in order of execution.
            wanted: Options by block name; those without a quantized input stay as they are.
        """
        prefix = self._prefix(blocks)
        work = {
            block: [option for option in wanted[block.name] if _is_clipped(option)]
            for block in blocks
        }
        keys = {
            (block.name, option): self._key(block, option, prefix)
            for block, options in work.items()
            for option in options
        }
        known = self.store.stage_artefacts(list(keys.values()))
        chosen = {place: _read(known[key])[0] for place, key in keys.items() if key in known}
        self.reporter.stage("clips", total=len(keys))
        self.reporter.advance(len(chosen))
        self._search(work, prefix, keys, chosen)
        return {
            block.name: [chosen.get((block.name, option), option) for option in wanted[block.name]]
            for block in blocks
        }

    def _search(
        self,
        work: Mapping[Block, Sequence[Option]],
        prefix: Plan,
        keys: Mapping[tuple[str, Option], str],
        chosen: dict[tuple[str, Option], Option],
    ) -> None:
        last_s = time.perf_counter()

        def keep(block: Block, found: tuple[Option, ClipChoice]) -> None:
            nonlocal last_s
            now_s = time.perf_counter()
            option, choice = found
            self._put(keys[block.name, option], [choice], now_s - last_s)
            last_s = now_s
            chosen[block.name, option] = choice.option
            self.reporter.advance()

        missing = [
            (block, [o for o in options if (block.name, o) not in chosen])
            for block, options in work.items()
        ]
        self.pool.clips([(block, options) for block, options in missing if options], prefix, keep)

    def _prefix(self, blocks: Sequence[Block]) -> Plan:
        """What every block has while those after it are searched."""
        layers = {layer.name: layer for layer in self.model_info.layers}
        # Towers that follow each other are one chain; a text tower is one of its own.
        chains = [
            [(block, _middle(block, layers, self.spec)) for block in members]
            for _, members in groupby(blocks, key=lambda block: block.tower.sees_images)
        ]
        keys = [self._key_of([*chain]) for chain in chains]
        known = self.store.stage_artefacts(keys)
        missing = [n for n, key in enumerate(keys) if key not in known]
        started_s = time.perf_counter()
        self.reporter.stage("clips of the prefix", total=None)
        found = self.pool.walk_clips([chains[n] for n in missing]) if missing else []
        for n, choices in zip(missing, found, strict=True):
            known[keys[n]] = self._put(keys[n], choices, time.perf_counter() - started_s)
        return Plan.from_options(
            (block, option)
            for key, chain in zip(keys, chains, strict=True)
            for (block, _), option in zip(chain, _read(known[key]), strict=True)
        )

    def _put(self, key: str, choices: Sequence[ClipChoice], seconds: float) -> dict[str, object]:
        content: dict[str, object] = {
            "options": [str(choice.option) for choice in choices],
            "errors": [choice.error for choice in choices],
            "evaluations": sum(choice.evaluations for choice in choices),
        }
        self.store.put_stage_artefact(self.lease, key, StageArtefactKind.CLIPS, content, seconds)
        return content

    def _key(self, block: Block, option: Option, prefix: Plan) -> str:
        """The search's identity: only what lies before the block counts of the prefix."""
        names = [layer.name for layer in self.model_info.layers]
        before = set(names[: names.index(block.layers[0])])
        return self._key_of([(block, option)], prefix.part(before))

    def _key_of(self, chain: Sequence[tuple[Block, Option]], prefix: Plan = _NO_PLAN) -> str:
        return clips_key(self.spec, self.model_info.identities, chain, prefix)


def _read(content: Mapping[str, object]) -> list[Option]:
    options = content["options"]
    assert isinstance(options, list)
    return [Option.parse(text) for text in options]


def _is_clipped(option: Option) -> bool:
    return any(precision.quantizes_input for precision in option.precisions)


def _middle(block: Block, layers: Mapping[str, Layer], spec: JobSpec) -> Option:
    """The smallest activation bits and the middle weight bits that each layer may take."""
    return Option(tuple(_middle_of(layers[name], spec) for name in block.layers))


def _middle_of(layer: Layer, spec: JobSpec) -> Precision:
    choices = layer_precisions(layer, spec.space, spec.quantizer)
    narrow = min(precision.activation_bits for precision in choices)
    bits = median_low({p.weight_bits for p in choices if p.activation_bits == narrow})
    return next(p for p in choices if (p.weight_bits, p.activation_bits) == (bits, narrow))
