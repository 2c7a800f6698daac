from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from diffbio_sc._anndata.marks import choose_emission, read_marks
from diffbio_sc._anndata.results import make_record, write_results
from diffbio_sc._logging import logger
from diffbio_sc._options import check_options

if TYPE_CHECKING:
    from anndata import AnnData


def select_n_states(
    adata: AnnData,
    *,
    n_states: Sequence[int] = tuple(range(2, 21)),
    emission: Literal["auto", "bernoulli", "poisson", "negative_binomial", "gaussian", "multinomial"] = "auto",
    layer: str | None = None,
    mask: str | None = None,
    axis: Literal["var", "obs"] | None = None,
    cell_type_key: str | None = None,
    folds: int = 3,
    effort: Literal["fast", "default"] = "fast",
    key_added: str = "select_n_states",
    rng: int | np.random.Generator = 0,
    copy: bool = False,
) -> AnnData | None:
    """Choose the number of chromatin states by the likelihood of held-out chromosomes.

    Chromosomes are dealt to folds; for each number of states the model fitted to the others judges each fold. With few
    chromosomes these are cut into pieces, at least 20 in all. The likelihood of the data a model was fitted to always
    rises with the number of states; that of other data does not.

    Parameters
    ----------
    adata
        Object with bins and marks, as for :func:`diffbio_sc.tl.chromatin_states`.
    n_states
        Numbers of states to try.
    emission, layer, mask, axis, cell_type_key, effort
        As for :func:`diffbio_sc.tl.chromatin_states`.
    folds
        Number of folds, at least 2.
    key_added
        Key of the result in ``.uns``.
    rng
        Seed or generator of folds, starts and moves.
    copy
        Return a copy instead of writing into ``adata``.

    Returns
    -------
    None, or the copy. Writes `.uns["select_n_states"]`, a dict of

    `table` : DataFrame
        A row for each number of states: ``n_states``, ``log_likelihood`` (held out, for each bin), ``standard_error``
        (over pieces), ``difference`` to the best and its ``difference_error``, from differences piece by piece.
    `best` : int
        Number of states of the largest held-out likelihood.
    `chosen` : int
        Smallest number of states that is not worse than the best by more than a standard error of the difference.

    and ``emission_kind``, ``params``, ``version``, ``report``.

    Raises
    ------
    KeyError, ValueError
        As for :func:`diffbio_sc.tl.chromatin_states`. Nothing has been written then.

    Notes
    -----
    On large data the likelihood may rise up to more states than one cares to name: every state is then real in the
    sense that it is found again on other chromosomes. ``table`` shows where the gain becomes small.

    Examples
    --------
    >>> import diffbio_sc as dbio
    >>> adata = dbio.datasets.simulate_chromatin_states(n_bins=2000)
    >>> dbio.tl.select_n_states(adata, n_states=[2, 3, 4], folds=2)
    >>> list(adata.uns["select_n_states"]["table"]["n_states"])
    [2, 3, 4]
    """
    check_options(select_n_states, locals(), n_states="[1, inf)", folds="[2, inf)")
    began = time.perf_counter()
    params = {name: value for name, value in locals().items() if name not in ("adata", "began")}
    numbers = np.unique(np.asarray(list(n_states), np.int64))
    data = read_marks(adata, layer=layer, mask=mask, axis=axis, cell_type_key=cell_type_key)
    family = choose_emission(data.kinds, emission, adata, data.axis)
    params["emission"], params["axis"], params["n_states"] = family, data.axis, numbers
    bins = data.rows.shape[0]
    if numbers.max() > bins * (folds - 1) // folds:
        raise ValueError(f"n_states={numbers.max()} is more than the bins that models are fitted to, of {bins} bins.")

    from diffbio_sc.engines.chromatin_states import held_out

    found = held_out(
        data.observations(discrete=family != "gaussian"),
        [int(number) for number in numbers],
        family=family,
        folds=int(folds),
        effort=effort,
        rng=np.random.default_rng(rng),
        report=lambda states, value: logger.debug(f"{states} states: held-out log-likelihood {value:.6f} a bin"),
    )
    table = pd.DataFrame(
        {
            "n_states": found.n_states,
            "log_likelihood": found.log_likelihood,
            "standard_error": found.standard_error,
            "difference": found.difference,
            "difference_error": found.difference_error,
        },
        index=pd.Index(found.n_states.astype(str), name="states"),
    )
    report = {
        "history": {},
        "converged": True,
        "steps": len(table) * int(folds),
        "seconds": time.perf_counter() - began,
    }
    record = make_record(params, report, table=table, best=found.best, chosen=found.chosen, emission_kind=family)
    logger.info(f"held-out likelihood is largest at {found.best} states; {found.chosen} are as good within its error.")
    if copy:
        adata = adata.copy()
    write_results(adata, uns={key_added: record})
    return adata if copy else None
