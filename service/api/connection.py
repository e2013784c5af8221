"""The one connection that a database, its studies and what they found share."""

from bitfront.passwords import masked
from storage.store import Store, open_store


class Connection:
    """A way to the store, opened when it is first needed.

    Attributes:
        url: `sqlite:///PATH` or `postgresql://USER@HOST/NAME`.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._store: Store | None = None

    def __str__(self) -> str:
        """The URL without its password."""
        return masked(self.url)

    def store(self, *, create: bool = False) -> Store:
        """The store.

        Args:
            create: Makes a missing database, and upgrades an older one.

        Raises:
            DatabaseError: As `open_store` does.
        """
        if self._store is None:
            self._store = open_store(self.url, create=create)
        return self._store

    def close(self) -> None:
        """Closes the store; it is opened again when it is needed."""
        if self._store is not None:
            self._store.close()
            self._store = None
