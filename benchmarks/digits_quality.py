"""How close are generated digits to real ones? Generates some and measures them, without a feature network.

python main.py --workdir=runs/digits --mode=sample --config.sampling.num_images=1000 --output=runs/digits/samples/1000
python benchmarks/digits_quality.py runs/digits/samples/1000/images.npz

Prints the Fréchet distance of the generated images from the 1,500 training images, in pixels on the 0..16 scale, the same
for the 297 held-out real images, and the fraction of each digit according to a support-vector classifier.
"""

import argparse
import pathlib
import sys

import numpy as np
from sklearn.svm import SVC

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from ddpm_jax.data import digits
from ddpm_jax.evaluation.array_images import ArrayImages
from ddpm_jax.metrics.frechet import fit_gaussian, frechet_distance


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", help="images.npz of --mode=sample")
    generated = pixels(ArrayImages(pathlib.Path(parser.parse_args().images)).read_all())

    train, held_out = (digits.load_digits(split) for split in ("train", "test"))
    train = train.batch(np.arange(len(train)))
    held_out = held_out.batch(np.arange(len(held_out)))
    real = fit_gaussian(pixels(train["image"]))
    # The classifier and scale of scikit-learn's example for this set.
    classifier = SVC(gamma=0.001).fit(pixels(train["image"]), train["label"])

    def report(name: str, vectors: np.ndarray) -> None:
        distance = frechet_distance(fit_gaussian(vectors), real)
        fractions = np.bincount(classifier.predict(vectors), minlength=10) / len(vectors)
        print(f"{name:24} {distance:8.2f}   " + " ".join(f"{fraction:5.1%}" for fraction in fractions))

    print(f"{'':24} {'distance':>8}   " + " ".join(f"{digit:>5}" for digit in range(10)))
    report(f"{len(generated):,} generated", generated)
    report(f"{len(held_out['image']):,} held-out real", pixels(held_out["image"]))
    accuracy = classifier.score(pixels(held_out["image"]), held_out["label"])
    print(f"The classifier has an accuracy of {accuracy:.1%} on the held-out images.")


def pixels(images: np.ndarray) -> np.ndarray:
    """uint8 [N, 8, 8, 1] -> float64 [N, 64], 0..16."""
    return digits.to_counts(images).reshape(len(images), -1)


if __name__ == "__main__":
    main()
