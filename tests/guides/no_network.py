"""Run by a guide's kernel before its first cell: see test_guides.py."""

import socket

_connect = socket.socket.connect


def _local_connect(self, address):
    if self.family in (socket.AF_INET, socket.AF_INET6):
        raise OSError(f"Guides are tested without a network: {address}")
    return _connect(self, address)


socket.socket.connect = _local_connect
