r"""Contextual sequence model: labels along a sequence, in the context of a cell type's transcription factors.

The model. Filters read both strands of the sequence, the best match of each in a token of ``token_width`` bases is
kept, and tokens exchange what they found by attention with rotary positions. That is done once per sequence. A context
c, the expression of transcription factors, then acts late, on a narrow layer u of each token t:

.. math:: logit_{ct} = start_{ct} + b + \beta(e_c) + w(e_c) \cdot gelu(u_t \odot (1 + g(e_c)) + s(e_c))

with a code e_c of the context; w and beta start at 0, so that the operator starts from the logits of a trusted
statistic that it is given (``start``), or from the base rate. Many contexts cost little more than one.

Chromatin contacts can guide training: pairs of tokens predict their contact, as a product of two vectors and a function
of distance, and the excess of the cross-entropy over the entropy of the map is a term of the loss, which is 0 for a
perfect prediction. The predicted contacts bias the attention of later blocks, by a factor that starts at 0. Measured
contacts can take their place (``use_contact_input``).

Late conditioning after Perez et al. 2018 (FiLM, AAAI); rotary positions: Su et al. 2024, Neurocomputing 568:127063;
transcription factors and contact maps as inputs of a sequence model: EpiGePT, Gao et al. 2024, Genome Biology 25:310.

One story a file: ``config`` (settings), ``stem`` (filters and pooling), ``attention`` (blocks, rotary positions,
windows), ``heads`` (contexts and contacts), ``loss`` (the terms of the loss), ``inputs`` (arrays as the operator reads
them), ``operator`` (the operator itself).
"""

from diffbio_sc.operators.epigenomics.contextual.config import ContextualEpigenomicsConfig
from diffbio_sc.operators.epigenomics.contextual.operator import (
    ContextualEpigenomicsOperator,
    compute_contextual_epigenomics_loss,
)

__all__ = [
    "ContextualEpigenomicsConfig",
    "ContextualEpigenomicsOperator",
    "compute_contextual_epigenomics_loss",
]
