"""Settings of the multi-omics VAE."""

from __future__ import annotations

import dataclasses

from diffbio_sc.numerics.counts import likelihoods
from diffbio_sc.operators.config import OperatorConfig

FUSIONS = ("poe", "moe", "mean")
WEIGHT_MODES = ("equal", "learnable")
MOST_REGRESSED = 1024  # proteins of a modality that is imputed by regression


@dataclasses.dataclass(frozen=True, kw_only=True)
class MultiOmicsVAEConfig(OperatorConfig):
    """Settings of :class:`DifferentiableMultiOmicsVAE`.

    Parameters
    ----------
    modality_dims
        Number of features of each modality.
    latent_dim
        Number of dimensions of z.
    hidden_dim
        Number of hidden units of the networks.
    modality_weight_mode
        ``"equal"``: the evidence lower bound itself. ``"learnable"``: each likelihood is tempered by a variance that is
        learned together with its log term.
    use_gradnorm
        Whether to balance the modalities so that the norms of their gradients on z are in proportion to how far each
        modality still has to go.
    gradnorm_alpha
        How strongly a modality that lags behind is favoured.
    likelihoods
        One name of :data:`diffbio_sc.numerics.counts.likelihoods.LIKELIHOODS` for each modality. Default: negative
        binomial and multinomial for two modalities (RNA and ATAC), negative binomial for any other number.
    fusion
        How the modalities' opinions on z are combined. ``"poe"``: the product of the experts with the prior. ``"moe"``:
        the mixture of the posteriors from each modality alone, in equal parts. ``"mean"``: the distribution of the
        average of one draw from each of those posteriors.
    n_batches
        Number of batches; each has its own intercepts in encoders and decoders.
    encoder_dim
        Largest number of components of each modality that its encoder reads.
    dropout_rate
        Share of the hidden units that are dropped in training.
    subset_rate
        Share of the training cells whose z is drawn from a random part of their modalities, while all of them are
        reconstructed.
    kl_weight
        Weight of the divergence from the prior; 1 is the evidence lower bound.
    slope_precision
        Precision of the Gaussian prior on the decoders' slopes.
    n_sampled
        Number of features that stand for all of them in the multinomial during training; 0 takes all.
    n_clusters
        Largest number of clusters within which batches are laid onto each other in the embedding.
    n_centres
        Largest number of cells that the regression for imputed proteins takes its kernel to.
    """

    modality_dims: tuple[int, ...] = (2000, 500)
    latent_dim: int = 10
    hidden_dim: int = 64
    modality_weight_mode: str = "equal"
    use_gradnorm: bool = False
    gradnorm_alpha: float = 1.5
    likelihoods: tuple[str, ...] | None = None
    fusion: str = "poe"
    n_batches: int = 1
    encoder_dim: int = 50
    dropout_rate: float = 0.0
    subset_rate: float = 0.0
    kl_weight: float = 1.0
    slope_precision: float = 40.0
    n_sampled: int = 0
    n_clusters: int = 50
    n_centres: int = 1024

    def validate(self) -> None:
        """Raise ValueError, naming the field, if a value is not allowed."""
        dims = self.modality_dims
        good = isinstance(dims, tuple) and len(dims) >= 1
        good = good and all(isinstance(size, int) and not isinstance(size, bool) and size >= 2 for size in dims)
        self.require("modality_dims", good, "a sequence of integers of at least 2, one for each modality")
        self.require_integers("latent_dim", "hidden_dim", "n_batches", "encoder_dim", "n_clusters", "n_centres")
        self.require_integers("n_sampled", minimum=0)
        self.require("modality_weight_mode", self.modality_weight_mode in WEIGHT_MODES, f"one of {WEIGHT_MODES}")
        self.require("fusion", self.fusion in FUSIONS, f"one of {FUSIONS}")
        self.require_booleans("use_gradnorm")
        self.require_positive("gradnorm_alpha", "kl_weight", "slope_precision", zero_allowed=True)
        self.require_fractions("dropout_rate", "subset_rate", one_allowed=False)
        if self.likelihoods is not None:
            several = isinstance(self.likelihoods, tuple) and len(self.likelihoods) == len(dims)
            self.require(
                "likelihoods",
                several and all(name in likelihoods.LIKELIHOODS for name in self.likelihoods),
                f"one of {likelihoods.LIKELIHOODS} for each of the {len(dims)} modalities",
            )

    @property
    def modality_likelihoods(self) -> tuple[str, ...]:
        """Likelihood of each modality, with the defaults filled in."""
        if self.likelihoods is not None:
            return self.likelihoods
        if len(self.modality_dims) == 2:
            return ("negative_binomial", "multinomial")
        return ("negative_binomial",) * len(self.modality_dims)

    @property
    def modality_names(self) -> tuple[str, ...]:
        """Names in the keys of data and results: rna and atac for two modalities, else modality_<i>."""
        if len(self.modality_dims) == 2:
            return ("rna", "atac")
        return tuple(f"modality_{i}" for i in range(len(self.modality_dims)))

    @property
    def regressed(self) -> tuple[int, ...]:
        """Numbers of the modalities that are imputed by regression: those of proteins."""
        if len(self.modality_dims) < 2:
            return ()
        kinds = zip(self.modality_likelihoods, self.modality_dims, strict=True)
        return tuple(m for m, (name, size) in enumerate(kinds) if name == "protein_mixture" and size <= MOST_REGRESSED)

    @property
    def feature_dim(self) -> int:
        """Width of the encoders' input."""
        return max(self.encoder_dim, self.latent_dim)
