"""What a sample showed at its rungs, on disk: a result outlives a driver that could not take it."""

import hashlib
import json
import logging
from collections.abc import Mapping

from bitfront.files import SharedPath, read_whole, write_whole
from bitfront.plan import canonical_json

logger = logging.getLogger(__name__)


class RungFile:
    """The errors of one sample, by step: written whole or not at all, before they are reported.

    Args:
        path: The file.
        identity: The hash of all that the errors depend on.
    """

    def __init__(self, path: SharedPath, identity: str) -> None:
        self._path = path
        self._identity = identity

    def read(self) -> dict[int, float]:
        """The errors in rising order; none where the file is missing, damaged or another's."""
        try:
            checksum, _, text = read_whole(self._path).partition(b"\n")
            if hashlib.sha256(text).hexdigest().encode() != checksum:
                raise ValueError("its checksum is wrong")
            content = json.loads(text)
            if content["identity"] != self._identity:
                raise ValueError("it belongs to other settings")
            return {int(step): float(error) for step, error in sorted(content["errors"])}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.warning("the results in %s do not count: %s", self._path.name, error)
            return {}

    def write(self, errors: Mapping[int, float]) -> None:
        """Puts the errors on disk, as far as that can be done."""
        pairs = [[step, error] for step, error in sorted(errors.items())]
        text = canonical_json({"identity": self._identity, "errors": pairs}).encode()
        try:
            write_whole(self._path, hashlib.sha256(text).hexdigest().encode() + b"\n" + text)
        except OSError as error:
            logger.warning("the results cannot be written to %s: %s", self._path, error)
