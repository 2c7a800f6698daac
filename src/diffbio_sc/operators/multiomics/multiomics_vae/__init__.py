"""Joint embedding of several modalities of the same cells: a variational autoencoder that begins as a factor analysis.

The model. A cell has a latent vector z ~ N(0, I). Each modality m that it has is drawn from a likelihood of its own

    x_m ~ p_m(size_m, b_m[batch] + z A_m + h_m(z))

with a small network h_m. Each modality gives a Gaussian opinion on z (its expert), and the posterior is their product
with the prior N(0, I), or a mixture or mean of the posteriors from each modality alone. Absent modalities are left out
of it exactly.

Training starts from a solution in closed form (:mod:`diffbio_sc.numerics.latent.factors`): the experts are those of a
factor analysis of all modalities, the decoders' slopes one Newton step of the count regression on z, and all networks
begin near zero. ``fit`` raises the evidence lower bound from there and stops when held-out cells say.

Product of experts: Wu and Goodman 2018, NeurIPS. Mixture of experts: Shi et al. 2019, NeurIPS. Weights of the
modalities: Kendall et al. 2018, CVPR (learnable), Chen et al. 2018, ICML (GradNorm). Likelihoods as MULTIVI (Ashuach et
al. 2023, Nature Methods 20:1222) and totalVI (Gayoso et al. 2021, Nature Methods 18:272).

One story a file: ``config`` (settings), ``features`` (counts as the encoders read them), ``networks`` (encoders and
decoders), ``start`` (the solution in closed form), ``posterior`` (experts and their fusion), ``bound`` (the loss),
``sizes`` (total counts of modalities that a cell lacks), ``embedding`` (axes stretched, batches laid onto each other),
``regression`` (proteins from the other modalities), ``blocks`` (runs over blocks of cells), ``fitting`` (how
matrices are trained on), ``operator`` (the operator itself).
"""

from diffbio_sc.operators.multiomics.multiomics_vae.blocks import Encoding
from diffbio_sc.operators.multiomics.multiomics_vae.config import MultiOmicsVAEConfig
from diffbio_sc.operators.multiomics.multiomics_vae.operator import DifferentiableMultiOmicsVAE
from diffbio_sc.operators.multiomics.multiomics_vae.posterior import product_of_experts

__all__ = ["DifferentiableMultiOmicsVAE", "Encoding", "MultiOmicsVAEConfig", "product_of_experts"]
