"""Run by a guide's kernel before its first cell: see test_guides.py."""

import socket

_connect = socket.socket.connect


def _local_connect(self, address):
    is_far = self.family in (socket.AF_INET, socket.AF_INET6)
    if is_far and address[0] not in ("127.0.0.1", "::1"):
        raise OSError(f"Guides are tested without a network: {address}")
    return _connect(self, address)


socket.socket.connect = _local_connect
