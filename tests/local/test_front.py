"""The HTTP server in front of the hosts."""

import threading

from local import front


def test_server_can_be_stopped_right_after_its_start() -> None:
    server = front.Server(lambda *_: (200, [], b""), "127.0.0.1", 0)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()

    server.shutdown()

    thread.join(10)
    assert not thread.is_alive()
