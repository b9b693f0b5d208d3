"""States of prompts' beginnings, from which other prompts go on."""

import collections

from keras_griffin.serving.prefix import common

# Keys are compared one by one, which must stay quick for small states, too.
MAX_PREFIXES = 1024


class PrefixCache:
    """Keeps prefixes; the least recently used one goes first.

    They stay on the device that made them: to go on from one costs no copy.

    Args:
        max_bytes: int. Memory for all of them; 0 keeps none.
        folder: `PrefixFolder` to which prefixes are written that were used
            again, and from which they are read. Defaults to `None`.
    """

    def __init__(self, max_bytes, folder=None):
        self._max_bytes = max_bytes
        self._folder = folder
        self._prefixes = collections.OrderedDict()  # ids as bytes: `Prefix`
        self.bytes = 0

    def __len__(self):
        return len(self._prefixes)

    def longest(self, token_ids, longer_than=0):
        """The longest `Prefix` of `token_ids`, or `None`.

        Args:
            token_ids: int32 array.
            longer_than: int. Tokens that are known already.
        """
        found = None
        for prefix in self._prefixes.values():
            if _begins_with(token_ids, prefix.token_ids, longer_than):
                found, longer_than = prefix, len(prefix.token_ids)
        if self._folder is not None:
            found = self._on_disk(token_ids, longer_than) or found
        if found is None:
            return None
        self.keep(found)
        if self._folder is not None:
            self._folder.write(found)
        return found

    def _on_disk(self, token_ids, longer_than):
        longest = None
        for name, ids in self._folder.token_ids.items():
            if _begins_with(token_ids, ids, longer_than):
                longest, longer_than = name, len(ids)
        return None if longest is None else self._folder.load(longest)

    def size_of_longest(self, token_ids):
        """Tokens of the longest prefix in memory; its use does not count."""
        return max(
            (
                len(prefix.token_ids)
                for prefix in self._prefixes.values()
                if _begins_with(token_ids, prefix.token_ids, 0)
            ),
            default=0,
        )

    def longest_common(self, token_ids):
        """Tokens that the beginning of some prefix has in common with them."""
        return max(
            (common(p.token_ids, token_ids) for p in self._prefixes.values()),
            default=0,
        )

    def keep(self, prefix):
        """Keeps a `Prefix`, as the one that was used last."""
        key = prefix.token_ids.tobytes()
        if key in self._prefixes:
            self._prefixes.move_to_end(key)
            return
        if prefix.bytes > self._max_bytes:
            return
        self._prefixes[key] = prefix
        self.bytes += prefix.bytes
        while self.bytes > self._max_bytes or len(self) > MAX_PREFIXES:
            _, oldest = self._prefixes.popitem(last=False)
            self.bytes -= oldest.bytes


def _begins_with(token_ids, ids, longer_than):
    size = len(ids)
    return longer_than < size and common(token_ids, ids) == size
