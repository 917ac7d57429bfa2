"""The images of --mode=evaluate that the model was not trained on: found, and checked by their pixels.

A split is held out if its images are, whatever it is called: `all` of a folder, a slice that overlaps the one trained on and
a copied folder are not. A few images in both are told and no more: CIFAR-10's own test set repeats some of its training set.
"""

import hashlib
from typing import NamedTuple

from ml_collections import ConfigDict

from ddpm_jax.cli import compute_stats
from ddpm_jax.data import duplicates, identity
from ddpm_jax.data.source import ArraySource, ImageSource, NoSuchSplit
from ddpm_jax.user_messages import UsageError

AUTO = "auto"
USUAL = ("test", "validation", "val", "valid")  # splits that auto looks for, in this order
MOST_SHARED = 0.25  # of either set: above, the images are not held out
ADVICE = (
    "train on a part of the images (config.data.split='train[:90%]') and hold the rest out "
    "(config.evaluation.heldout_split='train[90%:]')"
)


class HeldOut(NamedTuple):
    """Images that were held out.

    Attributes:
      source: they, or None where there are none.
      sha256: a hash of all of them; "" where there are none.
      in_reference: whether they are also the images that generated ones are compared with.
      notes: what there is to say about them.
      compared: the images that generated ones are compared with, where they had to be loaded; else None.
    """

    source: ImageSource | None
    sha256: str
    in_reference: bool
    notes: list[str]
    compared: ImageSource | None = None


def find_held_out(config: ConfigDict, trained_on: identity.Identity | None = None) -> HeldOut:
    """The split that config.evaluation.heldout_split names; for auto, one of the usual ones if the set has it.

    Args:
      config: resolved.
      trained_on: the set that the run was trained on, as its workdir says; None where it does not.

    Raises:
      UsageError: the set has no such split, or most of its images were trained on.
      UserError: a set cannot be read.
    """
    named = config.evaluation.heldout_split
    if not named:
        return HeldOut(None, "", False, [f"config.evaluation.heldout_split is empty: no images are held out; {ADVICE}"])
    passed_over, training, compared = [], None, None
    for split in USUAL if named == AUTO else (named,):
        try:
            source = compute_stats.real_source(config, split)
        except NoSuchSplit as error:
            if named != AUTO:
                raise UsageError(
                    f"config.evaluation.heldout_split is {named!r}: {error}; auto takes what there is, '' nothing"
                ) from error
            continue
        hashes = duplicates.hash_source(source)
        training = training or compute_stats.real_source(config, config.data.split)
        found = _overlap(hashes, training)
        words = f"{found.shared:,} of the {found.count:,} images of {source.name} {split}"
        looked = "the" if found.hashed == found.total else f"{found.hashed:,} of the {found.total:,}"
        among = f"among {looked} training images (config.data.split={config.data.split!r})"
        if found.share > MOST_SHARED:
            if named != AUTO:
                raise UsageError(
                    f"config.evaluation.heldout_split is {named!r}, but {words} are {among}: {ADVICE}, or set it to ''"
                )
            passed_over.append(f"{words} are {among}: they are not held out")
            continue
        notes = [f"{words} are also {among}"] if found.shared else []
        known = trained_on and trained_on["split"] == config.data.split
        if known and (changes := identity.content_changes(trained_on, identity.identity_of(training))):
            notes.append(
                f"{source.name} has changed since the model was trained on it ({changes}): it may have been trained on images "
                "that are held out now"
            )
        inside = False
        if compute_stats.split_of(config) == config.data.split:
            compared = training
        elif config.evaluation.reference:  # its images are not here: by name
            inside = split == compute_stats.split_of(config)
        else:
            compared = compute_stats.real_source(config)
            inside = _overlap(hashes, compared).share > MOST_SHARED
        if inside:
            notes.append(f"{source.name} {split} is what generated images are compared with: its own scores would say nothing")
        return HeldOut(source, hashlib.sha256(b"".join(hashes)).hexdigest(), inside, notes, compared)
    missing = f"{config.data.name} has none of the splits {', '.join(USUAL)}"
    return HeldOut(None, "", False, passed_over or [f"no images are held out: {missing}; {ADVICE}"])


def _overlap(hashes: list[bytes], other: ImageSource) -> duplicates.Overlap:
    return duplicates.find_overlap(hashes, other, most=None if isinstance(other, ArraySource) else duplicates.MOST_HASHED)
