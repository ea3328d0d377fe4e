"""The verb's process: it starts the service, says where it is, and waits for signals."""

from __future__ import annotations

import ipaddress
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

from pathryoshka import config
from pathryoshka.serve.service import Service, running
from pathryoshka.serve.token import DEFAULT, digest, token_in

POLL_S = 0.3


class ServeError(ValueError):
    """A service that cannot be; says what to do."""


def serve_until_stopped(
    *,
    model: str,
    index: str | None,
    slides: str | None,
    host: str,
    port: int,
    replicas: int,
    device: str,
    token_file: Path | None,
    no_token: bool,
    storage: config.Storage,
    say: Callable[[str], None],
) -> None:
    """Serves until Ctrl-C or SIGTERM, then answers what was begun. SIGHUP swaps in what MODEL and INDEX are by then."""
    if no_token and not loopback(host):
        raise ServeError(f"without a token the service would answer anyone who reaches {host}; leave out --no-token")
    free_port(host, port)
    file = (token_file or DEFAULT).expanduser()
    token = None if no_token else token_in(file)
    service = Service(
        model=absolute(model), index=index and absolute(index), slides=slides and absolute(slides), host=host,
        port=port, replicas=replicas, device=device, token_digest=token and digest(token), storage=storage,
    )  # fmt: skip
    asked: list[int] = []  # not an Event: setting one in a handler can wait for itself
    before = {signal.SIGTERM: signal.getsignal(signal.SIGTERM)}
    before[signal.SIGHUP] = signal.signal(signal.SIGHUP, lambda number, _: asked.append(number))
    try:
        with running(service, say) as up:
            signal.signal(signal.SIGTERM, signal.default_int_handler)  # Ray has put its own there, which aborts
            say(f"the student: {up.engine} on {device}{hint(up.engine, model, device)}")
            say(f"the page: {service.url}/" + (f"#token={token}" if token else ""))
            say(f"the routes: {service.url}/docs" + (f"; the token is in {file}" if token else "; no token is asked"))
            try:
                while True:
                    time.sleep(POLL_S)
                    if asked:
                        asked.clear()
                        swap(up.deploy, service, say)
            except KeyboardInterrupt:
                say("stopping: what was begun is being answered")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def hint(engine: str, model: str, device: str) -> str:
    slow = device == "cpu" and engine.startswith("torch")
    return f"; quicker with its graph: pathryoshka formats {model} --only onnx" if slow else ""


def swap(deploy: Callable[[str, str | None], str], service: Service, say: Callable[[str], None]) -> None:
    """Swaps the model; whatever keeps it from coming up, the old one stays."""
    try:
        say(f"swapped: model {deploy(service.model, service.index)[:12]}")
    except Exception as error:
        say(f"not swapped, the model before stays: {error}")


def loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def free_port(host: str, port: int) -> None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ServeError(f"cannot listen on {host}:{port} ({error.strerror}); choose another --port") from None


def absolute(place: str) -> str:
    """Ray's processes have folders of their own."""
    from pathryoshka import storage

    return storage.absolute(place)
