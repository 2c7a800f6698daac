from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from diffbio_sc._options import check_options

if TYPE_CHECKING:
    from anndata import AnnData

_LETTERS = np.array(["A", "C", "G", "T"])
_GC = 0.42  # of the background
_MOTIF_WIDTH = 10
_AGREEMENT = 0.91  # probability of a motif's main letter at each of its positions
_ON, _OFF, _SPREAD = 7.0, 1.0, 0.6  # log2(CPM + 1) of a factor where it acts, and where it does not
_BASE, _EFFECT = -2.5, 3.5  # log-odds of a region without an acting site, and what one such site adds
_SITES = 1.2  # mean number of sites in a region
_FURTHER_SITE = 0.15  # what each acting site beyond the first adds, as a part of the first's effect
_DISTANCE = 20_000  # mean distance of neighbouring regions
_LOOP, _DECAY, _RESTS = 0.9, 0.4, 3.0  # contact of a loop; of neighbouring tokens; tokens over which it falls to 1/e


def simulate_regulatory_regions(
    *,
    n_regions: int = 3000,
    n_cell_types: int = 6,
    n_factors: int = 8,
    n_other_genes: int = 12,
    n_chromosomes: int = 10,
    width: int = 100,
    token: int | None = None,
    rng: int | np.random.Generator = 0,
) -> AnnData:
    """Draw regions of a genome that are open in some cell types by the motifs in their sequence; no download.

    Each transcription factor has a motif and acts in the cell types that express it. A region is open in a cell type
    with a probability that depends on the sites in it whose factor acts there. The first factor acts in all cell types.
    With ``token`` regions are wide windows with a contact map each, and a site acts only where its token is in contact
    with the window's promoter, so that neither sequence nor contacts alone tell the answer.

    Parameters
    ----------
    n_regions
        Regions, shared out evenly among the chromosomes.
    n_cell_types
        Cell types.
    n_factors
        Transcription factors with a motif, at least 2.
    n_other_genes
        Genes whose expression tells nothing of the regions.
    n_chromosomes
        Chromosomes ``chr1``, ``chr2``, ...
    width
        Bases in a region.
    token
        Bases in a token of a window, a divisor of ``width`` that leaves at least four; default no windows.
    rng
        Seed or generator.

    Returns
    -------
    AnnData of cell types by regions:

    - ``.X``: uint8, 1 where a region is open
    - ``.layers["probability"]``: float32, the probability of that
    - ``.var``: ``chrom`` (category), ``start``, ``end`` and ``sequence``
    - ``.obsm["tf_context"]``: table of log2(CPM + 1) of factors (``TF1``, ...) and other genes (``GENE1``, ...)
    - ``.varm["track"]``, ``.varm["contacts"]``: with ``token``, open tokens, uint8 (regions, cell types, tokens), and
      contact maps between 0 and 1, float32 (regions, tokens, tokens)
    - ``.uns["truth"]``: ``factors``; ``motifs``, probabilities of the letters A, C, G and T (factors, 10, 4);
      ``gates``, whether a factor acts in a cell type (cell types, factors); and ``sites``, a table of all planted
      sites: ``region`` (position in ``.var``), ``factor``, ``start``, ``end`` (within the region), ``strand`` and, with
      ``token``, ``in_contact``. With ``token`` also ``promoter`` (its motif), and ``promoter_token`` of each region.

    Raises
    ------
    ValueError
        If a number is out of range.

    Examples
    --------
    >>> import diffbio_sc as dbio
    >>> adata = dbio.datasets.simulate_regulatory_regions(n_regions=500)
    >>> adata.shape, adata.var["sequence"].str.len().unique().tolist()
    ((6, 500), [100])
    """
    import anndata

    check_options(
        simulate_regulatory_regions,
        locals(),
        n_regions="[1, inf)",
        n_cell_types="[1, inf)",
        n_factors="[2, inf)",
        n_other_genes="[0, inf)",
        n_chromosomes="[1, inf)",
        width=f"[{2 * _MOTIF_WIDTH}, inf)",
        token=f"[{_MOTIF_WIDTH}, inf)",
    )
    n_regions, n_cell_types, n_factors, n_other_genes, n_chromosomes, width = (
        int(n_regions),
        int(n_cell_types),
        int(n_factors),
        int(n_other_genes),
        int(n_chromosomes),
        int(width),
    )
    token = None if token is None else int(token)
    if n_regions < n_chromosomes:
        raise ValueError(f"n_regions must be at least n_chromosomes, found {n_regions} and {n_chromosomes}.")
    if token is not None:
        if width % token or width // token < 4:
            raise ValueError(
                f"token must divide width and leave at least four tokens, found token={token} and width={width}."
            )
    generator = np.random.default_rng(rng)
    motifs = _draw_motifs(n_factors + (token is not None), generator)
    gates = _draw_gates(n_cell_types, n_factors, generator)
    tokens = _draw_background(n_regions, width, generator)
    if token is None:
        sites = _plant(tokens, motifs, generator)
        acting = np.ones(len(sites), bool)
        extra: dict[str, np.ndarray] = {}
    else:
        sites, extra = _plant_windows(tokens, motifs, token, generator)
        acting = sites["in_contact"].to_numpy()
    factor = sites["factor"].to_numpy()
    # Acting sites of each region and cell type.
    active = (gates[:, factor] & acting).astype(np.float64)
    count = np.stack([np.bincount(sites["region"], row, n_regions) for row in active])
    probability = _probability(count)
    # A draw for each region, shared by its cell types: those of equal sites agree.
    draw = generator.random(n_regions)
    names = [f"TF{number}" for number in range(1, n_factors + 1)]
    cells = [f"cell{number}" for number in range(1, n_cell_types + 1)]
    var = _places(n_regions, n_chromosomes, width, generator)
    letters = _LETTERS[tokens]
    var["sequence"] = ["".join(row) for row in letters]
    adata = anndata.AnnData((draw < probability).astype(np.uint8), obs=pd.DataFrame(index=cells), var=var)
    adata.layers["probability"] = probability.astype(np.float32)
    others = [f"GENE{number}" for number in range(1, n_other_genes + 1)]
    expression = np.where(gates, _ON, _OFF) + generator.normal(0, _SPREAD, gates.shape)
    noise = generator.uniform(0, _ON, (1, n_other_genes)) + generator.normal(0, 1, (n_cell_types, n_other_genes))
    values = np.maximum(np.concatenate([expression, noise], axis=1), 0).astype(np.float32)
    adata.obsm["tf_context"] = pd.DataFrame(values, index=adata.obs_names, columns=names + others)
    if token is not None:
        adata.varm["track"] = _token_track(sites, gates, n_regions, width // token, token)
        adata.varm["contacts"] = extra.pop("contacts")
        adata.X = adata.varm["track"].max(axis=2).T.copy()
        adata.layers["probability"] = adata.X.astype(np.float32)
    sites["factor"] = pd.Categorical.from_codes(factor, names)
    adata.uns["truth"] = {
        "factors": np.array(names),
        "motifs": motifs[:n_factors],
        "gates": gates,
        "sites": sites,
        **extra,
    }
    return adata


def _draw_motifs(number: int, rng: np.random.Generator) -> np.ndarray:
    """Letter probabilities (number, width, 4) of motifs that differ from each other on both strands."""
    main: list[np.ndarray] = []
    while len(main) < number:
        new = rng.integers(0, 4, _MOTIF_WIDTH)
        both = (new, 3 - new[::-1])
        if (both[0] == both[1]).mean() < 0.5 and all(_shared(one, other) < 6 for one in both for other in main):
            main.append(new)
    motifs = np.full((number, _MOTIF_WIDTH, 4), (1 - _AGREEMENT) / 3)
    np.put_along_axis(motifs, np.array(main)[:, :, None], _AGREEMENT, axis=2)
    return motifs


def _shared(one: np.ndarray, other: np.ndarray) -> int:
    """Most equal letters over shifts of up to three positions."""
    width = len(one)
    return max(
        int((one[max(0, shift) : width + min(0, shift)] == other[max(0, -shift) : width + min(0, -shift)]).sum())
        for shift in range(-3, 4)
    )


def _draw_gates(n_cell_types: int, n_factors: int, rng: np.random.Generator) -> np.ndarray:
    """Which factor acts where: the first everywhere, each other in some, no two cell types alike where possible."""
    if n_cell_types == 1:
        return np.ones((1, n_factors), bool)
    for _ in range(100):
        number = rng.integers(1, n_cell_types, n_factors - 1)
        rank = np.argsort(rng.random((n_cell_types, n_factors - 1)), axis=0).argsort(axis=0)
        gates = np.concatenate([np.ones((n_cell_types, 1), bool), rank < number], axis=1)
        if len(np.unique(gates, axis=0)) == n_cell_types:
            break
    return gates


def _draw_background(n_regions: int, width: int, rng: np.random.Generator) -> np.ndarray:
    shares = np.array([1 - _GC, _GC, _GC, 1 - _GC]) / 2
    return rng.choice(4, size=(n_regions, width), p=shares).astype(np.int8)


def _instances(motifs: np.ndarray, factor: np.ndarray, reverse: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One draw of a motif for each site (sites, width), on its strand."""
    cumulative = np.cumsum(motifs[factor], axis=2)
    drawn = (rng.random((len(factor), _MOTIF_WIDTH, 1)) > cumulative[:, :, :3]).sum(axis=2).astype(np.int8)
    return np.where(reverse[:, None], 3 - drawn[:, ::-1], drawn)


def _plant(tokens: np.ndarray, motifs: np.ndarray, rng: np.random.Generator) -> pd.DataFrame:
    """Sites that do not overlap, each in a place of its own among those a motif fits into."""
    n_regions, width = tokens.shape
    places = (width - _MOTIF_WIDTH // 2) // _MOTIF_WIDTH
    number = np.minimum(rng.poisson(_SITES, n_regions), places)
    region = np.repeat(np.arange(n_regions), number)
    slots = np.argsort(rng.random((n_regions, places)), axis=1)
    slot = np.concatenate([row[:taken] for row, taken in zip(slots, number, strict=True)])
    # A shift of the whole grid, so that sites start at any base.
    shift = rng.integers(0, width - places * _MOTIF_WIDTH + 1, n_regions)
    start = slot * _MOTIF_WIDTH + shift[region]
    return _write_sites(tokens, motifs, region, rng.integers(0, len(motifs), len(region)), start, rng)


def _write_sites(
    tokens: np.ndarray,
    motifs: np.ndarray,
    region: np.ndarray,
    factor: np.ndarray,
    start: np.ndarray,
    rng: np.random.Generator,
) -> pd.DataFrame:
    reverse = rng.random(len(region)) < 0.5
    columns = start[:, None] + np.arange(_MOTIF_WIDTH)
    tokens[region[:, None], columns] = _instances(motifs, factor, reverse, rng)
    return pd.DataFrame(
        {
            "region": region,
            "factor": factor,
            "start": start,
            "end": start + _MOTIF_WIDTH,
            "strand": pd.Categorical.from_codes(reverse.astype(np.int8), ["+", "-"]),
        }
    )


def _plant_windows(
    tokens: np.ndarray, motifs: np.ndarray, token: int, rng: np.random.Generator
) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """A promoter and two or three sites in tokens of their own; each site loops to the promoter or to another token."""
    n_regions, width = tokens.shape
    n_tokens = width // token
    order = np.argsort(rng.random((n_regions, n_tokens)), axis=1)
    promoter = order[:, 0]
    number = rng.integers(1, min(4, n_tokens - 1), n_regions)
    region = np.repeat(np.arange(n_regions), number)
    rank = np.arange(len(region)) - np.repeat(np.cumsum(number) - number, number)
    place = order[region, 1 + rank]
    in_contact = rng.random(len(region)) < 0.5
    other = order[region, n_tokens - 1]  # a token without promoter
    partner = np.where(in_contact, promoter[region], other)
    within = rng.integers(0, token - _MOTIF_WIDTH + 1, len(region))
    sites = _write_sites(
        tokens, motifs, region, rng.integers(0, len(motifs) - 1, len(region)), place * token + within, rng
    )
    sites["in_contact"] = in_contact & (partner != place)
    everywhere = np.arange(n_regions)
    start = promoter * token + rng.integers(0, token - _MOTIF_WIDTH + 1, n_regions)
    _write_sites(tokens, motifs, everywhere, np.full(n_regions, len(motifs) - 1), start, rng)
    distance = np.abs(np.subtract.outer(np.arange(n_tokens), np.arange(n_tokens)))
    contacts = np.repeat((_DECAY * np.exp(-(distance - 1) / _RESTS))[None], n_regions, axis=0)
    contacts *= rng.uniform(0.5, 1.0, contacts.shape)
    contacts[region, place, partner] = _LOOP
    contacts[region, partner, place] = _LOOP
    contacts = np.maximum(contacts, contacts.transpose(0, 2, 1))
    contacts[:, np.arange(n_tokens), np.arange(n_tokens)] = 1.0
    return sites, {
        "promoter": motifs[-1],
        "promoter_token": promoter,
        "contacts": contacts.astype(np.float32),
    }


def _token_track(sites: pd.DataFrame, gates: np.ndarray, n_regions: int, n_tokens: int, token: int) -> np.ndarray:
    track = np.zeros((n_regions, len(gates), n_tokens), np.uint8)
    place = sites["start"].to_numpy() // token
    for cell, row in enumerate(gates):
        acts = row[sites["factor"].to_numpy()] & sites["in_contact"].to_numpy()
        track[sites["region"].to_numpy()[acts], cell, place[acts]] = 1
    return track


def _probability(count: np.ndarray) -> np.ndarray:
    """Probability of being open with so many acting sites."""
    effect = np.where(count > 0, _EFFECT * (1 + _FURTHER_SITE * (count - 1)), 0.0)
    return 1 / (1 + np.exp(-(_BASE + effect)))


def _places(n_regions: int, n_chromosomes: int, width: int, rng: np.random.Generator) -> pd.DataFrame:
    lengths = np.full(n_chromosomes, n_regions // n_chromosomes)
    lengths[: n_regions % n_chromosomes] += 1
    chrom = np.repeat(np.arange(n_chromosomes), lengths)
    gap = width + rng.exponential(_DISTANCE, n_regions).astype(np.int64)
    total = np.cumsum(gap)
    start = total - np.repeat(total[np.cumsum(lengths) - lengths] - gap[np.cumsum(lengths) - lengths], lengths)
    return pd.DataFrame(
        {
            "chrom": pd.Categorical.from_codes(chrom, [f"chr{number}" for number in range(1, n_chromosomes + 1)]),
            "start": start,
            "end": start + width,
        },
        index=[f"chr{code + 1}:{first}-{first + width}" for code, first in zip(chrom, start, strict=True)],
    )
