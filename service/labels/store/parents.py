"""Resolves references to parents (ids, names or aliases) and rejects cycles."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from vidlex.service.errors import ParentCycle, ParentNotFound
from vidlex.service.labels.store.names import fold
from vidlex.service.labels.store.redis_keys import is_label_id

MAX_ANCESTORS = 1000  # bounds the duration of a step

ReadParents = Callable[
    [Sequence[str]], Mapping[str, tuple[str, ...]]
]  # label ids to their parents' ids; omits unknown labels


def parent_texts(references: Iterable[str]) -> list[str]:
    return [fold(reference) for reference in references if not is_label_id(reference)]


def parent_ids(references: Iterable[str]) -> list[str]:
    return [reference for reference in references if is_label_id(reference)]


def resolve_parents(
    references: Sequence[str], owners: Mapping[str, str | None], existing: Iterable[str]
) -> tuple[str, ...]:
    """Ids of the parents, without duplicates. Raises ParentNotFound.

    ``owners`` maps normalised names to label ids; ``existing`` are the stored ones of ``parent_ids(references)``.
    """
    present = set(existing)
    found: dict[str, None] = {}
    for index, reference in enumerate(references):
        by_id = reference if reference in present else None
        owner = by_id if is_label_id(reference) else owners.get(fold(reference))
        if owner is None:
            raise ParentNotFound(
                "A parent is not a label of this namespace",
                errors=[{"pointer": f"/parents/{index}", "detail": "no label has this name or id"}],
            )
        found[owner] = None
    return tuple(found)


def check_no_cycle(label_id: str, parents: Sequence[str], read: ReadParents) -> None:
    seen: set[str] = set()
    level = list(parents)
    while level:
        if label_id in level:
            raise ParentCycle("A label cannot be its own ancestor")
        seen.update(level)
        if len(seen) > MAX_ANCESTORS:
            raise ParentCycle(f"A label has at most {MAX_ANCESTORS} ancestors")
        parents_of = read(level)
        level = list(dict.fromkeys(p for ids in parents_of.values() for p in ids if p not in seen))
