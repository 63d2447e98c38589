"""``ssa-fast explore``: SSA in the browser."""

from __future__ import annotations

import os
import secrets
import sys
import threading
import webbrowser
from pathlib import Path  # noqa: TC003 - typer evaluates the annotations
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ssa_fast.cli import console
from ssa_fast.cli.options import EXECUTION, MODEL, Debug, Device, Weights, option, parse_device

if TYPE_CHECKING:
    import socket

    from ssa_fast.explore.server import Explorer

SERVER = "Server"
GRACE = 2  # seconds that answers under way have after Ctrl-C


def command(
    images: Annotated[list[Path] | None, typer.Argument(metavar="[IMAGE]...", help="Images to look at.")] = None,
    *,
    model: Annotated[
        str | None,
        option(MODEL, "The network to begin with.  [default: efficientnet_lite0, or demo]", "--model", "-m"),
    ] = None,
    weights: Weights = "DEFAULT",
    download: Annotated[
        bool, option(MODEL, "Let torchvision download weights that are not on this machine.", "--download")
    ] = False,
    host: Annotated[
        str, option(SERVER, "Address to listen on; others than this machine may reach it then.")
    ] = "127.0.0.1",
    port: Annotated[int, option(SERVER, "Port to listen on; 0: a free one.", min=0, max=65535)] = 0,
    browser: Annotated[
        bool | None,
        option(SERVER, "Open the address in a browser; default: where there is a screen.", "--browser/--no-browser"),
    ] = None,
    memory: Annotated[str, option(EXECUTION, "Memory for features and images that are kept.")] = "1GB",
    device: Device = "auto",
    debug: Debug = False,
) -> None:
    """Look at CAMs in the browser: choose image, network and class; click a pixel to see which pixels resemble it.

    Prints an address, which holds a secret: who knows it can use the server. Stop it by Ctrl-C.
    Needs no network connection, and sends nothing to one. Comes with the extra explore.
    """
    with console.usage_errors(debug=debug):
        server = _import_server()
        from ssa_fast.explore.security import is_local
        from ssa_fast.explore.session import Session
        from ssa_fast.io.sizes import parse_bytes
        from ssa_fast.runs.signals import signals_as_interrupts

        token = secrets.token_urlsafe(16)
        limit = parse_bytes(memory)
        with signals_as_interrupts(), server.listen(host, port) as bound:
            session = Session(
                images or [],
                model=model,
                weights=weights,
                device=parse_device(device),
                download=download,
                memory=limit,
            )
            explorer = server.Explorer(session, token=token, host=host)
            address = f"http://{_named(host)}:{bound.getsockname()[1]}/{token}/"
            if not is_local(host):
                console.err().print(
                    f"warning: --host {host} lets other machines reach this server, without encryption; who learns the "
                    "address can use it",
                    soft_wrap=True,
                )
            _serve(explorer, bound, address, browser=_has_screen() if browser is None else browser)


def _import_server() -> Any:
    try:
        import uvicorn  # noqa: F401

        from ssa_fast.explore import server
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"the explorer needs {error.name}, which is not installed; pip install 'ssa_fast[explore]'", name=error.name
        ) from None
    return server


def _serve(explorer: Explorer, bound: socket.socket, address: str, *, browser: bool) -> None:
    """Serve until Ctrl-C or SIGTERM; leave no thread and no file behind."""
    import uvicorn

    config = uvicorn.Config(
        explorer.app,
        log_level="warning",
        access_log=False,  # it would print the token
        server_header=False,
        timeout_graceful_shutdown=GRACE,
        lifespan="off",
        ws="none",
    )
    console.out().print(f"exploring at {address} (Ctrl-C stops)", soft_wrap=True)
    sys.stdout.flush()
    if browser:
        threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
    try:
        uvicorn.Server(config).run(sockets=[bound])
    except KeyboardInterrupt:  # raised again by uvicorn, once it has ended
        pass
    finally:
        idle = explorer.close()
    console.err().print("stopped")
    if not idle:  # Python would wait for the thread, whose polishing may take a while
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _named(host: str) -> str:
    """Return the host of an address at which this machine reaches a server bound to ``host``."""
    if host in ("", "0.0.0.0"):
        return "127.0.0.1"
    if host == "::":
        return "[::1]"
    return f"[{host}]" if ":" in host else host


def _has_screen() -> bool:
    """Return whether a browser would open in a window here, and not in the terminal or on a machine far away."""
    if not sys.stdout.isatty() or "SSH_CONNECTION" in os.environ:
        return False
    return sys.platform in ("darwin", "win32") or bool({"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys())
