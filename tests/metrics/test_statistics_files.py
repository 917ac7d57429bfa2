"""Statistics, images and features of other tools: they are read or rejected by name; no pickle is executed."""

import pickle

import numpy as np
import pytest

from ddpm_jax.metrics import reference_stats
from ddpm_jax.metrics.frechet import fit_gaussian
from ddpm_jax.runtime.errors import InvalidDataError

RNG = np.random.default_rng(0)
FEATURES = RNG.standard_normal((20, 3)).astype(np.float32)
GAUSSIAN = fit_gaussian(FEATURES)
IMAGES = RNG.integers(0, 256, (6, 4, 4, 3), dtype=np.uint8)
LABELS = np.array([0, 2, 2, 0, 2, 2])


def assert_gaussian(read, rtol=1e-12):
    np.testing.assert_allclose(read.gaussian.mean, GAUSSIAN.mean, rtol=rtol)
    np.testing.assert_allclose(read.gaussian.covariance, GAUSSIAN.covariance, rtol=rtol, atol=1e-12)


def test_statistics_of_guided_diffusion_with_images(tmp_path):
    """VIRTUAL_imagenet256_labeled.npz and the like: moments of all images, with fewer images."""
    moments = {"mu": GAUSSIAN.mean, "sigma": GAUSSIAN.covariance}
    np.savez(tmp_path / "r.npz", arr_0=IMAGES, arr_1=LABELS, mu_s=np.zeros(2), sigma_s=np.eye(2), **moments)
    read = reference_stats.load(tmp_path / "r.npz")
    assert_gaussian(read)
    np.testing.assert_array_equal(read.images, IMAGES)
    assert read.count is None
    assert read.class_counts.tolist() == [2, 0, 4]
    assert read.features is None


@pytest.mark.parametrize("names", [("arr_0", "arr_1"), ("images", "labels")])
def test_images_in_an_npz(tmp_path, names):
    np.savez(tmp_path / "r.npz", **dict(zip(names, (IMAGES, LABELS), strict=True)))
    read = reference_stats.load(tmp_path / "r.npz")
    assert read.gaussian is None
    assert (read.count, read.class_counts.tolist()) == (6, [2, 0, 4])
    np.testing.assert_array_equal(read.images, IMAGES)


def test_a_single_array(tmp_path):
    np.save(tmp_path / "images.npy", IMAGES)
    read = reference_stats.load(tmp_path / "images.npy")
    np.testing.assert_array_equal(read.images, IMAGES)
    assert (read.count, read.class_counts) == (6, None)
    np.save(tmp_path / "features.npy", FEATURES)
    read = reference_stats.load(tmp_path / "features.npy")
    assert_gaussian(read)
    np.testing.assert_array_equal(read.features, FEATURES)
    assert read.count == 20


def test_a_pickle_of_edm2(tmp_path):
    held = {"fid": {"mu": GAUSSIAN.mean, "sigma": GAUSSIAN.covariance}, "fd_dinov2": {"mu": np.zeros(5), "sigma": np.eye(5)}}
    (tmp_path / "r.pkl").write_bytes(pickle.dumps(held))
    assert_gaussian(reference_stats.load(tmp_path / "r.pkl"))


def test_a_pickle_of_stylegan(tmp_path):
    """The attributes of its FeatureStats: sums of x and x x^T. It divides by N, where other tools divide by N - 1."""
    x = FEATURES.astype(np.float64)
    held = {"capture_all": False, "num_items": 20, "all_features": None, "raw_mean": x.sum(axis=0), "raw_cov": x.T @ x}
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        (tmp_path / "r.pkl").write_bytes(pickle.dumps(held, protocol))
        read = reference_stats.load(tmp_path / "r.pkl")
        np.testing.assert_allclose(read.gaussian.mean, GAUSSIAN.mean, rtol=1e-9)
        np.testing.assert_allclose(read.gaussian.covariance, GAUSSIAN.covariance * 19 / 20, rtol=1e-9)
        assert read.count == 20


class Evil:
    def __reduce__(self):
        return (print, ("this must not be printed",))


def test_no_pickle_is_executed(tmp_path, capsys):
    (tmp_path / "r.pkl").write_bytes(pickle.dumps({"mu": Evil()}))
    with pytest.raises(InvalidDataError, match=r"pickle of more than arrays \(builtins.print\)") as caught:
        reference_stats.load(tmp_path / "r.pkl")
    assert "\n" not in str(caught.value)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("array", "match"),
    [
        (IMAGES.transpose(0, 3, 1, 2), r"uint8 \[6, 3, 4, 4\]: images must be \[N, H, W, C\]"),
        (IMAGES / 255, r"float64 \[6, 4, 4, 3\]: images must be uint8"),
        (np.arange(5), r"int64 \[5\]: it must be images uint8 \[N, H, W, C\] or features"),
        (np.full((3, 2), np.nan), "not finite"),
    ],
)
def test_other_arrays_are_named(tmp_path, array, match):
    np.save(tmp_path / "r.npy", array)
    with pytest.raises(InvalidDataError, match=match) as caught:
        reference_stats.load(tmp_path / "r.npy")
    assert "\n" not in str(caught.value)


def test_other_files_are_named(tmp_path):
    import zipfile

    with zipfile.ZipFile(tmp_path / "r.pt", "w") as archive:
        archive.writestr("archive/data.pkl", b"")
    with pytest.raises(InvalidDataError, match="a PyTorch file"):
        reference_stats.load(tmp_path / "r.pt")
    np.savez(tmp_path / "r.npz", mean=np.zeros(3), cov=np.eye(3))
    with pytest.raises(InvalidDataError, match=r"no mu and no sigma, but mean \[3\], cov \[3, 3\]: write mu"):
        reference_stats.load(tmp_path / "r.npz")
    (tmp_path / "r.pkl").write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(InvalidDataError, match="a pickle of list"):
        reference_stats.load(tmp_path / "r.pkl")
    (tmp_path / "r.pkl").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(InvalidDataError, match="a pickle with a, no mu and sigma"):
        reference_stats.load(tmp_path / "r.pkl")


def test_statistics_have_an_identity(tmp_path):
    """By the hash of their images, or else of their numbers."""
    np.savez(tmp_path / "a.npz", mu=GAUSSIAN.mean, sigma=GAUSSIAN.covariance)
    np.savez(tmp_path / "b.npz", mu=GAUSSIAN.mean + 1, sigma=GAUSSIAN.covariance)
    a, b = (reference_stats.load(tmp_path / name).identity() for name in ("a.npz", "b.npz"))
    assert a != b
    assert a == reference_stats.load(tmp_path / "a.npz").identity()
    provenance = {"set": "digits", "split": "train", "images": 20, "images_sha256": "ab", "resolution": 8}
    assert reference_stats.Reference(GAUSSIAN, None, provenance).identity() == {
        name: provenance[name] for name in list(provenance)[:4]
    }
