"""Files of reference statistics: round trips and one-line errors."""

import numpy as np
import pytest

from ddpm_jax.metrics import reference_stats
from ddpm_jax.metrics.frechet import fit_gaussian
from ddpm_jax.runtime.errors import FileAccessError, InvalidDataError

FEATURES = np.random.default_rng(0).standard_normal((20, 3)).astype(np.float32)
GAUSSIAN = fit_gaussian(FEATURES)
PROVENANCE = {"set": "digits", "split": "train", "extractor": {"features": "pixels"}}


def test_save_and_load_round_trip(tmp_path):
    for features in (FEATURES, None):
        reference_stats.save(tmp_path / "r.npz", reference_stats.Reference(GAUSSIAN, features, PROVENANCE))
        read = reference_stats.load(tmp_path / "r.npz")
        np.testing.assert_array_equal(read.gaussian.mean, GAUSSIAN.mean)
        np.testing.assert_array_equal(read.gaussian.covariance, GAUSSIAN.covariance)
        assert read.provenance == PROVENANCE
        assert (read.features is None) if features is None else (read.features == features).all()
    assert [file.name for file in tmp_path.iterdir()] == ["r.npz"]
    with pytest.raises(FileAccessError, match="cannot write"):
        reference_stats.save(tmp_path / "nowhere" / "r.npz", read)


def test_spatial_statistics_are_saved_and_read_with_the_names_of_guided_diffusion(tmp_path):
    spatial = fit_gaussian(FEATURES[:, :2])
    reference_stats.save(tmp_path / "r.npz", reference_stats.Reference(GAUSSIAN, None, PROVENANCE, spatial=spatial))
    assert set(np.load(tmp_path / "r.npz")) == {"mu", "sigma", "mu_s", "sigma_s", "provenance"}
    for ours, whole in zip(reference_stats.load(tmp_path / "r.npz").spatial, spatial, strict=True):
        np.testing.assert_array_equal(ours, whole)
    np.savez(tmp_path / "r.npz", mu=GAUSSIAN.mean, sigma=GAUSSIAN.covariance, mu_s=np.zeros(2), sigma_s=np.eye(3))
    with pytest.raises(InvalidDataError, match=r"holds mu_s \[2\] and sigma_s \[3, 3\]"):
        reference_stats.load(tmp_path / "r.npz")


def test_another_tools_mu_and_sigma_are_read(tmp_path):
    np.savez(tmp_path / "r.npz", mu=GAUSSIAN.mean, sigma=GAUSSIAN.covariance)
    read = reference_stats.load(tmp_path / "r.npz")
    np.testing.assert_array_equal(read.gaussian.covariance, GAUSSIAN.covariance)
    assert read.features is None
    assert read.provenance is None
    reference_stats.check_matches("r.npz", read.provenance, PROVENANCE)  # a file without provenance passes


def test_other_statistics_are_rejected_field_by_field():
    reference_stats.check_matches("r.npz", PROVENANCE | {"images": 3}, PROVENANCE)
    with pytest.raises(InvalidDataError, match=r'split is "train", wanted "test"; resolution is null, wanted 8$'):
        reference_stats.check_matches("r.npz", PROVENANCE, PROVENANCE | {"split": "test", "resolution": 8})


@pytest.mark.parametrize(
    ("arrays", "match"),
    [
        ({"mu": GAUSSIAN.mean}, "no sigma"),
        ({"other": np.zeros(3)}, "no mu and no sigma"),
        ({"mu": np.zeros(2), "sigma": np.eye(3)}, r"must be \[D\] and \[D, D\]"),
        ({"mu": np.zeros(3), "sigma": np.full((3, 3), np.nan)}, "not finite"),
        ({"mu": np.zeros(3), "sigma": np.triu(np.ones((3, 3)))}, "not symmetric"),
        ({"mu": np.zeros(3), "sigma": np.eye(3), "features": np.zeros((5, 2))}, "features"),
        ({"mu": np.array([{}, {}], object), "sigma": np.eye(2)}, "damaged or holds no arrays"),
        ({"mu": np.zeros(3), "sigma": np.eye(3), "provenance": np.array("{")}, "damaged"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_bad_arrays_are_a_one_line_error(tmp_path, arrays, match):
    np.savez(tmp_path / "r.npz", **arrays)
    with pytest.raises(InvalidDataError, match=match) as caught:
        reference_stats.load(tmp_path / "r.npz")
    assert "\n" not in str(caught.value)


def test_bad_files_are_a_one_line_error(tmp_path):
    with pytest.raises(FileAccessError, match="compute them with --mode=compute_stats"):
        reference_stats.load(tmp_path / "r.npz")
    reference_stats.save(tmp_path / "r.npz", reference_stats.Reference(GAUSSIAN, FEATURES, PROVENANCE))
    whole = (tmp_path / "r.npz").read_bytes()
    for damaged in (b"", b"not an archive", whole[:200], whole[: len(whole) // 2]):
        (tmp_path / "r.npz").write_bytes(damaged)
        with pytest.raises(InvalidDataError, match="damaged"):
            reference_stats.load(tmp_path / "r.npz")
