"""The section `resources`: what a process may take."""

from bitfront.spec.section import Nbytes, Section


class ResourcesSpec(Section):
    """What a process may take.

    `memory`: of the memory of its device. A LLaVA whose weights would take more than half of it is
    read from its files a transformer block at a time; None loads any model whole.
    """

    memory: Nbytes | None = None
