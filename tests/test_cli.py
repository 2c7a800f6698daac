from __future__ import annotations

import pytest

from diffbio_sc._cli import main


def test_demo_writes_figure_and_result(tmp_path, capsys):
    import anndata

    assert main(["demo", "--output", str(tmp_path), "--seed", "1"]) == 0
    printed = capsys.readouterr().out
    error = float(printed.split("root mean square error")[1].split()[0])
    assert error < 0.12  # equal proportions everywhere: 0.25
    assert (tmp_path / "diffbio_sc_demo.png").stat().st_size > 20_000
    result = anndata.read_h5ad(tmp_path / "diffbio_sc_demo.h5ad")
    assert result.obsm["deconvolution"].sum(axis=1).to_numpy() == pytest.approx(1, abs=1e-5)


def test_no_command_shows_usage(capsys):
    with pytest.raises(SystemExit) as stop:
        main([])
    assert stop.value.code == 2
    assert "demo" in capsys.readouterr().err
