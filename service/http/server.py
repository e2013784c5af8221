"""The server's own process: its socket, its signals, and its end."""

import socket
from contextlib import suppress

import uvicorn

from bitfront.errors import SpecError
from service.http.app import make_app
from service.http.service import Service
from service.http.settings import Settings
from storage.store import Store
from workers.observability.logs import messages

_PATIENCE_S = 3
_KEEP_ALIVE_S = 75  # longer than a person looks at a page


class _Server(uvicorn.Server):
    """A server that tells the streams to end before it waits for them."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Ends the streams, then the server."""
        self._service.stopping.set()
        await super().shutdown(sockets)


def run_server(settings: Settings, store: Store, host: str, port: int) -> None:
    """Serves until it is told to end; studies that were started go on.

    Raises:
        SpecError: It cannot listen there.
    """
    listening = _listen(host, port)
    app = make_app(settings, store)
    bound = listening.getsockname()[1]
    shown = f"[{host}]" if ":" in host else host
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_PATIENCE_S,
        timeout_keep_alive=_KEEP_ALIVE_S,
    )
    messages().write(f"bitfront answers at http://{shown}:{bound}/ from {store}; Ctrl-C ends it\n")
    messages().flush()
    with listening, suppress(KeyboardInterrupt):  # the way to end it, once all is closed
        _Server(config, app.state.service).run(sockets=[listening])


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, kind, protocol)
    except OSError as error:
        raise SpecError(f"--host {host}: {error.strerror or error}") from error
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(place)
        listening.listen(128)
    except OSError as error:
        listening.close()
        raise SpecError(
            f"--host {host} --port {port}: nothing can listen there ({error.strerror}): another "
            "program may, and --port names another port"
        ) from error
    return listening
