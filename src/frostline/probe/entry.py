"""What is known of one tensor while a pass is traced: which parameters reach it.

Letters used in this file: a set of parameters is an int, the `mask`, in which bit i stands for the parameter i.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from frostline.probe.sites import Site


class Entry:
    """Masks of parameters, and the entries they come from.

    Attributes:
        value: Parameters whose value reaches the tensor.
        gradient: Parameters that its gradient reaches.
        lost: Parameters whose gradient reached an input of the call that made it, but not the output.
        site: Where that was; None if nothing was lost.
        parents: Entries of the inputs.
    """

    __slots__ = ("gradient", "lost", "parents", "site", "value")

    def __init__(
        self, value: int, gradient: int, lost: int = 0, site: Site | None = None, parents: Sequence[Entry] = ()
    ) -> None:
        self.value, self.gradient, self.lost, self.site, self.parents = value, gradient, lost, site, parents

    @classmethod
    def joined(cls, entries: Sequence[Entry]) -> Entry:
        """One entry for all of them: nothing is lost in it."""
        entries = [entry for entry in entries if entry.value]
        if len(entries) < 2:
            return entries[0] if entries else NOTHING
        value = gradient = 0
        for entry in entries:
            value |= entry.value
            gradient |= entry.gradient
        return cls(value, gradient, parents=tuple(entries))

    def cuts(self, mask: int) -> dict[int, list[Site]]:
        """Where the gradients of the parameters `mask` were lost on their way from them to here.

        Returns:
            Number of the parameter -> the sites, in the order in which they ran; none for one that was not lost.
        """
        found: dict[int, set[Site]] = {}
        done: dict[int, int] = {}
        waiting = [(self, mask)]
        while waiting:
            entry, wanted = waiting.pop()
            wanted &= entry.value & ~entry.gradient & ~done.get(id(entry), 0)
            if not wanted:
                continue
            done[id(entry)] = done.get(id(entry), 0) | wanted
            hit = wanted & entry.lost
            if entry.site is not None:
                for bit in bits_of(hit):
                    found.setdefault(bit, set()).add(entry.site)
            waiting += [(parent, wanted & ~hit) for parent in entry.parents]
        return {bit: sorted(sites, key=lambda site: site.order) for bit, sites in found.items()}


NOTHING = Entry(0, 0)


def bits_of(mask: int) -> Iterator[int]:
    """The numbers of the parameters in a mask."""
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low
