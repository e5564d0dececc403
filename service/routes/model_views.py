"""Loaded models and their comparison as JSON schemas."""

from __future__ import annotations

from vidlex.service.labels.store.model_pointer import ModelName
from vidlex.service.models.model_diff import ModelDiff
from vidlex.service.models.registry import RegistryState
from vidlex.service.schemas.models import (
    GenerationView,
    LabelShiftView,
    LoadedModelView,
    ModelDiffView,
    ModelsView,
)


def models_view(state: RegistryState, counts: dict[str, tuple[int, dict[str, int]]]) -> ModelsView:
    """``counts``: the result of ``ModelRegistry.count_labels``."""
    generations = [
        GenerationView(namespace=namespace, fingerprint=fingerprint, num_labels=num_labels)
        for namespace, (_, num_vectors) in counts.items()
        for fingerprint, num_labels in num_vectors.items()
    ]
    num_labels = sum(num for num, _ in counts.values())

    def loaded_view(name: ModelName) -> LoadedModelView:
        model = state.loaded.get(name.fingerprint)
        num_encoded = sum(g.num_labels for g in generations if g.fingerprint == name.fingerprint)
        num_refused = 0 if model is None else model.backfill.num_refused
        return LoadedModelView(
            model=name.spec,
            id=name.id,
            fingerprint=name.fingerprint,
            loaded=model is not None,
            num_encoded=num_encoded,
            num_refused=num_refused,
            complete=model is not None and num_encoded + num_refused >= num_labels,
        )

    previous, prepared = state.pointer.previous, state.pointer.prepared
    return ModelsView(
        configured=state.configured,
        served=loaded_view(state.pointer.served),
        previous=None if previous is None else loaded_view(previous),
        prepared=None if prepared is None else loaded_view(prepared),
        loading=state.loading,
        problem=state.problem,
        num_labels=num_labels,
        generations=generations,
    )


def model_diff_view(diff: ModelDiff) -> ModelDiffView:
    return ModelDiffView(
        old=diff.old.fingerprint,
        new=diff.new.fingerprint,
        num_videos=diff.num_videos,
        num_labels=diff.num_labels,
        resized=diff.resized,
        rank_correlation=diff.rank_correlations,
        labels=[
            LabelShiftView(
                id=shift.label.id,
                name=shift.label.name,
                mean_shift=shift.mean_score_shift,
                mean_score_old=shift.mean_score_old,
                mean_score_new=shift.mean_score_new,
                num_gained=shift.num_gained,
                num_lost=shift.num_lost,
                mean_rank_move=shift.mean_rank_shift,
            )
            for shift in diff.shifts
        ],
    )
