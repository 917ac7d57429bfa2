"""Generates metrics.npz: metrics of given features by pytorch-fid and torch-fidelity.

Made with Python 3.11, numpy 2.4.6, scipy 1.17.1, torch 2.13.0 (CPU), torchvision 0.28.0, pytorch-fid 0.3.0 and
torch-fidelity 0.4.0:

    pip install --no-deps torch torchvision==0.28.0 pytorch-fid==0.3.0 torch-fidelity==0.4.0   # and their dependencies
    python tests/golden/metrics.py

CPU-only torch lacks two unused operators that torchvision needs at import; they are declared first.

In the file: `real` [300, 16] and `generated` [260, 16] float32, skewed and correlated, with duplicates in each set;
`narrow_real`, `narrow_generated`, the same with integers and many ties; `logits` [205, 7]; and one array per metric, named
below.
"""

import pathlib

import numpy as np
import torch

library = torch.library.Library("torchvision", "DEF")
library.define("nms(Tensor a, Tensor b, float c) -> Tensor")
library.define("qnms(Tensor a, Tensor b, float c) -> Tensor")
torch.library.register_fake = lambda *_, **__: lambda function: function

from pytorch_fid.fid_score import calculate_frechet_distance  # noqa: E402
from torch_fidelity import metric_fid, metric_isc, metric_kid, metric_prc  # noqa: E402


def main() -> None:
    rng = np.random.RandomState(0)
    mix = rng.normal(size=(16, 16)) / 4
    real = np.maximum(rng.normal(size=(300, 16)) @ mix, -0.1).astype(np.float32)
    generated = np.maximum(rng.normal(size=(260, 16)) @ mix * 0.8 + 0.25, -0.1).astype(np.float32)
    real[7], generated[3:9] = real[8], generated[9]
    narrow_real = rng.randint(0, 3, size=(300, 5)).astype(np.float32)
    narrow_generated = rng.randint(1, 5, size=(260, 5)).astype(np.float32)
    logits = (rng.normal(size=(205, 7)) * 3).astype(np.float32)

    def gaussian(features):
        return features.astype(np.float64).mean(0), np.cov(features.astype(np.float64), rowvar=False)

    def statistics(features):
        return dict(zip(("mu", "sigma"), gaussian(features), strict=True))

    def both(function, a, b, **kwargs):
        return function(torch.from_numpy(a), torch.from_numpy(b), verbose=False, **kwargs)

    def kid(a, b, **kwargs):
        found = both(metric_kid.kid_features_to_metric, a.astype(np.float64), b.astype(np.float64), **kwargs)
        return [found[metric_kid.KEY_METRIC_KID_MEAN], found[metric_kid.KEY_METRIC_KID_STD]]

    def precision_recall(real, generated, k):
        # torch-fidelity expects the generated set first.
        found = both(metric_prc.prc_features_to_metric, generated, real, prc_neighborhood=k)
        return [found[metric_prc.KEY_METRIC_PRECISION], found[metric_prc.KEY_METRIC_RECALL]]

    def inception_score(splits):
        found = metric_isc.isc_features_to_metric(torch.from_numpy(logits), splits, shuffle=False)
        return [found[metric_isc.KEY_METRIC_ISC_MEAN], found[metric_isc.KEY_METRIC_ISC_STD]]

    golden = {
        "real": real,
        "generated": generated,
        "narrow_real": narrow_real.astype(np.uint8),
        "narrow_generated": narrow_generated.astype(np.uint8),
        "logits": logits,
        "fid_pytorch_fid": calculate_frechet_distance(*gaussian(real), *gaussian(generated)),
        "fid_torch_fidelity": metric_fid.fid_statistics_to_metric(statistics(real), statistics(generated), False)[
            metric_fid.KEY_METRIC_FID
        ],
        "kid_100_of_50": kid(real, generated, kid_subsets=100, kid_subset_size=50, rng_seed=2020),
        "kid_10_of_130": kid(real, generated, kid_subsets=10, kid_subset_size=130, rng_seed=7),
        "precision_recall_3": precision_recall(real, generated, 3),
        "precision_recall_1": precision_recall(real, generated, 1),
        "narrow_precision_recall_3": precision_recall(narrow_real, narrow_generated, 3),
        "isc_10": inception_score(10),
        "isc_3": inception_score(3),
    }
    for name, value in golden.items():
        print(name, value if np.size(value) < 3 else np.shape(value))
    np.savez_compressed(pathlib.Path(__file__).with_suffix(".npz"), **golden)


if __name__ == "__main__":
    main()
