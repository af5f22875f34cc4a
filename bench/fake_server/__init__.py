"""A fake LLM server: OpenAI's and Gemini's HTTP on loopback, with limits, latency and faults on demand.

    with FakeServer(requests_per_minute=600, faults={"error_500": 0.05}) as server:
        ...  # a client against server.url + "/v1"
        print(server.seen())

With `answers="local"` the keyword-rule models answer, and `lapses={"copied": 0.1}` makes some of their
answers bad in the ways of real models; `seen(keys=True)["planted"]` says which.

`serving` is the same inside a running event loop, `ceiling` measures the server itself.
"""

from bench.fake_server.behaviour import FAULTS, LAPSES, Behaviour, FaultName, LapseName, read_behaviour
from bench.fake_server.ceiling import Ceiling, ceiling
from bench.fake_server.faults import body_key
from bench.fake_server.lapses import Planted
from bench.fake_server.process import FakeServer
from bench.fake_server.server import Server, serving

__all__ = [
    "FAULTS",
    "LAPSES",
    "Behaviour",
    "Ceiling",
    "FakeServer",
    "FaultName",
    "LapseName",
    "Planted",
    "Server",
    "body_key",
    "ceiling",
    "read_behaviour",
    "serving",
]
