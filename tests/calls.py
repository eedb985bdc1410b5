"""What a store asks of its backend, counted."""

from __future__ import annotations

from warmstart import StoreError

__all__ = ["Calls"]


class Calls:
    """Counts what a backend is asked."""

    def __init__(self, backend):
        self.backend, self.count, self.sent, self.dead = backend, 0, 0, False

    def __getattr__(self, name):
        found = getattr(self.backend, name)
        if name not in {"get", "scan", "apply", "version", "size", "lock", "flush", "now"}:
            return found

        def call(*args, **kwargs):
            self.count += 1
            self.sent += name == "apply" and any(key[:1] == b"e" for key in args[0].puts)
            if self.dead:
                raise StoreError("the server does not answer")
            return found(*args, **kwargs)

        return call
