"""An HTTP server in front of local/azure_host.py, in place of the Functions host."""

from multiprocessing.connection import Client
from pathlib import Path

from local import front


def serve(listener: Path, host: str, port: int) -> front.Server:
    """A server bound to the address, not yet serving, in front of the worker that listens at `listener`."""

    def exchange(method: str, target: str, headers: front.Pairs, body: bytes) -> front.Reply:
        with Client(str(listener)) as worker:
            worker.send((method, f"http://{host}:{port}{target}", front.joined(headers), body))
            reply: front.Reply = worker.recv()
            return reply

    return front.Server(exchange, host, port)
