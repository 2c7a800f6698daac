"""Models of chromatin states in ChromHMM's text format: writing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diffbio_sc._options import check_options
from diffbio_sc.io._byte_source import PathLike
from diffbio_sc.io._write_text import write_text

if TYPE_CHECKING:
    from diffbio_sc.engines.chromatin_state_model import ChromatinStateModel


def write_chromhmm_model(model: ChromatinStateModel, path: PathLike) -> None:
    """Write a model as ChromHMM does, so that ChromHMM can load it.

    Parameters
    ----------
    model
        Model with Bernoulli emissions, for example of :func:`diffbio_sc.get.chromatin_state_model`.
    path
        File to write; compressed by gzip if its name ends with ``.gz``. Numbers are written so that reading gives
        them back bit for bit. Labels and colours of the states have no place in this format.

    Returns
    -------
    None.

    Raises
    ------
    TypeError
        If ``model`` is no model.
    ValueError
        If the emissions are not Bernoulli, or a mark's name holds a tab or a line end.

    Examples
    --------
    >>> import diffbio_sc as dbio
    >>> adata = dbio.datasets.simulate_chromatin_states(n_bins=2000)
    >>> dbio.tl.chromatin_states(adata, n_states=4, effort="fast")
    >>> dbio.io.write_chromhmm_model(dbio.get.chromatin_state_model(adata), "model_4.txt")
    """
    from diffbio_sc.engines.chromatin_state_model import ChromatinStateModel

    check_options(write_chromhmm_model, locals())
    if not isinstance(model, ChromatinStateModel):
        raise TypeError(
            f"model must be a ChromatinStateModel, found {type(model).__name__}; of an AnnData take "
            "dbio.get.chromatin_state_model(adata)."
        )
    if model.emission_kind != "bernoulli":
        raise ValueError(
            f"ChromHMM's format holds Bernoulli emissions alone, found {model.emission_kind!r} emissions; keep this "
            "model in its AnnData (write_h5ad)."
        )
    bad = [mark for mark in model.marks if set(mark) & set("\t\r\n")]
    if bad:
        raise ValueError(f"names of marks must not hold tabs or line ends, found {bad[:5]}.")
    log_likelihood = "NaN" if model.log_likelihood is None else float(model.log_likelihood)
    rows: list[list[object]] = [
        [model.n_states, model.n_marks, model.state_order, log_likelihood, model.n_iterations or 0]
    ]
    rows += [["probinit", number, float(value)] for number, value in enumerate(model.initial, 1)]
    rows += [
        ["transitionprobs", before, after, float(value)]
        for before, values in enumerate(model.transition, 1)
        for after, value in enumerate(values, 1)
    ]
    rows += [
        ["emissionprobs", state, mark, name, present, float(value if present else 1 - value)]
        for state, values in enumerate(model.emission, 1)
        for mark, (name, value) in enumerate(zip(model.marks, values, strict=True))
        for present in (0, 1)
    ]
    write_text(path, "".join("\t".join(map(str, row)) + "\n" for row in rows))
