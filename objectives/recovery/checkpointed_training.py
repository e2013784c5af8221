"""Training a recovery as far as it is wanted, with checkpoints that outlive the process."""

import logging
import time
from collections.abc import Callable, Mapping
from typing import Protocol

from torch import Tensor

from bitfront.errors import Interrupted, InvalidModel
from bitfront.failpoints import witness
from bitfront.files import SharedPath, is_there, remove
from objectives.recovery.checkpoint import read_checkpoint, write_checkpoint

logger = logging.getLogger(__name__)

_FORM = "bitfront.recovery.1"


class Resumable(Protocol):
    """A training whose saved state goes on to the same bits."""

    @property
    def steps(self) -> int:
        """Steps taken so far."""

    def step(self) -> float:
        """Take one step; the loss before it."""

    def state_dict(self) -> dict[str, Tensor]:
        """All that the further steps depend on, on the CPU."""

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Put the training into a state that `state_dict` gave."""


class RecoveryCheckpoint:
    """Where a recovery in training is saved as it goes: one file of safetensors and JSON.

    Args:
        path: The file.
        identity: The hash of all that the training depends on.
        every_s: Seconds between two checkpoints.
        is_ending: Asked after each step: must the training be saved at once, and end?
    """

    def __init__(
        self,
        path: SharedPath,
        identity: str,
        every_s: float,
        is_ending: Callable[[], bool] = lambda: False,
    ) -> None:
        self._path = path
        self._identity = identity
        self._every_s = every_s
        self._is_ending = is_ending
        self._saved_s = time.monotonic()

    @property
    def exists(self) -> bool:
        """Whether there is something to resume from, as far as can be told."""
        try:
            return is_there(self._path)
        except OSError as error:
            logger.warning("the checkpoint %s cannot be looked for: %s", self._path, error)
            return False

    def resume(self, training: Resumable) -> None:
        """Puts a new training where the checkpoint stands; an unusable checkpoint is removed."""
        if not self.exists:
            return
        try:
            _, tensors = read_checkpoint(self._path, _FORM, self._identity)
            training.load_state_dict(tensors)
            witness("training resumed", checkpoint=self._path.name, step=training.steps)
        except InvalidModel as error:
            logger.warning("the recovery is trained from its start: %s", error)
            self.remove()

    def save_if_due(self, training: Resumable) -> None:
        """Saves the training if the interval has passed, or if it is told to end.

        Raises:
            Interrupted: It is told to end.
        """
        witness("training stepped", checkpoint=self._path.name, step=training.steps)
        if self._is_ending():
            self.save(training)
            raise Interrupted
        if time.monotonic() - self._saved_s >= self._every_s:
            self.save(training)

    def save(self, training: Resumable) -> None:
        """Saves the training as it is now, as far as that can be done."""
        content = {"step": training.steps}
        try:
            write_checkpoint(self._path, _FORM, self._identity, content, training.state_dict())
        except OSError as error:
            # Without a checkpoint an interrupted recovery takes longer; it is no worse.
            logger.warning("the checkpoint %s cannot be written: %s", self._path, error)
        self._saved_s = time.monotonic()
        witness("training saved", checkpoint=self._path.name, step=training.steps)

    def remove(self) -> None:
        """Forgets a training that is over."""
        remove(self._path)


def advance(
    training: Resumable,
    until: int,
    checkpoint: RecoveryCheckpoint | None = None,
    on_step: Callable[[float], None] = lambda _loss: None,
) -> None:
    """Takes steps until so many have been taken; the plan is on the model.

    Args:
        training: What is trained.
        until: Its number of steps in the end.
        checkpoint: Where it is saved as it goes.
        on_step: Called with the loss in nats after each step.

    Raises:
        Interrupted: The checkpoint was told that the training has to end.
    """
    while training.steps < until:
        loss = training.step()
        if checkpoint is not None:
            checkpoint.save_if_due(training)
        on_step(loss)
