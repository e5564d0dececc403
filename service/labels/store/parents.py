"""From what a user names as parents to ids, and what may be a parent: labels of the namespace, without a cycle."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from vidlex.service.errors import ParentCycle, ParentNotFound
from vidlex.service.labels.store.names import fold
from vidlex.service.labels.store.redis_keys import is_label_id

MAX_ANCESTORS = 1000
"""Labels looked at on the way up from a new parent. Bounds how long a step may take."""

ReadParents = Callable[[Sequence[str]], Mapping[str, tuple[str, ...]]]
"""Label ids to the ids of their parents, for those that exist: one round trip."""


def parent_texts(references: Iterable[str]) -> list[str]:
    """The normalised names among the references: what must be looked up in the names of the namespace."""
    return [fold(reference) for reference in references if not is_label_id(reference)]


def parent_ids(references: Iterable[str]) -> list[str]:
    return [reference for reference in references if is_label_id(reference)]


def resolve(references: Sequence[str], owners: Mapping[str, str | None], existing: Iterable[str]) -> tuple[str, ...]:
    """Ids of the parents, without repeats.

    ``owners``: normalised names to label ids; ``existing``: those of ``parent_ids`` that are there.
    Raises ParentNotFound.
    """
    present = set(existing)
    found: dict[str, None] = {}
    for place, reference in enumerate(references):
        by_id = reference if reference in present else None
        owner = by_id if is_label_id(reference) else owners.get(fold(reference))
        if owner is None:
            raise ParentNotFound(
                "A parent is no label of this namespace",
                errors=[{"pointer": f"/parents/{place}", "detail": "there is no label of this name or id"}],
            )
        found[owner] = None
    return tuple(found)


def check_no_cycle(label_id: str, parents: Sequence[str], read: ReadParents) -> None:
    """Raises ParentCycle if ``label_id`` is among ``parents`` or their ancestors, or they are too many to tell."""
    seen: set[str] = set()
    level = list(parents)
    while level:
        if label_id in level:
            raise ParentCycle("A label cannot be its own parent, directly or over others")
        seen.update(level)
        if len(seen) > MAX_ANCESTORS:
            raise ParentCycle(f"A label has at most {MAX_ANCESTORS} labels above it")
        above = read(level)
        level = list(dict.fromkeys(p for ids in above.values() for p in ids if p not in seen))
