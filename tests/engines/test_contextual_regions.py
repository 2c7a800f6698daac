"""The model of regions on planted motifs: what it learns, what it keeps, what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from no_warnings import no_warnings

from diffbio_sc.engines.contextual import RegionModel, RegionSet, _falling_rate, calibrate, fit_regions
from diffbio_sc.engines.contextual_cells import choose_copies, context_codes, random_codes
from diffbio_sc.engines.contextual_folds import balanced_folds, choose_split, pieces
from diffbio_sc.genome.region_set import density, neighbour_columns, neighbour_means
from diffbio_sc.genome.sequences import encode, one_hot, reverse_complement
from diffbio_sc.numerics.ranking import auroc

MOTIFS = ["AGATAAGG", "TGACTCAG", "CCGGAAGT"]
SIZE, LENGTH = 640, 40


def planted(seed=0, size=SIZE):
    """Regions with motifs, of which each cell type reads its own; the last cell type reads what the first does."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 4, (size, LENGTH)).astype(np.int8)
    holds = rng.random((size, 3)) < 0.5
    for number, motif in enumerate(encode(MOTIFS)):
        for row in np.flatnonzero(holds[:, number]):
            place = 2 + 12 * number + rng.integers(0, 3)
            tokens[row, place : place + 8] = motif if rng.random() < 0.5 else reverse_complement(motif)
    labels = np.stack([holds[:, 0], holds[:, 1], holds[:, 2], holds[:, 0]], axis=1) ^ (rng.random((size, 4)) < 0.1)
    return tokens, labels.astype(np.float32), np.arange(size) * 10 // size


def context_of(seed=0):
    """Expression by which the fourth cell type is like the first."""
    expression = np.random.default_rng(seed).normal(size=(4, 12))
    expression[3] = expression[0] + 0.1
    return expression


@pytest.fixture(scope="module")
def model():
    tokens, labels, chromosome = planted()
    split = np.where(chromosome < 7, 0, np.where(chromosome < 8, 1, 2))
    return fit_regions(
        tokens, labels, chromosome=chromosome, split=split, tf_context=context_of(), n_networks=2, max_epochs=6, rng=0
    )


def quick(tokens, labels, chromosome, **options):
    """A fit without what takes time."""
    return fit_regions(tokens, labels, chromosome=chromosome, refine=False, average=False, **options)


def test_planted_motifs_are_learned(model):
    tokens, labels, _ = planted(seed=1, size=400)
    logits = model.predict(tokens)
    areas = [auroc(labels[:, cell], logits[:, cell]) for cell in range(4)]
    assert min(areas) > 0.8  # of .9 that labels with a tenth exchanged allow
    assert model.report["metrics"]["start"]["test"]["auroc"] > 0.75
    assert model.report["mode"] == "sequence"
    assert model.report["context"] == "tf"


def test_what_is_kept_has_the_lowest_validation_loss(model):
    losses = model.report["validation_loss"]
    kept = model.report["kept"]
    assert losses[kept] == min(losses[name] for name in ("start", "refined", "averaged") if name in losses)
    assert losses[kept] <= losses["start"]
    assert f"{losses['start']:.4f}" in model.report["reason"]


def test_both_strands_are_the_same_exactly(model):
    tokens, _, _ = planted(seed=2, size=50)
    tokens[0, 5:9] = 4
    np.testing.assert_array_equal(model.predict(reverse_complement(tokens)), model.predict(tokens))


def test_a_model_is_its_arrays(model, tmp_path):
    tokens, _, _ = planted(seed=3, size=50)
    np.savez(tmp_path / "model.npz", **model.arrays())
    with np.load(tmp_path / "model.npz") as stored:
        copy = RegionModel.from_arrays(stored, model.report)
    np.testing.assert_allclose(copy.predict(tokens), model.predict(tokens), atol=1e-6)
    new = context_of(seed=1)[:2]
    np.testing.assert_allclose(copy.predict(tokens, tf_context=new), model.predict(tokens, tf_context=new), atol=1e-6)
    with pytest.raises(KeyError, match="lack 'start_weights'"):
        RegionModel.from_arrays({k: v for k, v in model.arrays().items() if k != "start_weights"})


def test_logits_in_jax_are_those_of_the_engine(model):
    tokens, _, _ = planted(seed=4, size=20)
    tokens[1, :6] = 4
    found = jax.jit(model.one_hot_logits)(jnp.asarray(one_hot(tokens)))
    np.testing.assert_allclose(found, model.predict(tokens), atol=2e-5)
    np.testing.assert_allclose(model.predict(tokens, cells=[2, 0]), model.predict(tokens)[:, [2, 0]])


def test_gradients_reach_relaxed_sequences(model):
    tokens, _, _ = planted(seed=5, size=2)
    rng = np.random.default_rng(0)
    sequence = jnp.asarray(0.8 * one_hot(tokens) + 0.2 * rng.dirichlet(np.ones(4), (2, LENGTH)), jnp.float32)

    total_and_slope = jax.jit(jax.value_and_grad(lambda values: model.one_hot_logits(values).sum()))

    def total(values):
        return total_and_slope(values)[0]

    slope = total_and_slope(sequence)[1]
    assert np.isfinite(slope).all()
    for seed in range(2):
        direction = jnp.asarray(np.random.default_rng(seed).normal(size=sequence.shape), jnp.float32)
        step = 2e-3
        difference = float(total(sequence + step * direction) - total(sequence - step * direction)) / (2 * step)
        assert float((slope * direction).sum()) == pytest.approx(difference, rel=3e-2, abs=2e-2)


def test_the_start_as_an_operator_is_the_start(model):
    tokens, _, _ = planted(seed=6, size=20)
    found = model.sequence_ridge()(jnp.asarray(one_hot(tokens)))
    further = model.columns.scaled(tokens, None)
    np.testing.assert_allclose(found, model.start.logits(tokens, further), atol=1e-4)


def test_the_same_seed_gives_the_same_model(model):
    tokens, labels, chromosome = planted()
    split = np.where(chromosome < 7, 0, np.where(chromosome < 8, 1, 2))
    options = {"tf_context": context_of(), "n_networks": 2, "max_epochs": 6}
    again = fit_regions(tokens, labels, chromosome=chromosome, split=split, rng=0, **options)
    np.testing.assert_array_equal(again.predict(tokens), model.predict(tokens))


def test_out_of_fold_logits_know_nothing_of_random_labels():
    tokens, labels, chromosome = planted()
    shuffled = np.random.default_rng(7).permutation(labels)
    split = np.where(chromosome < 8, 0, 1)
    fitted = quick(tokens, shuffled, chromosome, split=split)
    # Weights alone remember what they were fitted to; calibrated out of fold, they are worth next to nothing.
    assert np.abs(fitted.predict(tokens) - fitted.predict(tokens).mean(0)).mean() < 0.15
    true = quick(tokens, labels, chromosome, split=split)
    assert np.abs(true.predict(tokens) - true.predict(tokens).mean(0)).mean() > 0.5


def test_calibration_is_logistic_regression():
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(8)
    scores = rng.normal(size=(300, 3))
    labels = (rng.random((300, 3)) < 1 / (1 + np.exp(-2 * scores + 1))).astype(float)
    labels[:, 2] = 1
    labels[::2, 1] = np.nan
    slope, intercept = calibrate(scores, labels)
    for cell, rows in ((0, slice(None)), (1, slice(1, None, 2))):
        peer = LogisticRegression(C=1e6).fit(scores[rows, cell : cell + 1], labels[rows, cell])
        assert slope[cell] == pytest.approx(peer.coef_[0, 0], rel=0.03)
        assert intercept[cell] == pytest.approx(peer.intercept_[0], rel=0.05)
    assert slope[2] == 0
    assert intercept[2] == pytest.approx(np.log(300.5 / 0.5))


def test_regions_without_labels_are_as_if_dropped():
    tokens, labels, chromosome = planted()
    split = np.where(chromosome < 8, 0, 1)
    blank = labels.copy()
    blank[::8] = np.nan  # as many of each chromosome
    kept = np.isfinite(blank[:, 0])
    one = quick(tokens, blank, chromosome, split=split)
    other = quick(tokens[kept], labels[kept], chromosome[kept], split=split[kept])
    np.testing.assert_allclose(one.predict(tokens), other.predict(tokens), atol=1e-4)


def test_missing_labels_of_one_cell_type_change_the_others_little():
    tokens, labels, chromosome = planted()
    split = np.where(chromosome < 8, 0, 1)
    holes = labels.copy()
    holes[np.random.default_rng(9).random(SIZE) < 0.5, 1] = np.nan
    whole, fitted = (quick(tokens, y, chromosome, split=split).predict(tokens) for y in (labels, holes))
    assert np.isfinite(fitted).all()
    assert np.corrcoef(whole[:, 0], fitted[:, 0])[0, 1] > 0.98
    assert auroc(labels[:, 1], fitted[:, 1]) > 0.7


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_a_constant_cell_type_warns_and_has_no_measure():
    tokens, labels, chromosome = planted()
    labels[:, 2] = 0
    with pytest.warns(UserWarning, match=r"cell types \[2\] have labels of one kind alone"):
        fitted = fit_regions(tokens, labels, chromosome=chromosome, refine=False)
    logits = fitted.predict(tokens)
    assert np.isfinite(logits).all()
    assert (logits[:, 2] < -3).all()
    assert np.isfinite(fitted.report["metrics"]["start"]["validation"]["auroc"])


def test_one_chromosome_is_divided_into_blocks():
    tokens, labels, _ = planted()
    fitted = quick(tokens, labels, np.zeros(SIZE, int))
    assert fitted.report["n_validation"] >= 0.08 * fitted.report["n_train"]
    assert fitted.report["n_train"] + fitted.report["n_validation"] == SIZE
    assert fitted.report["validation_chromosomes"].tolist() == [0]


def test_a_few_hundred_regions_are_enough():
    tokens, labels, chromosome = planted(size=200)
    fitted = quick(tokens, labels, chromosome)
    assert fitted.report["kept"] == "start"
    fresh, truth, _ = planted(seed=1, size=400)
    assert auroc(truth[:, 0], fitted.predict(fresh)[:, 0]) > 0.6


def test_pieces_folds_and_splits_keep_chromosomes_whole():
    chromosome = np.repeat([3, 1, 8, 2, 9, 4], [50, 10, 30, 30, 20, 40])
    piece = pieces(chromosome, None)
    assert len(np.unique(np.stack([piece, chromosome]), axis=1).T) == 6
    fold = balanced_folds(piece)
    assert len(np.unique(fold)) == 5
    assert np.bincount(fold).max() == 50
    for code in range(6):
        assert len(np.unique(fold[piece == code])) == 1
    generator = np.random.default_rng(0)
    split = choose_split(None, chromosome, None, generator)
    held_out = np.unique(chromosome[split == 1])
    assert set(chromosome[split == 0]).isdisjoint(held_out)
    assert 0.08 * 180 <= (split == 1).sum() < 90
    given = np.where(chromosome == 3, 2, 0)
    split = choose_split(given, chromosome, None, generator)
    assert (split[given == 2] == 2).all()
    assert (split == 1).sum() >= 0.08 * 130
    given = np.where(chromosome == 3, 1, 0)
    np.testing.assert_array_equal(choose_split(given, chromosome, None, generator), given)
    position = np.random.default_rng(1).permutation(100)
    block = pieces(np.zeros(100, int), position)
    assert (np.diff(block[np.argsort(position)]) >= 0).all()
    assert np.bincount(block).tolist() == [5] * 20
    # All training on one chromosome of many: its blocks are held out.
    given = np.where(chromosome == 3, 0, 2)
    split = choose_split(given, chromosome, None, generator)
    assert 4 <= (split == 1).sum() < 25
    assert len(np.unique(balanced_folds(pieces(chromosome[split == 0], None)))) == 5
    with pytest.raises(ValueError, match="1 training region: none can be held out"):
        choose_split(np.array([0, 2, 2]), np.array([0, 0, 1]), None, generator)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"labels": np.full((SIZE, 2), 0.5)},
            "labels must be 0, 1 or NaN .* the first is 0.5 of region 0 in cell type 0",
        ),
        ({"labels": np.zeros((3, 2))}, r"labels must be \(regions, cell types\) with 640 rows"),
        ({"tokens": np.zeros((SIZE, 8), np.int8)}, "at least 12 bases, found 8"),
        ({"chromosome": np.zeros(3, int)}, "chromosome must have one code for each of 640 regions"),
        ({"split": np.ones(SIZE, int)}, "split has no training region"),
        ({"split": np.full(SIZE, 3)}, "split must be whole numbers from 0 to 2"),
        ({"labels": np.full((SIZE, 2), np.nan)}, "no training region has a label"),
        ({"tf_context": np.zeros((3, 2))}, "tf_context must be .* with 4 rows"),
        ({"tf_context": np.full((4, 2), np.nan)}, "NaN in every cell type"),
        ({"tf_context": np.array([[1, np.nan]] * 4)}, "tf_context of cell type 0 has some entries"),
        (
            {"neighbourhood": RegionSet(np.zeros(3, int), np.zeros(3, int))},
            "neighbourhood.chromosome must have one entry",
        ),
        ({"motifs": {"m": np.zeros((50, 4))}}, "motif 'm' has 50 places, more than the 40 bases"),
        ({"max_epochs": 0}, "max_epochs must be a whole number of at least 1"),
    ],
)
def test_bad_input_is_named(change, message):
    tokens, labels, chromosome = planted()
    given = {"tokens": tokens, "labels": labels, "chromosome": chromosome} | change
    with pytest.raises(ValueError, match=message):
        fit_regions(given.pop("tokens"), given.pop("labels"), **given)


def test_prediction_refuses_what_does_not_fit(model):
    tokens, _, _ = planted(size=4)
    with pytest.raises(ValueError, match="sequences of 40 bases, found 20"):
        model.predict(tokens[:, :20])
    with pytest.raises(ValueError, match="fitted to sequences alone"):
        model.predict(tokens, neighbourhood=RegionSet(np.zeros(4, int), np.arange(4)))
    with pytest.raises(ValueError, match=r"tf_context must be \(cell types, 12 factors\)"):
        model.predict(tokens, tf_context=np.zeros((1, 3)))
    with pytest.raises(ValueError, match="row 0 has entries not finite"):
        model.predict(tokens, tf_context=np.full((1, 12), np.nan))
    assert model.predict(tokens[:0]).shape == (0, 4)


def test_unseen_cell_types_are_copies_of_near_ones(model):
    tokens, _, _ = planted(seed=10, size=30)
    new = context_of()[[1]] + 0.01
    weights = model.mixing(new)
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-6)
    assert weights[0].argmax() == 1
    np.testing.assert_allclose(model.predict(tokens, tf_context=new), model.predict(tokens) @ weights.T, atol=1e-5)
    assert model.report["unseen_cells"]["ceiling"] > model.report["unseen_cells"]["mean"] - 0.1
    nearest = model.copies._replace(softness=0.0).weights(new)
    assert nearest.tolist() == [[0, 1, 0, 0]]


def test_the_softness_is_that_of_the_best_copies():
    rng = np.random.default_rng(11)
    groups = np.repeat([0, 1], 4)
    context = np.eye(2)[groups] @ rng.normal(size=(2, 10)) + 0.05 * rng.normal(size=(8, 10))
    truth = rng.normal(size=(500, 2))[:, groups]
    labels = (truth + 0.5 * rng.normal(size=truth.shape) > 0).astype(float)
    logits = truth + 0.8 * rng.normal(size=truth.shape)
    copies = choose_copies(context, np.arange(8), labels, logits)
    # Four alike, each with noise of its own: the mean of a group beats the nearest and the mean of all.
    assert 0 < copies.softness < np.inf
    assert copies.report["weighted"] > copies.report["nearest"]
    assert copies.report["weighted"] > copies.report["mean"]
    weights = copies.weights(context[[0]])
    assert weights[0, :4].sum() > 0.9


def test_codes_of_contexts_and_of_chance():
    context = np.concatenate([np.random.default_rng(12).normal(size=(5, 9)), np.full((2, 9), np.nan)])
    codes = context_codes(context)
    # Nothing is lost: what all cell types share, too, can be added.
    np.testing.assert_allclose(codes @ codes.T, np.eye(7), atol=1e-5)
    np.testing.assert_allclose(codes[:5, 0], 1 / np.sqrt(5), rtol=1e-6)
    np.testing.assert_array_equal(codes[5:], np.eye(2, 7, 5))
    centred = context[:5] - context[:5].mean(0)
    left = np.linalg.svd(centred / context[:5].std(0), full_matrices=False)[0][:, 0]
    assert abs(left @ codes[:5, 1]) == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(context_codes(np.ones((1, 3))), [[1]])
    chance = random_codes(6, np.random.default_rng(0))
    np.testing.assert_allclose(chance @ chance.T, np.eye(6), atol=1e-6)


def test_random_context_is_named_in_the_report():
    tokens, labels, chromosome = planted()
    fitted = quick(tokens, labels, chromosome, tf_context=context_of(), random_context=True)
    assert fitted.report["context"] == "random"


def scattered(seed=0, size=SIZE):
    rng = np.random.default_rng(seed)
    return RegionSet(np.arange(size) * 10 // size, rng.integers(0, 3_000_000, size), rng.integers(0, 2, size))


def test_neighbour_columns_are_counted_by_hand():
    regions = scattered(size=80)
    found = neighbour_columns(regions, 2)
    distances = (500, 1_000, 5_000, 20_000, 50_000, 200_000)
    for row in range(80):
        same = (regions.chromosome == regions.chromosome[row]) & (np.arange(80) != row)
        away = np.abs(regions.position - regions.position[row])
        before = away[same & (regions.position <= regions.position[row])].min(initial=200_000)
        after = away[same & (regions.position >= regions.position[row])].min(initial=200_000)
        expected = [np.log1p(min(before, after)), np.log1p(max(before, after))]
        expected += [np.log1p((same & (away <= d)).sum()) for d in distances]
        for code in (0, 1):
            expected += [np.log1p((same & (away <= d) & (regions.group == code)).sum()) for d in distances]
        expected.append(regions.group[row] == 0)
        np.testing.assert_allclose(found[row], expected, rtol=1e-5)


def test_neighbour_means_leave_the_region_itself_out():
    regions = scattered(size=80)
    values = np.random.default_rng(1).normal(size=(80, 3))
    found = neighbour_means(regions, values, np.array([7.0, 8.0, 9.0])).reshape(80, 3, 3)
    for row in range(80):
        away = np.abs(regions.position - regions.position[row])
        for number, distance in enumerate((1_000, 5_000, 50_000)):
            near = (regions.chromosome == regions.chromosome[row]) & (away <= distance) & (np.arange(80) != row)
            expected = values[near].mean(0) if near.any() else [7, 8, 9]
            np.testing.assert_allclose(found[row, number], expected, rtol=1e-4, atol=1e-5)
    away = np.abs(regions.position[:, None] - regions.position)
    near = (away <= 50_000) & (regions.chromosome[:, None] == regions.chromosome)
    expected = [near[regions.chromosome == c].sum(1).mean() - 1 for c in range(10)]
    np.testing.assert_allclose(density(regions), expected)


def test_a_neighbourhood_is_a_mode_of_its_own():
    tokens, labels, chromosome = planted()
    regions = scattered()
    crowded = neighbour_columns(regions, 2)[:, 6]
    labels = np.where((crowded > np.median(crowded))[:, None], labels, 0).astype(np.float32)
    split = np.where(chromosome < 8, 0, 1)
    alone = quick(tokens, labels, chromosome, split=split)
    options = {"split": split, "neighbourhood": regions, "n_networks": 1, "max_epochs": 3}
    with no_warnings():
        fitted = fit_regions(tokens, labels, chromosome=chromosome, **options)
        logits = fitted.predict(tokens, neighbourhood=regions)
    assert fitted.report["mode"] == "neighbourhood"
    measured = [m.report["metrics"]["start"]["validation"]["auroc"] for m in (alone, fitted)]
    assert measured[1] > measured[0] + 0.05
    given = fitted.neighbourhood_columns(tokens, regions)
    np.testing.assert_allclose(
        jax.jit(fitted.one_hot_logits)(jnp.asarray(one_hot(tokens[:20])), neighbourhood=given[:20]),
        logits[:20],
        atol=5e-5,
    )
    with pytest.raises(ValueError, match="give where the regions lie"):
        fitted.predict(tokens)
    with pytest.raises(ValueError, match="must have the codes 0 ... 1"):
        fitted.predict(tokens, neighbourhood=regions._replace(group=None))
    sparse = regions._replace(position=regions.position * 50)
    with pytest.warns(UserWarning, match="others within 50 kb on average, those that the model was fitted to"):
        fitted.predict(tokens, neighbourhood=sparse)


def test_motifs_become_columns():
    tokens, labels, chromosome = planted(size=160)
    matrices = {motif: 2.0 * (np.eye(4)[encode([motif])[0]] - 0.25) for motif in MOTIFS}
    split = np.where(chromosome < 8, 0, 1)
    without, fitted = (quick(tokens, labels, chromosome, split=split, motifs=m) for m in (None, matrices))
    assert set(fitted.columns.motif_names) - set(without.columns.motif_names) == set(MOTIFS)
    fresh, truth, _ = planted(seed=1, size=400)
    areas = [np.mean([auroc(truth[:, c], m.predict(fresh)[:, c]) for c in range(4)]) for m in (without, fitted)]
    assert areas[1] > areas[0] + 0.01
    np.testing.assert_allclose(
        jax.jit(fitted.one_hot_logits)(jnp.asarray(one_hot(tokens[:20]))), fitted.predict(tokens[:20]), atol=2e-5
    )
    copy = RegionModel.from_arrays(fitted.arrays())
    np.testing.assert_array_equal(copy.predict(tokens), fitted.predict(tokens))


def test_the_rate_falls_as_optax_has_it():
    steps = np.arange(0, 80, 3, dtype=np.int32)
    np.testing.assert_allclose(_falling_rate(60)(steps), optax.cosine_decay_schedule(1e-3, 60, 0.1)(steps), rtol=1e-6)
