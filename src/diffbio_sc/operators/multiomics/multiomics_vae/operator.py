"""The multi-omics VAE as an operator: what it takes, returns, and how it is fitted."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from diffbio_sc._compiled import one_thread_at_a_time
from diffbio_sc._random import as_generator
from diffbio_sc.numerics.placing import device_copy
from diffbio_sc.operators.contract import (
    FitReport,
    FittedStatistic,
    Operator,
    OperatorConfig,
    as_float_array,
    check_axis_size,
)
from diffbio_sc.operators.multiomics.multiomics_vae import blocks, fitting, posterior, sizes, streaming
from diffbio_sc.operators.multiomics.multiomics_vae.bound import Draws, negative_bound
from diffbio_sc.operators.multiomics.multiomics_vae.config import MultiOmicsVAEConfig
from diffbio_sc.operators.multiomics.multiomics_vae.embedding import Aligned, of_others
from diffbio_sc.operators.multiomics.multiomics_vae.features import (
    as_dense,
    as_values,
    dense_features,
    dense_log_size,
    log_sizes,
    take_rows,
)
from diffbio_sc.operators.multiomics.multiomics_vae.networks import ModalityDecoder, ModalityEncoder, filled
from diffbio_sc.operators.multiomics.multiomics_vae.regression import Regression
from diffbio_sc.operators.multiomics.multiomics_vae.start import start
from diffbio_sc.training.loop import train

_LOSS_CELLS = 512  # cells from which the losses at the start are averaged
_FACTOR_CELLS = 20_000  # cells that the factor analysis is computed from
_PLACED_CELLS = 1 << 14
_READING_CELLS = 10_000  # cells that alignment and regressions are computed from


class DifferentiableMultiOmicsVAE(Operator):
    """Joint latent space of several modalities, with reconstructions; differentiable from counts to everything.

    Parameters
    ----------
    config
        Settings.
    rngs
        Random streams; ``params`` makes the networks.

    Notes
    -----
    Inputs of ``apply``: ``rna_counts`` and ``atac_counts`` for two modalities, else ``modality_<i>_counts``, each
    (cells, features); optionally ``present`` (cells, modalities), which modalities each cell has, ``batch`` (cells,),
    the code of each cell's batch, and ``noise`` (cells, latent), standard normal draws for the bound (fixed draws
    otherwise).

    Outputs: ``joint_latent`` (cells, latent), the posterior mean, ``joint_log_variance``, ``modality_shares`` (cells,
    modalities), ``rna_reconstructed`` and so on (cells, features), expected values given each cell's own depth, and
    ``elbo_loss``, the negative evidence lower bound per cell.

    Before :meth:`initialize` or :meth:`fit` the networks are random and ``apply`` warns. ``initialize`` alone gives the
    factor analysis.

    Examples
    --------
    >>> import jax, numpy as np
    >>> from flax import nnx
    >>> from diffbio_sc.operators.multiomics import DifferentiableMultiOmicsVAE, MultiOmicsVAEConfig
    >>> rng = np.random.default_rng(0)
    >>> rates = rng.gamma(1.0, 1.0, (3, 50))[rng.integers(0, 3, 100)]
    >>> data = {"rna_counts": rng.poisson(rates[:, :30]), "atac_counts": rng.poisson(rates[:, 30:])}
    >>> config = MultiOmicsVAEConfig(modality_dims=[30, 20], latent_dim=2)
    >>> vae = DifferentiableMultiOmicsVAE(config, rngs=nnx.Rngs(0))
    >>> vae.initialize([data["rna_counts"], data["atac_counts"]])
    >>> result, _, _ = vae.apply(data, {}, None)
    >>> result["joint_latent"].shape, result["atac_reconstructed"].shape
    ((100, 2), (100, 20))
    """

    config_class: ClassVar[type[OperatorConfig]] = MultiOmicsVAEConfig
    is_network: ClassVar[bool] = True
    config: MultiOmicsVAEConfig

    def __init__(self, config: MultiOmicsVAEConfig, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        self.required_keys = tuple(f"{name}_counts" for name in config.modality_names)  # type: ignore[misc]
        self.optional_keys = ("present", "batch", "noise")  # type: ignore[misc]
        modalities = len(config.modality_dims)
        self.encoders = nnx.List([ModalityEncoder(size, config, rngs=rngs) for size in config.modality_dims])
        kinds = zip(config.modality_dims, config.modality_likelihoods, strict=True)
        self.decoders = nnx.List([ModalityDecoder(size, name, config, rngs=rngs) for size, name in kinds])
        if config.modality_weight_mode == "learnable":
            self.log_temperature = nnx.Param(filled(modalities, 0.0))
        if config.use_gradnorm:
            self.log_balance = nnx.Param(filled(modalities, 0.0))
        self.initial_losses = FittedStatistic(filled(modalities, 1.0))
        self.n_cells = FittedStatistic(device_copy(1e3, np.float32))
        self.axis_lengths = FittedStatistic(filled(config.latent_dim, 1.0))
        # Log size of a modality from z and the other modalities' log sizes: see sizes.fit_size_model.
        self.size_model = FittedStatistic(filled((modalities, 1 + config.latent_dim + modalities), 0.0))
        self.size_means = FittedStatistic(filled(modalities, 0.0))
        self.aligned = Aligned(config)
        self.regressions = nnx.List([Regression(m, config) for m in config.regressed])

    # --- on arrays ----------------------------------------------------------------------------------------------------

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Array]:
        """Return latent vectors, reconstructions and the negative evidence lower bound."""
        self.check_keys(data)
        return _apply(*nnx.split(self), self._arrays(data))

    def loss(self, data: Mapping[str, Any]) -> Float[Array, ""]:
        """Return the negative evidence lower bound per cell, with the modalities' weights.

        Drawn with ``data["noise"]``, standard normals (cells, latent); without it the same draws at every call.
        """
        self.check_keys(data)
        return _loss(*nnx.split(self), self._arrays(data))

    def _arrays(self, data: Mapping[str, Any]) -> dict[str, Array]:
        """The operator's own inputs, checked."""
        arrays = {}
        for key, size in zip(self.required_keys, self.config.modality_dims, strict=True):
            arrays[key] = as_float_array(data, key, (2,))
            check_axis_size(key, arrays[key], 1, size, "config.modality_dims")
        cells, modalities = arrays[self.required_keys[0]].shape[0], len(arrays)
        for key in self.required_keys:
            check_axis_size(key, arrays[key], 0, cells, f"the cells of {self.required_keys[0]}")
        expected = {"present": (cells, modalities), "batch": (cells,), "noise": (cells, self.config.latent_dim)}
        for key, shape in expected.items():
            if data.get(key) is not None:
                arrays[key] = jnp.asarray(data[key])
                if arrays[key].shape != shape:
                    raise ValueError(f"data[{key!r}] must have shape {shape}, found {arrays[key].shape}.")
        return arrays

    def _dense_cells(self, data: Mapping[str, Array]) -> tuple[list[Array], dict[str, Array]]:
        """Counts, and what experts and bound need beside them."""
        counts = [data[key] for key in self.required_keys]
        kinds = list(zip(self.encoders, self.config.modality_likelihoods, counts, strict=True))
        cells = len(counts[0])
        return counts, {
            "features": jnp.stack([dense_features(*kind) for kind in kinds], axis=1),
            "log_size": jnp.stack([dense_log_size(*kind[1:]) for kind in kinds], axis=1),
            "present": data["present"] > 0 if "present" in data else jnp.ones((cells, len(counts)), bool),
            "batch": data["batch"].astype(jnp.int32) if "batch" in data else jnp.zeros(cells, jnp.int32),
        }

    def _dense_bound(self, data: Mapping[str, Array], counts: list[Array], cells: dict[str, Array], experts) -> Array:
        draws = Draws.fixed(data.get("noise"), (len(counts[0]), self.config.latent_dim))
        return negative_bound(self, counts, cells, experts, cells["present"], draws)[0]

    # --- fitting ------------------------------------------------------------------------------------------------------

    def fit(self, data: Mapping[str, Any], *arguments: Any, **options: Any) -> FitReport:
        """Initialise from the data and raise the evidence lower bound; options as of :meth:`fit_matrices`."""
        self.check_keys(data)
        matrices = [np.asarray(data[key]) for key in self.required_keys]
        return self.fit_matrices(matrices, *arguments, present=data.get("present"), batch=data.get("batch"), **options)

    @one_thread_at_a_time
    def fit_matrices(
        self,
        matrices: Sequence[Any],
        *,
        present: np.ndarray | None = None,
        batch: np.ndarray | None = None,
        max_epochs: int | None = None,
        batch_size: int | None = None,
        learning_rate: float = fitting.LEARNING_RATE,
        encoder_rate: float | None = None,
        validation_fraction: float = 0.1,
        patience: int | None = None,
        rng: int | np.random.Generator | None = 0,
        initialize: bool = True,
        checkpoint: str | None = None,
        description: str = "Multi-omics VAE",
    ) -> FitReport:
        """Fit to count matrices, sparse or dense, which are never made dense as a whole.

        Parameters
        ----------
        matrices
            Counts of each modality (cells, features); rows of cells that lack the modality are not read. Of
            :class:`~diffbio_sc.blocks.row_store.RowStore`, a few thousand rows are in memory at a time.
        present
            Which modalities each cell has (cells, modalities). Default: all.
        batch
            Code of each cell's batch. Default: one batch.
        max_epochs
            Largest number of epochs; by default as many as make 15,000 steps, but between 20 and 500 (a tenth of the
            steps and at most 200 where no cells are held out). Training ends before where the held-out loss no longer
            falls.
        batch_size
            Number of cells in each step; default 128, 64 below 2000 cells.
        learning_rate
            Learning rate of the decoders, of whose weights an average over the last hundred steps is judged and kept;
            default 0.003. It is lower, in proportion, for a modality with fewer than 1000 reads per
            feature (for its encoder too, where no cell lacks a modality).
        encoder_rate
            Learning rate of the encoders divided by that of the decoders. Default 1 where cells lack modalities, 0.1
            where none does: the product of the linear experts is then close to the exact posterior, and good already.
        validation_fraction
            Share of the cells that are held out, of the start too; 0 holds none out.
        patience
            Number of epochs in which the held-out loss falls by less than a ten-thousandth after which to stop (default
            5, but 20 below 2000 cells, where an epoch is a few steps). An epoch after which it has risen is taken back,
            and the learning rates are halved. The best parameters are kept, those at the start if no epoch is
            better.
        rng
            Seed or generator.
        initialize
            Whether to compute the start from these data; otherwise training goes on from the present parameters.
        checkpoint
            File to keep the state of the run in.
        description
            Name on the progress bar.

        Returns
        -------
        Report with ``loss``, ``kl`` and ``nll_<i>`` of each epoch, and the same with ``validation_`` before.
        """
        started = time.perf_counter()
        generator = as_generator(rng)
        matrices, present, batch = self._check_matrices(matrices, present, batch)
        matrices, on_disk = streaming.read_if_few(matrices)
        cells, held_out = len(present), None
        if validation_fraction:
            share = fitting.held_out_share(validation_fraction, cells, on_disk=on_disk)
            held_out = fitting.hold_out(present, batch, share, generator)
            held_out = held_out if len(held_out) else None  # each batch or modality is one cell
        trained = np.arange(cells) if held_out is None else np.delete(np.arange(cells), held_out)
        if initialize:
            self._start(matrices, present, batch, trained, generator)
        batch_size = min(batch_size or fitting.default_batch_size(cells), cells)
        most = fitting.default_epochs(len(trained), batch_size, judged=held_out is not None)
        data: Any
        loss: Any
        if on_disk:
            data = streaming.CellSource(self, matrices, present, batch, trained, generator)
            of_cells, loss = None, fitting.batch_loss
            kept_apart = None if held_out is None else data.arrays(held_out)
        else:
            data, of_cells, kept_apart, loss = fitting.training_data(
                self, matrices, present, batch, held_out, batch_size
            )
        report = train(
            self,
            data,
            loss=loss,
            weighted=True,
            sample_keys=of_cells,
            optimizer=fitting.learning_rates(self, matrices, present, learning_rate, encoder_rate),
            batch_size=batch_size,
            stratified=True,
            max_epochs=most if max_epochs is None else max_epochs,
            rng=generator,
            validation=kept_apart,
            patience=None if held_out is None else patience or fitting.default_patience(cells),
            keep_start=held_out is not None,
            backtracks=held_out is not None,
            min_progress=0.0 if held_out is None else fitting.MIN_PROGRESS,
            checkpoint=checkpoint,
            description=description,
        )
        self._fit_readings(matrices, present, batch, generator)
        self.mark_fitted()
        return report._replace(seconds=time.perf_counter() - started)

    @one_thread_at_a_time
    def initialize(
        self,
        matrices: Sequence[Any],
        *,
        present: np.ndarray | None = None,
        batch: np.ndarray | None = None,
        rng: int | np.random.Generator | None = 0,
    ) -> None:
        """Set all parameters to the linear solution: factor analysis for the experts, one Newton step for the decoders.

        Parameters
        ----------
        matrices, present, batch
            As of :meth:`fit_matrices`.
        rng
            Seed or generator of the random projections.
        """
        matrices, present, batch = self._check_matrices(matrices, present, batch)
        generator = as_generator(rng)
        self._start(matrices, present, batch, np.arange(len(present)), generator)
        self._fit_readings(matrices, present, batch, generator)
        self.mark_fitted()

    def _start(
        self,
        matrices: list[Any],
        present: np.ndarray,
        batch: np.ndarray,
        cells: np.ndarray,
        generator: np.random.Generator,
    ) -> None:
        """The linear solution of some of the cells."""
        self.n_cells[...] = device_copy(len(cells), np.float32)
        if len(cells) > _FACTOR_CELLS:
            cells = cells[np.sort(generator.choice(len(cells), _FACTOR_CELLS, replace=False))]
        matrices = [take_rows(matrix, cells) for matrix in matrices]
        present, batch = present[cells], batch[cells]
        log_size = log_sizes(matrices, self.config.modality_likelihoods)
        lengths = start(self.encoders, self.decoders, self.config, matrices, present, batch, log_size, rng=generator)
        self.axis_lengths[...] = device_copy(lengths, np.float32)
        if self.config.use_gradnorm:
            few = slice(0, _LOSS_CELLS)
            found = blocks.score(self, [matrix[few] for matrix in matrices], present[few], batch[few])
            values = [found[f"log_likelihood_{m}"] for m in range(len(matrices))]
            losses = [-np.nanmean(value) if np.isfinite(value).any() else 1.0 for value in values]
            self.initial_losses[...] = device_copy(losses, np.float32)

    def _fit_readings(
        self, matrices: list[Any], present: np.ndarray, batch: np.ndarray, generator: np.random.Generator
    ) -> None:
        """All that is read off the latent vectors in closed form: sizes, the embedding, regressions."""

        def latent_without(modality: int, cells: np.ndarray, others: np.ndarray) -> np.ndarray:
            taken = [take_rows(matrix, cells) for matrix in matrices]
            return blocks.encode(self, taken, others, batch[cells]).mean

        log_size = log_sizes(matrices, self.config.modality_likelihoods)
        model, means = sizes.fit_size_model(log_size, present, self.config.latent_dim, latent_without)
        self.size_model[...] = device_copy(model, np.float32)
        self.size_means[...] = device_copy(means, np.float32)
        if self.config.n_batches == 1 and not self.config.regressed:
            return
        if len(present) > _READING_CELLS:
            chosen = np.sort(generator.choice(len(present), _READING_CELLS, replace=False))
            matrices, log_size = [matrix[chosen] for matrix in matrices], log_size[chosen]
            present, batch = present[chosen], batch[chosen]
        lengths = np.asarray(self.axis_lengths[...], np.float64)
        latent = blocks.encode(self, matrices, present, batch).mean
        self.aligned.fit(latent * lengths, batch, generator)
        for regression in self.regressions:
            m = regression.modality
            others = of_others(present, m)
            known = np.flatnonzero(others.any(1))
            targets = present[known, m]
            place = latent_without(m, known, others[known]) * lengths if len(known) else latent[:0]
            sizes_known = np.where(others, log_size, np.nan)[known]
            values = as_dense(matrices[m][known[targets]])
            regression.fit(place, sizes_known, batch[known], np.flatnonzero(targets), values, generator)

    # --- on matrices --------------------------------------------------------------------------------------------------

    def encode(
        self, matrices: Sequence[Any], *, present: np.ndarray | None = None, batch: np.ndarray | None = None
    ) -> blocks.Encoding:
        """Return the posterior of each cell, computed in blocks of rows; arguments as of :meth:`fit_matrices`."""
        return blocks.encode(self, *self._check_matrices(matrices, present, batch))

    def embed(
        self, matrices: Sequence[Any], *, present: np.ndarray | None = None, batch: np.ndarray | None = None
    ) -> blocks.Encoding:
        """Return the posterior of each cell in the embedding: :meth:`encode` after :meth:`embedding`."""
        matrices, present, batch = self._check_matrices(matrices, present, batch)
        encoding, lengths = blocks.encode(self, matrices, present, batch), np.asarray(self.axis_lengths[...])
        for latent in (encoding.mean, *encoding.modality_mean):
            for first in range(0, len(latent), _PLACED_CELLS):  # in their place: these are as long as the data
                rows = slice(first, first + _PLACED_CELLS)
                latent[rows] = self.aligned(latent[rows] * lengths, batch[rows], library=np)
        encoding.variance[...] *= lengths**2
        return encoding

    def embedding(self, latent: Float[Array, "cells latent"], batch: Array) -> Float[Array, "cells latent"]:
        """Return latent vectors with their axes stretched and batches laid onto each other; differentiable."""
        return self.aligned(latent * self.axis_lengths[...], batch)

    def impute(
        self,
        modality: int,
        matrices: Sequence[Any],
        *,
        present: np.ndarray | None = None,
        batch: np.ndarray | None = None,
        columns: np.ndarray | None = None,
    ) -> tuple[Float[np.ndarray, "cells columns"], Float[np.ndarray, " cells"]]:
        """Return values of a modality at each cell's posterior mean, and the log of the depth taken.

        Expected values by the decoder at the cell's own depth or, where it lacks the modality, at the one that z and
        its other modalities predict. Of proteins typical counts instead, ``expm1`` of the expected log1p
        count: by a kernel regression on the cell's other modalities and, where it has the modality, between that and
        its own count, each by how much it is to be trusted.

        Parameters
        ----------
        modality
            Number of the modality.
        matrices, present, batch
            As of :meth:`fit_matrices`.
        columns
            Numbers of the features to return; default all.
        """
        matrices, present, batch = self._check_matrices(matrices, present, batch)
        columns = np.arange(self.config.modality_dims[modality]) if columns is None else np.asarray(columns)
        mean = blocks.encode(self, matrices, present, batch).mean
        known = np.where(present, log_sizes(matrices, self.config.modality_likelihoods), np.nan)
        lacking = ~present[:, modality]
        log_size = np.where(lacking, self.predict_log_size(modality, mean, known), known[:, modality])
        log_size = log_size.astype(np.float32)
        regression = next((one for one in self.regressions if one.modality == modality), None)
        if regression is None or not float(regression.is_fitted[...]):
            return self.expected(modality, mean, batch=batch, log_size=log_size, columns=columns), log_size
        others = of_others(present, modality)
        place = blocks.encode(self, matrices, others, batch).mean * np.asarray(self.axis_lengths[...])
        sizes_of_others = np.where(others, known, np.nan)
        values = regression.imputed(place, sizes_of_others, batch, library=np)
        has = ~lacking
        if has.any():
            counts = as_dense(matrices[modality][np.flatnonzero(has)])
            values[has] = regression.measured(counts, values[has], ~others[has].any(1), library=np)
        return values[:, columns].astype(np.float32), log_size

    def score(
        self, matrices: Sequence[Any], *, present: np.ndarray | None = None, batch: np.ndarray | None = None
    ) -> dict[str, Float[np.ndarray, " cells"]]:
        """Return the divergence from the prior (``kl``) and ``log_likelihood_<i>`` at the posterior mean, in nats."""
        return blocks.score(self, *self._check_matrices(matrices, present, batch))

    def expected(
        self,
        modality: int,
        latent: Float[np.ndarray, "cells latent"],
        *,
        batch: np.ndarray | None = None,
        log_size: np.ndarray | None = None,
        columns: np.ndarray | None = None,
    ) -> Float[np.ndarray, "cells features"]:
        """Return the expected values of a modality at ``latent``, computed in blocks of rows.

        Parameters
        ----------
        modality
            Number of the modality.
        latent
            Latent vectors (cells, latent).
        batch
            Code of each cell's batch; default 0.
        log_size
            Log of each cell's total count; default 0, which gives shares of the total.
        columns
            Numbers of the features to return; default all.
        """
        cells, features = len(latent), self.config.modality_dims[modality]
        return blocks.expected(
            self,
            modality,
            latent,
            np.zeros(cells, np.int32) if batch is None else batch,
            np.zeros(cells, np.float32) if log_size is None else log_size,
            np.arange(features) if columns is None else np.asarray(columns),
        )

    def predict_log_size(
        self, modality: int, latent: Float[np.ndarray, "cells latent"], log_sizes: Float[np.ndarray, "cells modalities"]
    ) -> Float[np.ndarray, " cells"]:
        """Return the log of the total count that a modality would have in each cell.

        It is predicted from z and the log sizes of the other modalities (NaN where a cell lacks one).
        """
        # On the host: elementary programs would be compiled for each number of cells.
        latent, log_sizes = np.asarray(latent, np.float32), np.asarray(log_sizes, np.float32)
        model, means = np.asarray(self.size_model[...])[modality], np.asarray(self.size_means[...])
        return sizes.predicted_log_size(model, means, modality, latent, log_sizes, library=np)

    def _log_size(self, modality: int, latent: Array, log_sizes: Array) -> Array:
        model = self.size_model[...][modality]
        return sizes.predicted_log_size(model, self.size_means[...], modality, latent, log_sizes)

    def traverse(
        self,
        modality: int,
        latent: Float[np.ndarray, " latent"],
        dimension: int,
        values: Sequence[float],
        *,
        batch: int = 0,
        log_size: float = 0.0,
    ) -> Float[np.ndarray, "values features"]:
        """Return the expected values of a modality as one latent dimension takes ``values`` and the others stay."""
        moved = np.repeat(np.asarray(latent, np.float32)[None], len(values), axis=0)
        moved[:, dimension] = values
        codes = np.full(len(moved), batch)
        return self.expected(modality, moved, batch=codes, log_size=np.full(len(moved), log_size))

    def _check_matrices(
        self, matrices: Sequence[Any], present: np.ndarray | None, batch: np.ndarray | None
    ) -> tuple[list[Any], np.ndarray, np.ndarray]:
        dims = self.config.modality_dims
        if len(matrices) != len(dims):
            raise ValueError(f"expected {len(dims)} matrices (config.modality_dims), found {len(matrices)}.")
        cells = matrices[0].shape[0]
        for m, (matrix, size) in enumerate(zip(matrices, dims, strict=True)):
            if matrix.shape != (cells, size):
                raise ValueError(f"matrix {m} must have shape {(cells, size)}, found {tuple(matrix.shape)}.")
        present = np.ones((cells, len(dims)), bool) if present is None else np.asarray(present) > 0
        if present.shape != (cells, len(dims)):
            raise ValueError(f"present must have shape {(cells, len(dims))}, found {present.shape}.")
        batch = np.zeros(cells, np.int32) if batch is None else np.asarray(batch)
        if batch.shape != (cells,) or batch.max(initial=0) >= self.config.n_batches or batch.min(initial=0) < 0:
            raise ValueError(
                f"batch must hold a code from 0 to config.n_batches - 1 = {self.config.n_batches - 1} for each of the "
                f"{cells} cells."
            )
        values = [as_values(*parts) for parts in zip(matrices, self.config.modality_likelihoods, strict=True)]
        return values, present, batch


@jax.jit
def _apply(graph, state, data):
    operator = nnx.merge(graph, state)
    config = operator.config
    counts, cells = operator._dense_cells(data)
    experts = posterior.experts(posterior.stack_encoders(operator), cells)
    joint = posterior.fuse(config.fusion, experts, cells["present"])
    result = {
        "joint_latent": joint.mean,
        "joint_log_variance": joint.log_variance,
        "modality_shares": joint.shares.mean(-1).T,
    }
    known = jnp.where(cells["present"], cells["log_size"], jnp.nan)
    for m, name in enumerate(config.modality_names):
        predicted = operator._log_size(m, joint.mean, known)
        size = jnp.where(cells["present"][:, m], cells["log_size"][:, m], predicted)
        likelihood, decoder = config.modality_likelihoods[m], operator.decoders[m]
        result[f"{name}_reconstructed"] = blocks.expected_values(decoder, likelihood, joint.mean, cells["batch"], size)
    result["elbo_loss"] = operator._dense_bound(data, counts, cells, experts)
    return result


@jax.jit
def _loss(graph, state, data):
    operator = nnx.merge(graph, state)
    counts, cells = operator._dense_cells(data)
    return operator._dense_bound(data, counts, cells, posterior.experts(posterior.stack_encoders(operator), cells))
