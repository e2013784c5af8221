"""A bounded store of tensors: what was used least recently goes first."""

from collections.abc import Callable, Hashable, Sequence

from cachetools import LRUCache
from torch import Tensor


class _Groups(LRUCache[Hashable, tuple[Tensor, ...]]):
    """Groups by key, sized in bytes; tells of each one that must go for another."""

    def __init__(
        self, limit_nbytes: int, on_drop: Callable[[Hashable, Sequence[Tensor]], None]
    ) -> None:
        super().__init__(limit_nbytes, getsizeof=_nbytes)
        self._on_drop = on_drop

    def popitem(self) -> tuple[Hashable, tuple[Tensor, ...]]:
        """Takes out what was used least recently."""
        key, group = super().popitem()
        self._on_drop(key, group)
        return key, group


class TensorCache:
    """Groups of tensors under keys, of at most `limit_nbytes` together.

    Attributes:
        limit_nbytes: Upper limit of `nbytes`.
        hits: How often `get` found something.
        misses: How often it did not.
    """

    def __init__(
        self,
        limit_nbytes: int,
        on_drop: Callable[[Hashable, Sequence[Tensor]], None] = lambda _key, _tensors: None,
    ) -> None:
        """Takes the limit, and what is told of each group that must go for another."""
        self.limit_nbytes = limit_nbytes
        self.hits = 0
        self.misses = 0
        self._groups = _Groups(limit_nbytes, on_drop)
        self._seen: set[int] = set()

    @property
    def nbytes(self) -> int:
        """What the kept tensors take."""
        return int(self._groups.currsize)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._groups

    def get(self, key: Hashable) -> tuple[Tensor, ...] | None:
        """The tensors under a key, which become the most recently used."""
        group = self._groups.get(key)
        if group is None:
            self.misses += 1
            return None
        self.hits += 1
        return group

    def request(self, key: Hashable, nbytes: int, pending: int = 0) -> bool:
        """Asks whether to keep a group, `pending` bytes of others being on their way.

        While there is room the answer is yes. Once others must go for it, only for what was asked
        for before: most groups are never wanted again, and would push out those that are.
        """
        if key in self._groups or pending + nbytes > self.limit_nbytes:
            return False
        returns = hash(key) in self._seen
        self._seen.add(hash(key))
        return returns or self.nbytes + pending + nbytes <= self.limit_nbytes

    def put(self, key: Hashable, tensors: Sequence[Tensor]) -> bool:
        """Keeps the tensors under a key, and drops what is used least for it.

        They must not be changed afterwards. A group above the limit is not kept: False.
        """
        if _nbytes(tensors) > self.limit_nbytes:
            return False
        self._groups.pop(key, None)
        self._groups[key] = tuple(tensors)
        return True


def _nbytes(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
