"""`edgeshrink fleet receive --listen HOST:PORT [FLEET]`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click


@click.command("receive")
@click.argument("folder", metavar="[FLEET]", default=".", type=click.Path(path_type=Path))
@click.option("--listen", default="127.0.0.1:8765", show_default=True, metavar="HOST:PORT",
              help="Where devices' --report-url leads.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document a line.")
def command(folder: Path, listen: str, as_json: bool) -> None:
    """Take devices' reports by POST, and halt releases that fail; until it is interrupted.

    Reports are not signed: let a reverse proxy say who may send them, and do TLS.
    """
    import signal
    import threading
    from types import FrameType

    from edgeshrink.errors import ConfigError
    from edgeshrink.fleet.receiver import Receiver

    host, colon, port = listen.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65535 or not host:
        raise ConfigError("--listen", f"is {listen!r:.80}", "write HOST:PORT, as 0.0.0.0:8765")

    def tell(line: dict[str, Any]) -> None:
        print(json.dumps(line) if as_json else _words(line), flush=True)

    receiver = Receiver(folder, host.strip("[]"), int(port), tell)

    def stop(number: int, frame: FrameType | None) -> None:
        threading.Thread(target=receiver.stop).start()

    signal.signal(signal.SIGTERM, stop)
    bound, number = receiver.address
    where = f"[{bound}]:{number}" if ":" in bound else f"{bound}:{number}"
    tell({"listening": f"http://{where}/"})
    receiver.run()


def _words(line: dict[str, Any]) -> str:
    """Return a line of the log for people."""
    if "listening" in line:
        return f"listening on {line['listening']}"
    if "halted" in line:
        return (
            f"halted {line['halted']} for {line['target']} in {line['channel']}: {line['reason']}"
        )
    if "device" in line:
        models = ", ".join(f"{name} {version}" for name, version in line["models"].items())
        return f"{line['device']} ({line['target']}) {line['outcome']}: {models or 'no model'}"
    if "refused" in line:
        return f"refused a report from {line['from']}: {line['refused']}"
    where = f" ({line['from']})" if "from" in line else ""
    return f"error: {line['error']}{where}"
