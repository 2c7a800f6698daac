"""A fitted model of regions: prediction in blocks, the same in JAX for gradients, and the arrays it is made of."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from diffbio_sc._compiled import one_thread_at_a_time
from diffbio_sc.engines.contextual_cells import CellCopies
from diffbio_sc.genome import region_set, sequences
from diffbio_sc.genome.region_set import RegionSet
from diffbio_sc.numerics.linear.design import Design
from diffbio_sc.numerics.padding import zero_padded
from diffbio_sc.numerics.sequence import kmers, motifs
from diffbio_sc.numerics.sequence.kmers_jax import log_counts
from diffbio_sc.operators.epigenomics.region_network import RegionNetwork
from diffbio_sc.operators.epigenomics.sequence_ridge import SequenceRidge

__all__ = ["Columns", "LinearPart", "RegionModel", "combine", "count_table", "network_logits", "spaced_patterns"]

_BLOCK = 4096
_NETWORK_BLOCK = 1024
# Bases between the triplets of spaced k-mers: up to a motif's length together.
_GAPS = range(1, 7)
# Probabilities are kept so far from 0 and 1 when they are averaged.
_SMALLEST = 1e-7


class LinearPart(NamedTuple):
    """A linear model of the logits.

    Attributes
    ----------
    patterns
        Patterns of its k-mers.
    weights
        Of k-mers, then of the last of the further columns, as many as there are weights (columns, cells), float32.
    intercept
        (cells,), float32.
    """

    patterns: tuple[kmers.Pattern, ...]
    weights: Float[np.ndarray, "columns cells"]
    intercept: Float[np.ndarray, " cells"]

    @property
    def n_further(self) -> int:
        """Number of further columns."""
        return len(self.weights) - kmers.n_columns(self.patterns)

    def logits(
        self, tokens: Int[np.ndarray, "n length"], further: Float[np.ndarray, "n further"]
    ) -> Float[np.ndarray, "n cells"]:
        """Return logits, block by block."""
        result = np.empty((len(tokens), len(self.intercept)), np.float32)
        for block in _blocks(len(tokens)):
            design = Design(
                kmers.kmer_rows(tokens[block], self.patterns), further[block, further.shape[1] - self.n_further :]
            )
            result[block] = design.products(self.weights) + self.intercept
        return result


class Columns(NamedTuple):
    """Columns of a region beside its k-mers, each measured by mean and spread over training regions.

    Attributes
    ----------
    motif_names, motifs
        Motifs whose best scores are columns: those that were given, then those grown from the training regions.
    groups
        Number of kinds of regions whose distances and numbers are columns; 0 in the mode of the sequence alone.
    mean, spread
        Of the columns.
    density
        Smallest and largest density of a training chromosome: average number of regions within 50 kb of one.
    neighbour_mean, neighbour_spread
        Of the columns of the neighbours' predictions.
    fallback
        Linear logits of a neighbour that is not there.
    """

    motif_names: tuple[str, ...]
    motifs: tuple[Float[np.ndarray, "width 4"], ...]
    groups: int
    mean: Float[np.ndarray, " columns"]
    spread: Float[np.ndarray, " columns"]
    density: tuple[float, float]
    neighbour_mean: Float[np.ndarray, " neighbours"]
    neighbour_spread: Float[np.ndarray, " neighbours"]
    fallback: Float[np.ndarray, " cells"]

    def raw(self, tokens: np.ndarray, regions: RegionSet | None) -> Float[np.ndarray, "n columns"]:
        """Return the columns as they are."""
        parts = [motifs.best_scores(tokens, self.motifs)] if self.motifs else []
        if regions is not None:
            parts.append(region_set.neighbour_columns(regions, self.groups))
        return np.concatenate(parts, axis=1) if parts else np.zeros((len(tokens), 0), np.float32)

    def scaled(self, tokens: np.ndarray, regions: RegionSet | None) -> Float[np.ndarray, "n columns"]:
        """Return the columns, each less its mean and over its spread."""
        return ((self.raw(tokens, regions) - self.mean) / self.spread).astype(np.float32)

    def neighbours(self, regions: RegionSet | None, start: np.ndarray) -> Float[np.ndarray, "n neighbours"]:
        """Return the scaled means of linear logits over the neighbours."""
        if regions is None:
            return np.zeros((len(start), 0), np.float32)
        means = region_set.neighbour_means(regions, start, self.fallback)
        return ((means - self.neighbour_mean) / self.neighbour_spread).astype(np.float32)


@dataclasses.dataclass
class RegionModel:
    """A fitted model of regions.

    Attributes
    ----------
    length
        Length of the sequences in bp.
    start
        The linear model, in closed form.
    columns
        Columns beside the k-mers.
    networks
        What was trained on what the linear model leaves, each from another start; what they add is averaged. None if
        they were not trained, or not kept.
    chosen
        Columns of :func:`spaced_patterns` that the networks see.
    logistic
        Logistic regressions to average with; none if they were not kept.
    shares
        Weight of the probability of the start with what the networks add, then of each logistic regression; sums to 1.
    copies
        How cell types that were not seen are made; None without context.
    floor
        A logistic regression on 7-mers, what any model has to beat.
    report
        What the fit did, in types that h5ad and zarr store.
    """

    length: int
    start: LinearPart
    columns: Columns
    networks: tuple[RegionNetwork, ...]
    chosen: Int[np.ndarray, " chosen"]
    logistic: tuple[LinearPart, ...]
    shares: Float[np.ndarray, " parts"]
    copies: CellCopies | None
    floor: LinearPart
    report: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def n_cells(self) -> int:
        """Number of cell types that the model was fitted to."""
        return len(self.start.intercept)

    def predict(
        self,
        tokens: Int[np.ndarray, "n length"],
        *,
        neighbourhood: RegionSet | None = None,
        tf_context: Float[np.ndarray, "new_cells tfs"] | None = None,
        cells: Int[np.ndarray, " chosen"] | None = None,
    ) -> Float[np.ndarray, "n cells"]:
        """Return log-odds of activity, float32; of a sequence and its other strand they are the same.

        Parameters
        ----------
        tokens
            Sequences of the length that the model was fitted to.
        neighbourhood
            Where the regions lie; needed if, and only if, the model was fitted with it. Neighbours are the other
            regions given here: give all that belong together, not a few of them.
        tf_context
            Expression in cell types that the model has not seen, in its factors' order: the result has a column for
            each of these instead of those of the fitted cell types.
        cells
            Columns to return. Default: all.

        Raises
        ------
        ValueError
            If an input does not fit the model.

        Warns
        -----
        UserWarning
            If the regions lie denser or sparser than those of any chromosome that the model was fitted to.
        """
        tokens = self.check_tokens(tokens)
        regions = self.check_regions(neighbourhood, len(tokens))
        mixing = None if tf_context is None else self.mixing(tf_context)
        parts = self.parts(tokens, regions)
        logits = combine(parts, self.shares)
        if mixing is not None:
            logits = logits @ mixing.T
        return logits if cells is None else logits[:, np.asarray(cells)]

    def parts(
        self, tokens: Int[np.ndarray, "n length"], regions: RegionSet | None
    ) -> list[Float[np.ndarray, "n cells"]]:
        """Return the logits that are averaged: of the start with what the network adds, of logistic regressions."""
        tokens = sequences.one_strand(tokens)
        further = self.columns.scaled(tokens, regions)
        first = self.start.logits(tokens, further)
        if self.networks:
            neighbours = self.columns.neighbours(regions, first)
            inputs = np.concatenate([further, neighbours], axis=1)
            first = network_logits(self.networks, self.chosen, tokens, inputs, first)
        return [first, *(part.logits(tokens, further) for part in self.logistic)]

    def one_hot_logits(
        self, one_hot: Float[Array, "n length 4"], *, neighbourhood: Float[Array, "n columns"] | None = None
    ) -> Float[Array, "n cells"]:
        """Return log-odds in JAX, differentiable in relaxed sequences; those of :meth:`predict` on hard ones.

        Parameters
        ----------
        one_hot
            Sequences, A C G T; a row of zeros is an unknown base.
        neighbourhood
            What :meth:`neighbourhood_columns` returned for these regions; needed if, and only if, the model was fitted
            with a neighbourhood.
        """
        if (neighbourhood is None) != (self.columns.groups == 0):
            raise ValueError(_mode_message(self.columns.groups))
        if one_hot.shape[1:] != (self.length, 4):
            raise ValueError(f"one_hot must have the shape (n, {self.length}, 4), found {one_hot.shape}.")
        n_motifs, n_sequence = len(self.columns.motifs), len(self.columns.mean)
        given = jnp.zeros((len(one_hot), 0)) if neighbourhood is None else jnp.asarray(neighbourhood)
        around, neighbours = given[:, : n_sequence - n_motifs], given[:, n_sequence - n_motifs :]
        scores = motifs.soft_best_scores(one_hot, self.columns.motifs)
        scores = (scores - self.columns.mean[:n_motifs]) / self.columns.spread[:n_motifs]
        further = jnp.concatenate([scores, around], axis=1)
        known: dict[tuple[kmers.Pattern, ...], Array] = {}

        def linear(part: LinearPart) -> Array:
            if part.patterns not in known:
                known[part.patterns] = log_counts(one_hot, part.patterns)
            own = further[:, further.shape[1] - part.n_further :]
            return jnp.concatenate([known[part.patterns], own], axis=1) @ part.weights + part.intercept

        logits = [linear(self.start)]
        logits += [linear(part) for part in self.logistic]
        if self.networks:
            patterns = spaced_patterns(self.length)
            counts = known[patterns] if patterns in known else log_counts(one_hot, patterns)
            known_columns = jnp.concatenate([counts[:, self.chosen], further, neighbours], axis=1)
            beyond = self.networks[0].n_columns - known_columns.shape[1] - self.n_cells
            columns = jnp.concatenate([jnp.pad(known_columns, ((0, 0), (0, beyond))), logits[0]], axis=1)
            added = [network(columns) for network in self.networks]
            logits[0] = logits[0] + sum(added[1:], added[0]) / len(added)
        if len(logits) == 1:
            return logits[0]
        mean = sum(share * jax.nn.sigmoid(part) for share, part in zip(self.shares, logits, strict=True))
        mean = jnp.clip(mean, _SMALLEST, 1 - _SMALLEST)
        return jnp.log(mean) - jnp.log1p(-mean)

    def neighbourhood_columns(
        self, tokens: Int[np.ndarray, "n length"], neighbourhood: RegionSet
    ) -> Float[np.ndarray, "n columns"]:
        """Return what :meth:`one_hot_logits` takes as given about the regions' surroundings."""
        tokens = sequences.one_strand(self.check_tokens(tokens))
        regions = self.check_regions(neighbourhood, len(tokens))
        further = self.columns.scaled(tokens, regions)
        neighbours = self.columns.neighbours(regions, self.start.logits(tokens, further))
        return np.concatenate([further[:, len(self.columns.motifs) :], neighbours], axis=1)

    def sequence_ridge(self) -> SequenceRidge:
        """Return the linear start as an operator, differentiable in weights and sequence."""
        if self.columns.groups:
            raise ValueError("the start of a model that was fitted with a neighbourhood reads more than the sequence.")
        split = kmers.n_columns(self.start.patterns)
        scaled = self.start.weights[split:] / self.columns.spread[:, None]
        return SequenceRidge(
            np.concatenate([self.start.weights[:split], scaled]),
            self.start.intercept - self.columns.mean @ scaled,
            patterns=self.start.patterns,
            motifs=self.columns.motifs,
        )

    def mixing(self, tf_context: Float[np.ndarray, "new_cells tfs"]) -> Float[np.ndarray, "new_cells cells"]:
        """Return the weight of each fitted cell type in new ones."""
        if self.copies is None:
            raise ValueError(
                "the model was fitted without tf_context and knows no cell types beyond its own: fit it with the "
                "expression of transcription factors in its cell types."
            )
        context = np.asarray(tf_context, np.float64)
        factors = self.copies.context.shape[1]
        if context.ndim != 2 or context.shape[1] != factors:
            raise ValueError(f"tf_context must be (cell types, {factors} factors), found shape {context.shape}.")
        if not np.isfinite(context).all():
            row = int(np.argwhere(~np.isfinite(context))[0, 0])
            raise ValueError(f"tf_context of a new cell type must be complete: row {row} has entries not finite.")
        weights = np.zeros((len(context), self.n_cells), np.float32)
        weights[:, self.copies.columns] = self.copies.weights(context)
        return weights

    def check_tokens(self, tokens: Int[np.ndarray, "n length"]) -> Int[np.ndarray, "n length"]:
        """Return tokens, or raise ValueError if they do not fit the model."""
        tokens = sequences.check_tokens(tokens)
        if tokens.shape[1] != self.length:
            raise ValueError(
                f"the model was fitted to sequences of {self.length} bases, found {tokens.shape[1]}: resize the "
                "regions to that width."
            )
        return tokens

    def check_regions(self, neighbourhood: RegionSet | None, size: int) -> RegionSet | None:
        """Return the neighbourhood; raise ValueError if it does not fit, warn if its density does not."""
        if (neighbourhood is None) != (self.columns.groups == 0):
            raise ValueError(_mode_message(self.columns.groups))
        if neighbourhood is None:
            return None
        regions = region_set.check_region_set(neighbourhood, size, self.columns.groups)
        if size:
            found = float(
                np.average(region_set.density(regions), weights=np.unique(regions.chromosome, return_counts=True)[1])
            )
            low, high = self.columns.density
            if not low <= found <= high:
                warnings.warn(
                    f"the regions have {found:.3g} others within 50 kb on average, those that the model was fitted to "
                    f"{low:.3g} to {high:.3g} by chromosome: predictions that look at neighbours fit sets of the same "
                    "density. Give the whole set at once, or fit without neighbourhood.",
                    UserWarning,
                    stacklevel=3,
                )
        return regions

    def arrays(self) -> dict[str, np.ndarray]:
        """Return everything that the model is made of, as named arrays without objects."""
        columns = self.columns
        result: dict[str, np.ndarray] = {
            "length": np.array(self.length),
            "shares": self.shares,
            **_linear_arrays("start", self.start),
            **_linear_arrays("floor", self.floor),
            "n_logistic": np.array(len(self.logistic)),
            "n_networks": np.array(len(self.networks)),
            "chosen": self.chosen,
            "groups": np.array(columns.groups),
            "density": np.array(columns.density),
            "motif_names": np.array(columns.motif_names, dtype=str),
            "motif_widths": np.array([len(motif) for motif in columns.motifs], np.int64),
            "motifs": np.concatenate([np.zeros((0, 4), np.float32), *columns.motifs]),
        }
        for name in _COLUMN_ARRAYS:
            result[f"column_{name}"] = getattr(columns, name)
        for number, part in enumerate(self.logistic):
            result |= _linear_arrays(f"logistic{number}", part)
        for number, network in enumerate(self.networks):
            result |= {f"network{number}_{name}": value for name, value in network.arrays().items()}
        if self.copies is not None:
            result["copies_context"], result["copies_columns"] = self.copies.context, self.copies.columns
            result["copies_softness"] = np.array(self.copies.softness)
        return result

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], report: Mapping[str, Any] | None = None) -> RegionModel:
        """Build the model from what :meth:`arrays` returned."""
        given = {name: np.asarray(value) for name, value in arrays.items()}
        try:
            ends = np.cumsum(given["motif_widths"])[:-1]
            matrices = np.split(given["motifs"], ends) if len(given["motif_widths"]) else []
            columns = Columns(
                motif_names=tuple(map(str, given["motif_names"])),
                motifs=tuple(matrices),
                groups=int(given["groups"]),
                density=tuple(map(float, given["density"])),  # type: ignore[arg-type]
                **{name: given[f"column_{name}"] for name in _COLUMN_ARRAYS},
            )
            networks = [
                {name.removeprefix(f"network{i}_"): v for name, v in given.items() if name.startswith(f"network{i}_")}
                for i in range(int(given["n_networks"]))
            ]
            copies = None
            if "copies_context" in given:
                copies = CellCopies(
                    given["copies_context"], given["copies_columns"], float(given["copies_softness"]), {}
                )
            return cls(
                length=int(given["length"]),
                start=_linear_part("start", given),
                columns=columns,
                networks=tuple(RegionNetwork.from_arrays(network) for network in networks),
                chosen=given["chosen"],
                logistic=tuple(_linear_part(f"logistic{i}", given) for i in range(int(given["n_logistic"]))),
                shares=given["shares"],
                copies=copies,
                floor=_linear_part("floor", given),
                report=dict(report or {}),
            )
        except KeyError as error:
            raise KeyError(f"the arrays of a model of regions lack {error}; found {sorted(given)}.") from None


_COLUMN_ARRAYS = ("mean", "spread", "neighbour_mean", "neighbour_spread", "fallback")


def combine(
    parts: Sequence[Float[np.ndarray, "n cells"]], shares: Float[np.ndarray, " parts"]
) -> Float[np.ndarray, "n cells"]:
    """Return the log-odds of the averaged probabilities of some logits."""
    if len(parts) == 1:
        return parts[0]
    mean = sum(share / (1 + np.exp(-part.astype(np.float64))) for share, part in zip(shares, parts, strict=True))
    mean = np.clip(mean, _SMALLEST, 1 - _SMALLEST)
    return (np.log(mean) - np.log1p(-mean)).astype(np.float32)


def spaced_patterns(length: int) -> tuple[kmers.Pattern, ...]:
    """Return the k-mers that networks and the wider logistic regression see: 6-mers, and pairs of spaced triplets."""
    patterns = (kmers.contiguous(6), *(kmers.mirrored(3, gap) for gap in _GAPS))
    return tuple(pattern for pattern in patterns if pattern[-1] < length)


def count_table(tokens: Int[np.ndarray, "n length"], chosen: Int[np.ndarray, " chosen"]) -> Int[np.ndarray, "n chosen"]:
    """Return counts of chosen spaced k-mers as a table of the smallest whole numbers that hold them."""
    kind = np.uint8 if tokens.shape[1] <= np.iinfo(np.uint8).max else np.uint16
    patterns = spaced_patterns(tokens.shape[1])
    table = np.empty((len(tokens), len(chosen)), kind)
    for block in _blocks(len(tokens)):
        table[block] = kmers.chosen_counts(kmers.kmer_rows(tokens[block], patterns), chosen, kind)
    return table


def network_logits(
    networks: Sequence[RegionNetwork],
    chosen: Int[np.ndarray, " chosen"],
    tokens: Int[np.ndarray, "n length"],
    inputs: Float[np.ndarray, "n further"],
    start: Float[np.ndarray, "n cells"],
) -> Float[np.ndarray, "n cells"]:
    """Return logits of the start with the mean of what networks add, in blocks of one padded shape."""
    split = [nnx.split(network) for network in networks]
    graph, states = split[0][0], [state for _, state in split]
    result = np.empty_like(start)
    # The networks may be wider: columns beyond those given are 0.
    inputs = zero_padded(inputs, (len(inputs), networks[0].n_columns - len(chosen) - start.shape[1]))
    size = min(_NETWORK_BLOCK, max(64, 1 << max(len(tokens) - 1, 0).bit_length()))
    for begin in range(0, len(tokens), size):
        block = slice(begin, min(begin + size, len(tokens)))
        data = {"counts": count_table(tokens[block], chosen), "further": inputs[block], "start": start[block]}
        short = size - len(data["start"])
        data = {name: np.pad(value, ((0, short), (0, 0))) for name, value in data.items()}
        found = [np.asarray(_apply_network(graph, state, data))[: size - short] for state in states]
        result[block] = np.mean(found, axis=0)
    return result


@one_thread_at_a_time
@functools.partial(jax.jit, static_argnums=0)
def _apply_network(graph: Any, state: Any, data: dict[str, Array]) -> Array:
    return nnx.merge(graph, state).from_batch(data)


def _linear_arrays(name: str, part: LinearPart) -> dict[str, np.ndarray]:
    return {
        f"{name}_weights": part.weights,
        f"{name}_intercept": part.intercept,
        # Patterns of different lengths in one table: -1 behind the end.
        f"{name}_patterns": np.array(
            [list(p) + [-1] * (max(map(len, part.patterns)) - len(p)) for p in part.patterns], np.int64
        ),
    }


def _linear_part(name: str, arrays: Mapping[str, np.ndarray]) -> LinearPart:
    patterns = tuple(tuple(int(o) for o in row if o >= 0) for row in arrays[f"{name}_patterns"])
    return LinearPart(patterns, arrays[f"{name}_weights"], arrays[f"{name}_intercept"])


def _blocks(size: int) -> Iterator[slice]:
    for begin in range(0, size, _BLOCK):
        yield slice(begin, min(begin + _BLOCK, size))


def _mode_message(groups: int) -> str:
    if groups:
        return "the model was fitted with a neighbourhood: give where the regions lie (neighbourhood=)."
    return "the model was fitted to sequences alone and takes no neighbourhood: fit it with neighbourhood= to use one."
