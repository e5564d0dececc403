"""The work of a POST /labels: registers labels, or builds the answer of an earlier attempt with the same key again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from vidlex.service.errors import NotFound, VidlexError
from vidlex.service.labels.store.answers import Answer, CreatedLabel, ExistingLabel, Refusal
from vidlex.service.labels.store.idempotency import IdempotentRequest
from vidlex.service.labels.store.label_store import LabelStore
from vidlex.service.labels.store.records import NewLabel
from vidlex.service.registration.labeler import Labeler, RegisteredLabel
from vidlex.service.sharing.requester import Requester

Outcome = RegisteredLabel | Refusal


@dataclass(frozen=True, kw_only=True)
class Registration:
    """Of one label, whose error is raised, or of a batch, with one outcome per item.

    ``describe`` makes the problem document of an error.
    """

    labeler: Labeler
    store: LabelStore
    items: Sequence[NewLabel | VidlexError]
    is_batch: bool
    return_existing: bool
    max_labels: int | None
    describe: Callable[[VidlexError], dict[str, Any]]

    def run(self, requester: Requester) -> list[Outcome]:
        return self._register(requester, None)

    def run_once(self, requester: Requester, key: str, body: Any) -> tuple[list[Outcome], bool]:
        """The outcomes, and whether an earlier request with this key had them already."""
        requests = self.store.idempotency
        with requests.hold(key, body) as request:
            if request.answer is not None:
                return self._rebuild(request.answer), True
            outcomes = self._register(requester, request)
            if not any(isinstance(outcome, Refusal) and outcome.problem["status"] >= 500 for outcome in outcomes):
                requests.save_answer(request, [_reference(outcome) for outcome in outcomes])
            return outcomes, False

    def _register(self, requester: Requester, request: IdempotentRequest | None) -> list[Outcome]:
        registered = iter(
            self.labeler.register(
                [item for item in self.items if isinstance(item, NewLabel)],
                return_existing=self.return_existing,
                idempotent_request=request,
                max_labels=self.max_labels,
                requester=requester,
            )
        )
        results = [next(registered) if isinstance(item, NewLabel) else item for item in self.items]
        if not self.is_batch and isinstance(results[0], VidlexError):
            raise results[0]
        return [self._refusal(result) if isinstance(result, VidlexError) else result for result in results]

    def _rebuild(self, answer: Answer) -> list[Outcome]:
        ids = [item.id for item in answer if isinstance(item, ExistingLabel)]
        existing = {label.id: label for label in self.store.get_many(ids)}
        outcomes: list[Outcome] = []
        for item, reference in zip(self.items, answer, strict=True):
            if isinstance(reference, CreatedLabel) and isinstance(item, NewLabel):
                outcomes.append(RegisteredLabel(reference.label(item), created=True))
            elif isinstance(reference, ExistingLabel) and reference.id in existing:
                outcomes.append(RegisteredLabel(existing[reference.id], created=False))
            elif isinstance(reference, Refusal):
                outcomes.append(reference)
            else:
                gone = NotFound(
                    "The label that this request found has been removed since", headers={"Idempotency-Replayed": "true"}
                )
                if not self.is_batch:
                    raise gone
                outcomes.append(self._refusal(gone))
        return outcomes

    def _refusal(self, error: VidlexError) -> Refusal:
        return Refusal(self.describe(error))


def _reference(outcome: Outcome) -> CreatedLabel | ExistingLabel | Refusal:
    if isinstance(outcome, Refusal):
        return outcome
    return CreatedLabel.of(outcome.label) if outcome.created else ExistingLabel(outcome.label.id)
