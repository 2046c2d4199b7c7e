"""The process: its address, its key, and how it ends."""

import asyncio
import ipaddress
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from gendistill.errors import UserError
from gendistill.serve.app import make_app
from gendistill.serve.service import Service

KEY_VARIABLE = "GENDISTILL_API_KEY"
KEPT_ALIVE = 30  # seconds that a connection may be idle
POLL = 0.05  # seconds between two looks at whether all replies have ended


def read_key(path: Path | None) -> str | None:
    """The API key: of a file's first line, or of the environment; None if there is none.

    Raises:
        UserError: the file cannot be read, or the key is empty or holds blanks.
    """
    if path is None:
        # Never an option by itself: other users of the machine see the arguments of a process.
        source, key = KEY_VARIABLE, os.environ.get(KEY_VARIABLE)
    else:
        try:
            source, key = f"--api-key-file {path}", path.read_text(encoding="utf-8").partition("\n")[0].strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--api-key-file {path}: cannot be read ({error})") from None
    if key is not None and (not key or len(key.split()) != 1):
        raise UserError(f"{source}: a key is one word, and not empty")
    return key


def check_host(host: str, key: str | None) -> None:
    """Raises UserError if other machines could ask, and need no key."""
    # A name that is not "localhost" counts as another machine's, whatever it stands for: that may change.
    if key is None and not _is_loopback(host):
        raise UserError(
            f"--host {host}: other machines can reach that address, so clients must know a key. Set {KEY_VARIABLE} or "
            "give --api-key-file, or leave --host out to serve this machine alone"
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def bind(host: str, port: int) -> socket.socket:
    """A socket that has the address, and on which nobody is answered yet: before a model is loaded for minutes.

    Raises:
        UserError: the address is not this machine's, or in use.
    """
    try:
        # The first is what a name stands for on this machine: "localhost" may be IPv6.
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        # A server that was killed leaves connections behind which would keep the port for a minute.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"--host {host} --port {port}: cannot be served on ({reason}). Give another") from None
    return bound


class Server(uvicorn.Server):
    """Answers until a signal comes; then takes nothing new, and ends once all replies have ended.

    Args:
        say: told in a line what happens.
    """

    def __init__(self, service: Service, say: Callable[[str], None]):
        super().__init__(_config(service))
        self.service, self.say = service, say
        self.drained: asyncio.Task | None = None  # kept, as the event loop alone would not keep it

    async def run_until_ended(self, bound: socket.socket) -> bool:
        """Answers on a socket that is bound; returns False if a second signal cut replies off."""
        self.service.engine.start()  # here, as it needs the event loop that its tokens go to
        if threading.current_thread() is threading.main_thread():  # only there can signals be handled
            for each in (signal.SIGINT, signal.SIGTERM):
                asyncio.get_running_loop().add_signal_handler(each, self.end, each.name)
        self.say(f"serving '{self.service.name}' on {url_of(bound)}")
        await self.serve(sockets=[bound])
        # A thread in the middle of a reply is not waited for: as a daemon it ends with the process.
        if not self.force_exit:
            self.service.engine.stop()
        return not self.force_exit

    def end(self, reason: str) -> None:
        """Begins to end; called again, ends at once."""
        going = self.service.engine.open
        if self.drained is not None:
            self.say(f"{reason} again: {going} replies are cut off")
            self.should_exit = self.force_exit = True  # uvicorn then leaves connections and their tasks behind
            return
        self.service.engine.drain()
        self.say(f"{reason}: no new requests; {going} replies are finished first. Once more cuts them off")
        self.drained = asyncio.create_task(self._exit_when_drained())

    async def _exit_when_drained(self) -> None:
        # The port stays open meanwhile, so that clients hear why they are not answered.
        while self.service.engine.open:
            await asyncio.sleep(POLL)
        # What was generated is still being sent; for that uvicorn waits.
        self.should_exit = True

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """uvicorn would close the port at the first signal, and raise it again at the end."""
        yield


def url_of(bound: socket.socket) -> str:
    """What clients give as base_url."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}/v1" if ":" in host else f"http://{host}:{port}/v1"


def _config(service: Service) -> uvicorn.Config:
    return uvicorn.Config(
        make_app(service),
        # By name, or what is installed beside it would decide which parser, loop and protocols there are.
        http="h11",
        ws="none",
        loop="asyncio",
        lifespan="off",
        log_config=None,
        log_level="warning",
        access_log=False,
        proxy_headers=False,  # who asks is not looked at
        server_header=False,
        timeout_keep_alive=KEPT_ALIVE,
    )
