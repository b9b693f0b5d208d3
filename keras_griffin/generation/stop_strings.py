"""Where a text ends by what is written in it."""


class StopStrings:
    """Holds text back while it could be the beginning of a stop string.

    Args:
        stop: tuple of str.

    Attributes:
        is_stopped: bool. Whether one of them came.
        surplus: int. Characters at the end of what came from its first one
            on.
    """

    def __init__(self, stop):
        self._stop = stop
        self._held = ""
        self.is_stopped = False
        self.surplus = 0

    def push(self, text, is_last=False):
        """The text that is certain, now that `text` came.

        Args:
            text: str.
            is_last: bool. Whether no more will come, so that nothing has to
                be held back. Defaults to `False`.
        """
        if self.is_stopped:
            return ""
        held = self._held + text
        # The one that is complete first, so that it does not matter in which
        # pieces the text comes.
        ends = [(held.find(s) + len(s), held.find(s)) for s in self._stop]
        ends = [(end, start) for end, start in ends if start >= 0]
        if ends:
            _, start = min(ends)
            self.is_stopped, self.surplus = True, len(held) - start
            return held[:start]
        keep = 0 if is_last else self._beginning(held)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep]

    def _beginning(self, text):
        """Characters at the end that a stop string could begin with."""
        longest = max((len(s) for s in self._stop), default=1) - 1
        for size in range(min(longest, len(text)), 0, -1):
            end = text[-size:]
            if any(s.startswith(end) for s in self._stop):
                return size
        return 0
