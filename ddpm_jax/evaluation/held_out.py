"""Find the held-out images, and check by their pixels that the model was not trained on them.

The name of a split is not enough: `all` of a folder, a slice that overlaps the training slice and a copied folder are not
held out. A few common images only give a note: the test set of CIFAR-10 repeats some of its training images.
"""

from collections.abc import Callable
from typing import NamedTuple

from ddpm_jax.data import duplicates, identity
from ddpm_jax.data.source import ArraySource, ImageSource, NoSuchSplit
from ddpm_jax.runtime.errors import InvalidArgumentError

AUTO = "auto"
AUTO_SPLITS = ("test", "validation", "val", "valid")  # tried in this order
MAX_OVERLAP = 0.25  # fraction of common images, of either set, up to which a split counts as held out
ADVICE = (
    "train on a part of the images (config.data.split='train[:90%]') and hold the rest out "
    "(config.evaluation.heldout_split='train[90%:]')"
)


class HeldOut(NamedTuple):
    """Held-out images.

    Attributes:
      source: the images, or None if there are none.
      sha256: hash of all images; "" if there are none.
      in_reference: whether the generated images are compared with these images.
      notes: notes for the report.
      compared: the reference images, if they had to be loaded; else None.
    """

    source: ImageSource | None
    sha256: str
    in_reference: bool
    notes: list[str]
    compared: ImageSource | None = None


def find_held_out(
    named: str,
    load: Callable[[str], ImageSource],
    *,
    set_name: str,
    train_split: str,
    compared_split: str,
    load_compared: Callable[[], ImageSource] | None,
    trained_on: identity.Identity | None = None,
) -> HeldOut:
    """Load the held-out split `named`: the first of `AUTO_SPLITS` that exists for "auto", none for "".

    Args:
      named: config.evaluation.heldout_split.
      load: split -> images; raises NoSuchSplit.
      train_split: split that the model is trained on; `compared_split` is that which generated images are compared with.
      load_compared: loads the images of that split; None if their statistics come from a file.
      trained_on: identity of the training set as recorded in the workdir; None if not recorded.

    Raises:
      InvalidArgumentError: the set has no such split, or the model was trained on many of its images.
      ExpectedError: a set cannot be read.
    """
    if not named:
        return HeldOut(None, "", False, [f"config.evaluation.heldout_split is empty: no images are held out; {ADVICE}"])
    skipped, training, compared = [], None, None
    for split in AUTO_SPLITS if named == AUTO else (named,):
        try:
            source = load(split)
        except NoSuchSplit as error:
            if named != AUTO:
                raise InvalidArgumentError(
                    f"config.evaluation.heldout_split is {named!r}: {error}; use auto for any split that exists, '' for none"
                ) from error
            continue
        hashes = duplicates.hash_source(source)
        training = training or load(train_split)
        found = _overlap(hashes, training)
        words = f"{found.shared:,} of the {found.count:,} images of {source.name} {split}"
        searched = "the" if found.hashed == found.total else f"{found.hashed:,} of the {found.total:,}"
        among = f"among {searched} training images (config.data.split={train_split!r})"
        if found.share > MAX_OVERLAP:
            if named != AUTO:
                raise InvalidArgumentError(
                    f"config.evaluation.heldout_split is {named!r}, but {words} are {among}: {ADVICE}, or set it to ''"
                )
            skipped.append(f"{words} are {among}: they are not held out")
            continue
        notes = [f"{words} are also {among}"] if found.shared else []
        known = trained_on and trained_on["split"] == train_split
        if known and (changes := identity.content_changes(trained_on, identity.identity_of(training))):
            notes.append(
                f"{source.name} has changed since the model was trained on it ({changes}): it may have been trained on images "
                "that are now held out"
            )
        inside = False
        if compared_split == train_split:
            compared = training
        elif load_compared is None:  # the images are not available: compare the names
            inside = split == compared_split
        else:
            compared = load_compared()
            inside = _overlap(hashes, compared).share > MAX_OVERLAP
        if inside:
            notes.append(f"generated images are compared with {source.name} {split}: scoring it against itself is meaningless")
        return HeldOut(source, duplicates.digest(hashes), inside, notes, compared)
    missing = f"{set_name} has none of the splits {', '.join(AUTO_SPLITS)}"
    return HeldOut(None, "", False, skipped or [f"no images are held out: {missing}; {ADVICE}"])


def _overlap(hashes: list[bytes], other: ImageSource) -> duplicates.Overlap:
    return duplicates.find_overlap(hashes, other, most=None if isinstance(other, ArraySource) else duplicates.MOST_HASHED)
