"""Scores of two folders by torch-fidelity, pytorch-fid and clean-fid, with the same features, and by --mode=score.

pytorch-fid resizes and scales pixels otherwise than the network of published numbers; the rest of it is compared.
"""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import random_inception
from ddpm_jax.cli import score
from ddpm_jax.configs import defaults
from ddpm_jax.evaluation.sample_files import SampleFolder
from ddpm_jax.samplers.batched import GeneratedBatch

COUNT = 16
ALL = ("frechet", "kid", "inception_score", "precision_recall")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two folders of images 32x32: noise in pixels of 2x2 and of 4x4."""
    rng, made = np.random.default_rng(0), []
    for size in (2, 4):
        folder = tmp_path_factory.mktemp(f"noise_{size}")
        small = rng.integers(0, 256, (COUNT, 32 // size, 32 // size, 3), dtype=np.uint8)
        for index, image in enumerate(small.repeat(size, 1).repeat(size, 2)):
            Image.fromarray(image).save(folder / f"{index:02}.png")
        made.append(str(folder))
    return made


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """The random weights as a file of PyTorch."""
    state = {name: torch.from_numpy(array) for name, array in random_inception.random_state_dict(0).items()}
    state["fc.bias"] = torch.zeros(1008)
    state |= {name.replace("running_mean", "num_batches_tracked"): torch.tensor(0) for name in state if "running_mean" in name}
    file = tmp_path_factory.mktemp("weights") / "random.pth"
    torch.save(state, file)
    return str(file)


@pytest.mark.timeout(1500)
@pytest.mark.filterwarnings("ignore")  # of the packages
def test_all_scores_are_those_of_torch_fidelity(folders, weights, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    config = defaults.get_config()
    config.evaluation.update(inception_path=weights, metrics=ALL, batch_size=8)
    options = {"output": str(tmp_path / "out"), "given": ["config.evaluation.metrics"]}
    assert score.run(config, *folders, **options) == 0
    (ours,) = json.loads((tmp_path / "out" / "scores.json").read_text())["images"]

    import torch_fidelity  # imported lazily: takes seconds

    theirs = torch_fidelity.calculate_metrics(
        input1=folders[0],
        input2=folders[1],
        fid=True,
        isc=True,
        kid=True,
        prc=True,
        cuda=False,
        cache=False,
        verbose=False,
        samples_shuffle=False,
        kid_subset_size=COUNT // 2,  # as ours, for so few images
        batch_size=8,
        feature_extractor="inception-v3-compat",
        feature_layer_prc="2048",  # by default of VGG
        feature_extractor_weights_path=weights,
    )
    print({name: ours[name] for name in ("frechet", "kid", "inception score", "is_std", "precision", "recall")}, theirs)
    assert ours["frechet"] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-4)
    assert ours["kid"] == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-4)
    assert ours["inception score"] == pytest.approx(theirs["inception_score_mean"], rel=1e-4)
    assert ours["precision"] == theirs["precision"]
    assert ours["recall"] == theirs["recall"]


@pytest.mark.filterwarnings("ignore")
def test_clean_fid_reads_folders_of_png_files(tmp_path):
    """It computes the Fréchet distance of two folders as `png/` of --mode=sample: here in pixels, without its resize."""
    from cleanfid import fid  # imported lazily: takes seconds

    folders, rng = [], np.random.default_rng(0)
    for name, levels in (("a", 256), ("b", 200)):
        images = rng.integers(0, levels, (200, 4, 4, 3), dtype=np.uint8)
        files = SampleFolder(
            tmp_path / name, {}, num_images=200, image_shape=(4, 4, 3), labels=None, class_names=(), formats=("png",)
        )
        files.write(0, GeneratedBatch(images, None, np.zeros((200, 0)), np.zeros((200, 0))))
        folders.append(str(tmp_path / name / "png"))
    theirs = fid.compute_fid(
        *folders,
        mode="clean",
        custom_feat_extractor=lambda batch: batch.flatten(1) / 255,
        custom_fn_resize=lambda image: image,
        num_workers=0,
        device=torch.device("cpu"),
        use_dataparallel=False,
        verbose=False,
    )
    config = defaults.get_config()
    config.evaluation.update(features="pixels", metrics=("frechet",))
    given = ["config.evaluation.metrics", "config.evaluation.features"]
    assert score.run(config, *folders, output=str(tmp_path / "out"), given=given) == 0
    (ours,) = json.loads((tmp_path / "out" / "scores.json").read_text())["images"]
    assert ours["frechet"] == pytest.approx(theirs, rel=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_statistics_are_exchanged_with_pytorch_fid(tmp_path):
    """Its function computes from our statistics what we compute from them; 64 dimensions are its smallest layer."""
    rng, files = np.random.default_rng(0), []
    for index, scale in enumerate((1.0, 1.5)):
        vectors = rng.normal(0.1 * index, scale, (1000, 64))
        files.append(str(tmp_path / f"{index}.npz"))
        np.savez(files[-1], mu=vectors.mean(0), sigma=np.cov(vectors, rowvar=False))  # as its --save-stats
    from pytorch_fid import fid_score  # imported lazily: takes seconds

    statistics = [fid_score.compute_statistics_of_path(file, None, 1, 64, "cpu") for file in files]
    theirs = fid_score.calculate_frechet_distance(*statistics[0], *statistics[1])
    assert score.run(defaults.get_config(), *files, output=str(tmp_path / "out")) == 0
    (ours,) = json.loads((tmp_path / "out" / "scores.json").read_text())["images"]
    assert ours["frechet"] == pytest.approx(theirs, rel=1e-4)
