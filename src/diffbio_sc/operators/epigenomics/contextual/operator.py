"""Contextual sequence model."""

from __future__ import annotations

from typing import ClassVar

from flax import nnx

from diffbio_sc.operators.contract import Operator, OperatorConfig
from diffbio_sc.operators.epigenomics.contextual.config import ContextualEpigenomicsConfig


class ContextualEpigenomicsOperator(Operator):
    """Sequence, TF context and contacts; see the notes of the finished class.

    Inputs: ``sequence`` (B, L, 4) or (L, 4); ``tf_context`` (B, F), (F,), (B, C, F), or a list of C vectors (F,) or an
    array (1, C, F) that all sequences share; ``chromatin_contacts`` (B, T, T) or (T, T); ``targets`` (B, T), (T,) or
    (B, C, T); ``sequence_mask`` (B, L) or (L,); ``start_logits``, shaped as the logits or (B, C).
    Outputs: ``logits`` (B, T[, K]) or (B, C, T[, K]); ``token_embeddings`` (B, T, d); ``embeddings`` (B, d);
    ``chromatin_guidance_loss``; with guidance or contact head ``contact_logits`` (B, T, T). T = L / token_width.
    ``start``: a module whose call takes (B, L, 4) and gives (B, C) or (B, T, C).
    ``initialize(data)`` sets the bias to the base rate of the targets and standardises contexts.
    """

    config_class: ClassVar[type[OperatorConfig]] = ContextualEpigenomicsConfig
    required_keys: ClassVar[tuple[str, ...]] = ("sequence",)
    optional_keys: ClassVar[tuple[str, ...]] = (
        "tf_context",
        "chromatin_contacts",
        "targets",
        "sequence_mask",
        "start_logits",
    )
    loss_takes_weights: ClassVar[bool] = True

    def __init__(self, config: ContextualEpigenomicsConfig, *, rngs: nnx.Rngs, start: nnx.Module | None = None):
        super().__init__(config, rngs=rngs)
