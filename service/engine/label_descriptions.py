"""How the classifier reads labels, with errors as the service's own. For the classifier's owner to call."""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from vidlex.model.classifier import Classifier, LabelDescription, LabelTextError
from vidlex.service.errors import EncodeFailed, LabelTextInvalid, VidlexError

log = structlog.get_logger("vidlex.engine")

DescribeResult = LabelDescription | VidlexError
"""How one label is read, or why it is not: LabelTextInvalid or EncodeFailed."""


def described(classifier: Classifier, names: Sequence[str]) -> list[DescribeResult]:
    """One result for each name, in order: one bad name fails alone."""
    results: list[DescribeResult] = []
    for name in names:
        try:
            results += classifier.describe_labels([name])
        except LabelTextError as error:
            results.append(LabelTextInvalid(str(error)[:200]))
        except Exception as error:
            log.exception("describe_label_failed")
            results.append(EncodeFailed("The encoder failed on this label", internal=repr(error)))
    return results
