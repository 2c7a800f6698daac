"""Hi-C maps whose compartments, domains, loops and changes are known."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from diffbio_sc._anndata.contacts_object import bins_table, symmetric
from diffbio_sc._options import check_options

if TYPE_CHECKING:
    from anndata import AnnData

# What a mammalian map at 10 kb looks like; lengths in base pairs, so that another resolution shows the same genome.
_COMPARTMENT_LENGTH, _COMPARTMENT_SPREAD = 1.2e6, 0.7  # median and log-sd of a compartment
_DOMAIN_LENGTH, _DOMAIN_SPREAD = 4.5e5, 0.55  # median and log-sd of a TAD
_DOMAIN_BOOST = (0.35, 1.3)  # contacts inside a TAD are this much more frequent, less one
_NESTED_BOOST = 1.25
_STRIPE_BOOST = 1.5
_LOOP_RADIUS = 6  # in bins: beyond 4 sd of the widest loop
_BLOCK_PIXELS = 4_000_000


def simulate_contacts(
    n_bins: int | Sequence[int] | Mapping[str, int] = 500,
    *,
    resolution: int = 10_000,
    contacts_per_bin: float = 1000.0,
    n_replicates: int = 1,
    n_conditions: int = 1,
    compartment_strength: float = 0.45,
    n_loops: int | None = None,
    loop_enrichment: tuple[float, float] = (1.5, 5.0),
    loop_width: tuple[float, float] = (0.7, 1.4),
    n_stripes: int | None = None,
    bias_sd: float = 0.35,
    masked_share: float = 0.03,
    overdispersion: float = 0.02,
    replicate_sd: float = 0.05,
    changed_share: float = 0.3,
    fold_change: float = 2.0,
    trans_share: float = 0.0,
    max_distance: int | None = None,
    rng: int | np.random.Generator = 0,
) -> AnnData:
    r"""Draw maps of chromatin contacts with known structure.

    The mean count of bins :math:`i < j` of a chromosome at distance :math:`s` is

    .. math::
        b_i b_j \; P(s) \; e^{\kappa x_i x_j f(s)} \; D_{ij} \; L_{ij} \; S_{ij}

    with visibilities :math:`b`, the decay
    :math:`P(s) = (s / 50\,\text{kb})^{-0.75} (1 + (s / 2\,\text{Mb})^2)^{-0.15}`, compartments :math:`x` between -1
    and 1 (:math:`f` rises from 0.25 to 1 about 400 kb), domains :math:`D` (TADs, some with nested ones), loops
    :math:`L` (Gaussian spots, at corners of domains and elsewhere) and stripes :math:`S`. Counts are negative binomial.

    Parameters
    ----------
    n_bins
        Number of bins; several chromosomes are a sequence (``chr1``, ``chr2``, ...) or a mapping from name to number.
    resolution
        Width of the bins in base pairs.
    contacts_per_bin
        Mean number of contacts of a map, divided by the number of bins; replicates whose decay differs vary about it.
    n_replicates
        Replicates of each condition.
    n_conditions
        1, or 2 for maps of conditions ``a`` and ``b`` that differ in loops, boundaries and compartments.
    compartment_strength
        :math:`\kappa`: log ratio by which contacts within a compartment are more frequent.
    n_loops
        Number of loops; default one in 45 bins; 0 for a map without loops.
    loop_enrichment
        Range of the fold enrichment at the centre of a loop.
    loop_width
        Range of the standard deviation of a loop, in bins.
    n_stripes
        Number of stripes at boundaries; default one in 400 bins.
    bias_sd
        Standard deviation of the log visibility of a bin.
    masked_share
        Share of bins that cannot be mapped, a gap like a centromere among them.
    overdispersion
        Variance of a count of mean m is :math:`m + \text{overdispersion} \cdot m^2`, anew in each replicate.
    replicate_sd
        How replicates differ beyond that: standard deviation of the log visibility of bins and of the decay's exponent.
    changed_share
        Share of loops and boundaries, and twice the share of compartments, that differ between two conditions.
    fold_change
        Change of the contacts at the centre of a changed loop.
    trans_share
        Share of the contacts that are between chromosomes.
    max_distance
        Draw contacts up to this distance in base pairs only, which makes long chromosomes affordable.
    rng
        Seed or generator.

    Returns
    -------
    An AnnData whose observations are bins, with

    - ``.obs[["chrom", "start", "end"]]``: coordinates of the bins
    - ``.obs[["true_compartment", "true_boundary", "true_bias", "true_masked"]]``: the truth for each bin; with two
      conditions also ``true_compartment_b``, and ``true_boundary_b`` for boundaries that moved
    - ``.X``, with ``var_names`` ``["gc"]``: a track that follows the compartments
    - ``.obsp["contacts"]``: CSR, int32, symmetric counts. With several maps these are ``.obsp["contacts_a_1"]``,
      ``.obsp["contacts_a_2"]``, ``.obsp["contacts_b_1"]``, ..., and ``contacts`` is their sum
    - ``.uns["truth"]``: ``loops`` (BEDPE columns, ``bin1``, ``bin2``, ``enrichment``, ``width``,
      ``log2_fold_change`` of the mean at the centre, ``changed``), ``boundaries`` (``chrom``, ``start``, ``bin``,
      ``strength``, ``change``: same, lost or gained), ``stripes``, ``decay``, ``maps`` (key, condition and replicate
      of each map) and ``params``

    Raises
    ------
    ValueError
        If a number is out of range.

    Examples
    --------
    >>> import diffbio_sc as dbio
    >>> adata = dbio.datasets.simulate_contacts(300, contacts_per_bin=200)
    >>> adata.obsp["contacts"].shape
    (300, 300)
    >>> two = dbio.datasets.simulate_contacts(300, contacts_per_bin=200, n_replicates=2, n_conditions=2)
    >>> list(two.uns["truth"]["maps"]["key"])
    ['contacts_a_1', 'contacts_a_2', 'contacts_b_1', 'contacts_b_2']
    """
    import anndata

    check_options(
        simulate_contacts,
        locals(),
        n_bins="[40, inf)",
        resolution="[1, inf) base pairs",
        contacts_per_bin="(0, inf)",
        n_replicates="[1, inf)",
        n_conditions="[1, 2]",
        compartment_strength="[0, inf)",
        n_loops="[0, inf)",
        n_stripes="[0, inf)",
        bias_sd="[0, inf)",
        masked_share="[0, 1)",
        overdispersion="[0, inf)",
        replicate_sd="[0, inf)",
        changed_share="[0, 1)",
        fold_change="[1, inf)",
        trans_share="[0, 1)",
        max_distance="[1, inf) base pairs",
    )
    n_replicates, n_conditions = int(n_replicates), int(n_conditions)
    n_loops = None if n_loops is None else int(n_loops)
    n_stripes = None if n_stripes is None else int(n_stripes)
    resolution = int(resolution)
    params = {name: value for name, value in locals().items() if name not in ("rng", "anndata")}
    sizes = _check(params)
    generator = np.random.default_rng(rng)
    offsets = np.concatenate([[0], np.cumsum(list(sizes.values()))])
    total = int(offsets[-1])
    conditions = ["a", "b"][:n_conditions]
    parts = [
        _draw_structure(
            size, resolution, params, _share(n_loops, size, total), _share(n_stripes, size, total), generator
        )
        for size in sizes.values()
    ]
    masked = np.concatenate([part.masked for part in parts])
    visibility = np.where(masked, 0.0, generator.lognormal(0.0, bias_sd, total))
    reach = total if max_distance is None else max(int(max_distance) // resolution, 1)

    maps: dict[str, sp.csr_array] = {}
    rows = []
    for code, condition in enumerate(conditions):
        means = [
            list(part.blocks(code, visibility[first:last], compartment_strength, reach))
            for part, first, last in zip(parts, offsets[:-1], offsets[1:], strict=True)
        ]
        cis_mean = sum(float(mean.sum(dtype=np.float64)) for blocks in means for _, mean in blocks)
        scale = contacts_per_bin * total * (1.0 - trans_share) / cis_mean
        for replicate in range(1, n_replicates + 1):
            noise = replicate_sd * generator.standard_normal(total + 1)
            counts = [
                _draw_cis(blocks, first, scale, noise[first:last], noise[-1], overdispersion, generator)
                for blocks, first, last in zip(means, offsets[:-1], offsets[1:], strict=True)
            ]
            if trans_share > 0:
                compartment = np.concatenate([part.compartment[code] for part in parts])
                counts.append(
                    _draw_trans(
                        visibility,
                        compartment,
                        offsets,
                        compartment_strength,
                        trans_share * contacts_per_bin * total,
                        overdispersion,
                        generator,
                    )
                )
            key = "contacts" if n_conditions * n_replicates == 1 else f"contacts_{condition}_{replicate}"
            maps[key] = _symmetric(counts, total)
            rows.append((key, condition, replicate))
    if "contacts" not in maps:
        maps["contacts"] = sp.csr_array(sum(maps.values()))

    frame = _bins(sizes, resolution)
    first = pd.concat([part.bin_truth(0) for part in parts], ignore_index=True).set_axis(frame.index)
    frame = frame.assign(
        true_compartment=first["compartment"],
        true_boundary=first["boundary"],
        true_bias=visibility,
        true_masked=masked,
    )
    if n_conditions == 2:
        other = pd.concat([part.bin_truth(1) for part in parts], ignore_index=True).set_axis(frame.index)
        frame = frame.assign(true_compartment_b=other["compartment"], true_boundary_b=other["boundary"])
    track = 0.41 + 0.03 * frame["true_compartment"].to_numpy() + 0.01 * generator.standard_normal(total)
    adata = anndata.AnnData(
        track.astype(np.float32)[:, None], obs=frame, var=pd.DataFrame(index=pd.Index(["gc"], dtype=object))
    )
    for key, counts in maps.items():
        adata.obsp[key] = counts
    adata.uns["contacts_storage"] = {"storage": "symmetric"}
    named = list(zip(sizes, parts, offsets[:-1], strict=True))
    adata.uns["truth"] = {
        "loops": _loops_table(named, resolution, fold_change, compartment_strength, n_conditions),
        "boundaries": _boundaries_table(named, resolution, n_conditions),
        "stripes": _stripes_table(named, resolution),
        "decay": _decay(np.arange(max(sizes.values())), resolution),
        "maps": pd.DataFrame(rows, columns=["key", "condition", "replicate"]),
        "params": {
            key: (list(sizes.values()) if key == "n_bins" else list(value) if isinstance(value, tuple) else value)
            for key, value in params.items()
            if value is not None
        },
    }
    return adata


def _check(params: dict[str, Any]) -> dict[str, int]:
    """Names and sizes of the chromosomes."""
    n_bins = params["n_bins"]
    if isinstance(n_bins, Mapping):
        sizes = {str(name): int(size) for name, size in n_bins.items()}
    else:
        several = [n_bins] if isinstance(n_bins, int | np.integer) else list(n_bins)
        sizes = {f"chr{number}": int(size) for number, size in enumerate(several, 1)}
    if not sizes or min(sizes.values()) < 40:
        raise ValueError(f"n_bins must be at least 40 for each chromosome, found {n_bins!r}.")
    for name in ("loop_enrichment", "loop_width"):
        low, high = params[name]
        if not 0 < low <= high:
            raise ValueError(f"{name} must be a range (low, high) above 0, found {params[name]!r}.")
    if params["trans_share"] > 0 and len(sizes) < 2:
        raise ValueError("trans_share needs at least two chromosomes: pass n_bins=(size, size).")
    return sizes


def _share(number: int | None, size: int, total: int) -> int | None:
    return None if number is None else round(number * size / total)


def _decay(distance: np.ndarray, resolution: int) -> np.ndarray:
    kilobases = (distance + 0.5) * resolution / 1e3
    decay = (kilobases / 50.0) ** -0.75 / (1 + (kilobases / 2000.0) ** 2) ** 0.15
    decay[distance == 0] *= 1.3
    return decay


def _far(distance: np.ndarray, resolution: int) -> np.ndarray:
    """How much of the compartment pattern shows at a distance: TADs hide it below 400 kb."""
    return 0.25 + 0.75 / (1 + np.exp(-(distance * resolution - 4e5) / 1e5))


@dataclasses.dataclass
class _Structure:
    """Structure of one chromosome in one or two conditions; lists are by condition."""

    resolution: int
    masked: np.ndarray
    compartment: list[np.ndarray]
    boundaries: list[np.ndarray]
    boost: np.ndarray
    nested: np.ndarray
    loops: pd.DataFrame
    stripes: np.ndarray

    def __len__(self) -> int:
        return len(self.masked)

    def domain(self, condition: int) -> np.ndarray:
        """Number of the TAD of each bin."""
        return np.searchsorted(self.boundaries[condition], np.arange(len(self)), side="right")

    def strength(self) -> np.ndarray:
        """Mean of the boosts on both sides of each boundary."""
        return 0.5 * (self.boost[:-1] + self.boost[1:])

    def bin_truth(self, condition: int) -> pd.DataFrame:
        boundary = np.zeros(len(self), bool)
        boundary[self.boundaries[condition]] = True
        return pd.DataFrame({"compartment": self.compartment[condition], "boundary": boundary})

    def log_spots(self, condition: int) -> sp.csr_array:
        """Log factors of loops and stripes, upper triangle."""
        size = len(self)
        reach = np.arange(-_LOOP_RADIUS, _LOOP_RADIUS + 1)
        loops = self.loops
        peak = loops[f"enrichment_{condition}"].to_numpy()[:, None, None] - 1.0
        square = (reach[:, None] ** 2 + reach[None, :] ** 2)[None] / loops["width"].to_numpy()[:, None, None] ** 2
        value = np.log1p(peak * np.exp(-0.5 * square))
        row = np.broadcast_to(loops["bin1"].to_numpy()[:, None, None] + reach[None, :, None], value.shape)
        column = np.broadcast_to(loops["bin2"].to_numpy()[:, None, None] + reach[None, None, :], value.shape)
        start, length = (self.stripes[:, :1], self.stripes[:, 1:]) if len(self.stripes) else (np.empty((0, 1)),) * 2
        step = np.arange(int(length.max()) if length.size else 0)[None]
        inside = (step < length) & (start + step < size)
        stripe_row = np.broadcast_to(start, inside.shape)[inside]
        stripe_column = (start + step)[inside]
        rows = np.concatenate([row.ravel(), stripe_row, stripe_row + 1]).astype(np.int64)
        columns = np.concatenate([column.ravel(), stripe_column, stripe_column]).astype(np.int64)
        values = np.concatenate([value.ravel(), np.full(2 * len(stripe_row), np.log(_STRIPE_BOOST))])
        kept = (rows >= 0) & (columns < size) & (rows <= columns)
        return sp.csr_array(sp.coo_array((values[kept], (rows[kept], columns[kept])), shape=(size, size)))

    def log_factor(self, condition: int, row: np.ndarray, column: np.ndarray, strength: float) -> np.ndarray:
        """Log of compartments and domains for pairs of bins."""
        compartment, domain = self.compartment[condition], self.domain(condition)
        factor = strength * compartment[row] * compartment[column] * _far(np.abs(column - row), self.resolution)
        factor += np.where(domain[row] == domain[column], np.log1p(self.boost)[domain[row]], 0.0)
        together = (self.nested[row] == self.nested[column]) & (self.nested[row] > 0)
        return factor + np.where(together, np.log(_NESTED_BOOST), 0.0)

    def blocks(
        self, condition: int, visibility: np.ndarray, strength: float, reach: int
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (first row, mean counts of rows by distance), before scaling."""
        size = len(self)
        reach = min(reach, size - 1)
        decay = _decay(np.arange(reach + 1), self.resolution)
        spots = self.log_spots(condition)
        rows_each = max(_BLOCK_PIXELS // (reach + 1), 1)
        for first in range(0, size, rows_each):
            last = min(first + rows_each, size)
            row = np.arange(first, last)[:, None]
            column = row + np.arange(reach + 1)[None]
            valid = column < size
            column = np.where(valid, column, size - 1)
            log_mean = self.log_factor(condition, np.broadcast_to(row, column.shape), column, strength)
            part = spots[first:last].tocoo()
            part_row, part_distance = part.row, part.col - part.row - first
            near = part_distance <= reach
            log_mean[part_row[near], part_distance[near]] += part.data[near]
            mean = np.exp(log_mean) * decay * visibility[row] * visibility[column] * valid
            yield first, mean.astype(np.float32)


def _draw_structure(
    size: int,
    resolution: int,
    params: dict[str, Any],
    n_loops: int | None,
    n_stripes: int | None,
    rng: np.random.Generator,
) -> _Structure:
    changes = params["n_conditions"] == 2
    share = params["changed_share"] if changes else 0.0
    # Compartments alternate; their edges are smooth over 100 kb.
    lengths = _lengths(size, _COMPARTMENT_LENGTH / resolution, _COMPARTMENT_SPREAD, 3, rng)
    sign = np.where(np.arange(len(lengths)) % 2 == 0, 1.0, -1.0) * rng.choice([-1.0, 1.0])
    level = sign * rng.uniform(0.5, 1.0, len(lengths))
    flipped = np.zeros(len(lengths), bool)
    flipped[rng.permutation(len(lengths))[: round(0.5 * share * len(lengths))]] = True
    compartment = [_smooth(np.repeat(level, lengths)[:size], resolution)]
    if changes:
        compartment.append(_smooth(np.repeat(np.where(flipped, -level, level), lengths)[:size], resolution))

    lengths = _lengths(size, _DOMAIN_LENGTH / resolution, _DOMAIN_SPREAD, 8, rng)
    edges = np.cumsum(lengths)
    edges = edges[edges < size - 5]
    boost = rng.uniform(*_DOMAIN_BOOST, len(edges) + 1)
    bounds = np.concatenate([[0], edges, [size]])
    moved_edges = edges.copy()
    if changes and len(edges):
        # A boundary moves by at most half of the shorter domain beside it, and by at least six bins.
        room = np.minimum(np.diff(bounds)[:-1], np.diff(bounds)[1:]) // 2
        moves = (rng.random(len(edges)) < share) & (room >= 6)
        moves[1:] &= ~moves[:-1]
        step = np.floor(rng.uniform(6, np.maximum(room, 6) + 1)).astype(np.int64) * rng.choice([-1, 1], len(edges))
        moved_edges = np.where(moves, edges + step, edges)
    boundaries = [edges, moved_edges] if changes else [edges]
    still = np.concatenate([[True], moved_edges == edges, [True]])
    steady = still[:-1] & still[1:]

    # Nested domains, told apart by number; 0 is none.
    nested = np.zeros(size, np.int64)
    split = (np.diff(bounds) > 30) & (rng.random(len(bounds) - 1) < 0.4) & steady
    middle = bounds[:-1] + (np.diff(bounds) * rng.uniform(0.3, 0.7, len(bounds) - 1)).astype(np.int64)
    left, right, centre = bounds[:-1][split], bounds[1:][split], middle[split]
    steps = np.zeros(size + 1, np.int64)
    number = 2 * np.arange(len(left)) + 1
    np.add.at(steps, left, number)
    np.add.at(steps, centre, 1)
    np.add.at(steps, right, -number - 1)
    nested = np.cumsum(steps)[:size]

    masked = _draw_masked(size, params["masked_share"], rng)
    stripes_at = rng.permutation(edges[still[1:-1]])[: size // 400 if n_stripes is None else n_stripes]
    stripes = np.stack([stripes_at, rng.integers(30, 90, len(stripes_at))], 1)
    wanted = size // 45 if n_loops is None else n_loops
    loops = _draw_loops(size, wanted, bounds[:-1][steady], bounds[1:][steady], masked, share, params, rng)
    return _Structure(resolution, masked, compartment, boundaries, boost, nested, loops, stripes)


def _lengths(size: int, median: float, spread: float, least: int, rng: np.random.Generator) -> np.ndarray:
    """Log-normal lengths in bins that add up to at least ``size``."""
    count = size // least + 1
    lengths = np.maximum(rng.lognormal(np.log(median), spread, count).astype(np.int64), least)
    return lengths[: int(np.searchsorted(np.cumsum(lengths), size)) + 1]


def _smooth(values: np.ndarray, resolution: int) -> np.ndarray:
    from scipy.ndimage import gaussian_filter1d

    return gaussian_filter1d(values, 1e5 / resolution, truncate=3.0, mode="nearest")


def _draw_masked(size: int, share: float, rng: np.random.Generator) -> np.ndarray:
    """A third of the share is one gap, the rest short runs."""
    masked = np.zeros(size + 12, bool)
    wanted = round(share * size)
    gap = wanted // 3
    first = int(0.35 * size)
    masked[first : first + gap] = True
    runs = rng.integers(1, 12, max(wanted, 1))
    runs = runs[: int(np.searchsorted(np.cumsum(runs), wanted - gap)) + (wanted > gap)]
    place = rng.integers(0, size, len(runs))
    reach = np.arange(12)
    inside = reach[None] < runs[:, None]
    masked[(place[:, None] + reach[None])[inside]] = True
    return masked[:size]


def _draw_loops(
    size: int,
    wanted: int,
    left: np.ndarray,
    right: np.ndarray,
    masked: np.ndarray,
    share: float,
    params: dict[str, Any],
    rng: np.random.Generator,
) -> pd.DataFrame:
    """Up to 60 % of the loops at corners of domains that stay, the others anywhere; none at masked bins."""
    corners = np.stack([left + 1, right - 2], 1)[right - left >= 12]
    corners = rng.permutation(corners)[: round(0.6 * wanted)]
    longest = min(150, size - 30)
    distance = np.exp(rng.uniform(np.log(10), np.log(max(longest, 11)), 4 * wanted + 8)).astype(np.int64)
    start = rng.integers(10, np.maximum(size - distance - 10, 11))
    pairs = np.concatenate([corners, np.stack([start, start + distance], 1)])
    good = (pairs[:, 1] < size - 4) & ~masked[pairs[:, 0]] & ~masked[np.minimum(pairs[:, 1], size - 1)]
    pairs = pairs[good]
    # One loop within reach of another would change its enrichment.
    apart = np.abs(pairs[:, None] - pairs[None]).max(-1) > 2 * _LOOP_RADIUS
    earlier = np.tri(len(pairs), k=-1, dtype=bool)
    pairs = pairs[~(~apart & earlier).any(1)][:wanted]
    enrichment = rng.uniform(*params["loop_enrichment"], len(pairs))
    changed = np.zeros(len(pairs), bool)
    changed[rng.permutation(len(pairs))[: round(share * len(pairs))]] = True
    gained = rng.random(len(pairs)) < 0.5
    fold = params["fold_change"]
    return pd.DataFrame(
        {
            "bin1": pairs[:, 0],
            "bin2": pairs[:, 1],
            "width": rng.uniform(*params["loop_width"], len(pairs)),
            "enrichment_0": np.where(changed & ~gained, fold * enrichment, enrichment),
            "enrichment_1": np.where(changed & gained, fold * enrichment, enrichment),
            "changed": changed,
        }
    )


def _negative_binomial(mean: np.ndarray, overdispersion: float, rng: np.random.Generator) -> np.ndarray:
    if overdispersion > 0:
        mean = mean * rng.standard_gamma(1.0 / overdispersion, mean.shape) * overdispersion
    return rng.poisson(mean).astype(np.int32)


def _draw_cis(blocks, offset, scale, visibility, exponent, overdispersion, rng) -> sp.coo_array:
    """Counts of one chromosome, upper triangle, in the rows and columns of all bins."""
    size = len(visibility)
    rows, columns, values = [], [], []
    for first, mean in blocks:
        row, distance = np.nonzero(mean)
        column = row + first + distance
        # Replicates differ in the visibility of bins and in the steepness of the decay.
        change = visibility[row + first] + visibility[column] - exponent * np.log((distance + 0.5) / 20.0)
        counts = _negative_binomial(scale * mean[row, distance] * np.exp(change), overdispersion, rng)
        kept = counts > 0
        rows.append(row[kept] + first + offset)
        columns.append(column[kept] + offset)
        values.append(counts[kept])
    top = offset + size
    return sp.coo_array((np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))), shape=(top, top))


def _draw_trans(visibility, compartment, offsets, strength, wanted, overdispersion, rng) -> sp.coo_array:
    """Contacts between chromosomes: visibilities and compartments alone."""
    size = len(visibility)
    chromosome = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    mean = np.outer(visibility, visibility) * np.exp(strength * np.outer(compartment, compartment))
    mean[chromosome[:, None] >= chromosome[None]] = 0.0
    counts = _negative_binomial(mean * (wanted / mean.sum()), overdispersion, rng)
    return sp.coo_array(counts, shape=(size, size))


def _symmetric(parts: list[sp.coo_array], size: int) -> sp.csr_array:
    rows = np.concatenate([part.row for part in parts])
    columns = np.concatenate([part.col for part in parts])
    values = np.concatenate([part.data for part in parts]).astype(np.int32)
    return symmetric(sp.csr_array(sp.coo_array((values, (rows, columns)), shape=(size, size))))


def _bins(sizes: Mapping[str, int], resolution: int) -> pd.DataFrame:
    number = np.concatenate([np.arange(size) for size in sizes.values()])
    chrom = np.repeat(list(sizes), list(sizes.values()))
    start = number * resolution
    return bins_table(pd.Categorical(chrom, categories=list(sizes)), start, start + resolution)


def _loops_table(named, resolution, fold, strength, n_conditions) -> pd.DataFrame:
    tables = []
    for name, part, offset in named:
        loops = part.loops
        one, two = loops["bin1"].to_numpy(), loops["bin2"].to_numpy()
        change = np.zeros(len(loops))
        if n_conditions == 2:
            change = np.log(loops["enrichment_1"].to_numpy() / loops["enrichment_0"].to_numpy())
            change += part.log_factor(1, one, two, strength) - part.log_factor(0, one, two, strength)
        tables.append(
            pd.DataFrame(
                {
                    "chrom1": name,
                    "start1": one * resolution,
                    "end1": (one + 1) * resolution,
                    "chrom2": name,
                    "start2": two * resolution,
                    "end2": (two + 1) * resolution,
                    "bin1": one + offset,
                    "bin2": two + offset,
                    "enrichment": loops["enrichment_0"].to_numpy(),
                    "width": loops["width"].to_numpy(),
                    "log2_fold_change": change / np.log(2.0),
                    "changed": loops["changed"].to_numpy(),
                }
            )
        )
    return pd.concat(tables, ignore_index=True)


def _boundaries_table(named, resolution, n_conditions) -> pd.DataFrame:
    tables = []
    for name, part, offset in named:
        edges, strength = part.boundaries[0], part.strength()
        change = np.full(len(edges), "same", dtype=object)
        if n_conditions == 2:
            moved = part.boundaries[1] != edges
            change[moved] = "lost"
            edges = np.concatenate([edges, part.boundaries[1][moved]])
            strength = np.concatenate([strength, strength[moved]])
            change = np.concatenate([change, np.full(int(moved.sum()), "gained", dtype=object)])
        order = np.argsort(edges, kind="stable")
        tables.append(
            pd.DataFrame(
                {
                    "chrom": name,
                    "start": edges[order] * resolution,
                    "bin": edges[order] + offset,
                    "strength": strength[order],
                    "change": change[order].astype(str),
                }
            )
        )
    return pd.concat(tables, ignore_index=True)


def _stripes_table(named, resolution) -> pd.DataFrame:
    return pd.concat(
        [
            pd.DataFrame(
                {
                    "chrom": name,
                    "start": part.stripes[:, 0] * resolution,
                    "end": (part.stripes[:, 0] + part.stripes[:, 1]) * resolution,
                }
            )
            for name, part, _ in named
        ],
        ignore_index=True,
    )
