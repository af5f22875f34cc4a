"""`python -m bench.fake_server`: prints {"port": …, "pid": …} on one line when it listens on 127.0.0.1.

What it saw is at /fake/seen, with `?keys=1` by request, and which lapses it planted.
"""

from __future__ import annotations

import argparse
import inspect
import sys

import orjson

from bench.fake_server.behaviour import FAULTS, LAPSES, Behaviour, read_behaviour
from bench.fake_server.process import run
from engine.errors import PldError


def main() -> None:
    """Serve with the behaviour given as JSON. Exit code 2, with one line, for one that cannot be used."""
    names = f"Faults: {', '.join(FAULTS)}.\nLapses: {', '.join(LAPSES)}."
    parser = argparse.ArgumentParser(
        prog="python -m bench.fake_server",
        description=__doc__,
        epilog=f"{inspect.getdoc(Behaviour)}\n\n{names}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1; 0: any free one")
    parser.add_argument("--behaviour", default="{}", help="JSON object with fields of a Behaviour")
    arguments = parser.parse_args()
    try:
        behaviour = read_behaviour(orjson.loads(arguments.behaviour))
    except ValueError as exc:
        parser.error(f"--behaviour: {exc}")
    try:
        run(behaviour, arguments.port)
    except (PldError, OSError) as exc:
        sys.stderr.write(f"{exc}\n")
        sys.exit(1)


if __name__ == "__main__":
    main()
