"""Hashes the results of the program, to compare two commits: a refactoring must not change a number.

    python benchmarks/fingerprint.py > after.txt
    git worktree add ../before COMMIT && cd ../before && python benchmarks/fingerprint.py > before.txt
    diff ../before/before.txt after.txt

Trains configs/digits.py for 200 steps without and with dropout, once without interruption and once resumed at step 100,
generates images with every sampler, edits images, and evaluates. Prints one line per result: its name and the SHA-256 of its
values. Equal lines mean equal bits; compare only on one machine with the same library versions.
"""

import argparse
import hashlib
import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
SAMPLERS = {
    "ancestral": "",
    "ddim": "--config.sampling.ddim.eta=0.5",
    "dpmpp_2m": "",
    "dpmpp_2m_sde": "",
    "unipc": "--config.sampling.unipc.order=3",
    "heun": "--config.sampling.heun.churn=2.0",
    "ode": "",
}
TRAIN = (
    "--config=configs/digits.py --config.train.log_every=1 --config.train.sample_every=0 --config.train.checkpoint_every=100 "
    "--config.train.trackers=() --config.ema.power_sigma_rel=(0.1,) --config.model.label_dropout=0.1"
)
FEW = "--config.sampling.num_images=8 --config.sampling.num_steps=10"
EVALUATE = (
    "--mode=evaluate --config.evaluation.metrics=('frechet','kid','precision_recall','bits_per_dim','ode_bits_per_dim') "
    "--config.evaluation.num_images=100 --config.evaluation.num_heldout_images=20 --config.sampling.num_steps=10"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", help="folder of the runs; a temporary folder by default")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(options.folder or temporary)
        for dropout in (0.0, 0.1):
            run = folder / f"dropout_{dropout}"
            program(run, f"{TRAIN} --config.model.unet.dropout={dropout} --config.train.num_steps=200")
            print_training(f"dropout {dropout}", run)
        resumed = folder / "resumed"
        for steps in (100, 200):
            program(resumed, f"{TRAIN} --config.model.unet.dropout=0.1 --config.train.num_steps={steps}")
        print_training("dropout 0.1, resumed", resumed)

        run = folder / "dropout_0.1"
        for sampler, fields in SAMPLERS.items():
            program(run, f"--mode=sample --config.sampling.sampler={sampler} {FEW} {fields} --output={folder / sampler}")
            print_arrays(sampler, folder / sampler / "images.npz")
        guided = "--config.sampling.guidance_scale=2.0 --config.sampling.params=power_0.1 --config.sampling.num_intermediates=4"
        program(run, f"--mode=sample {FEW} {guided} --output={folder / 'guided'}")
        print_arrays("guided", folder / "guided" / "images.npz")
        for mode in ("inpaint", "image_to_image", "interpolate"):
            program(run, f"--mode={mode} --config.edit.num_images=2 --config.sampling.num_steps=10 --output={folder / mode}")
            print_arrays(mode, folder / mode / "images.npz")
        program(run, f"{EVALUATE} --output={folder / 'eval'}")
        print_report("evaluate", folder / "eval")


def program(workdir: pathlib.Path, fields: str) -> None:
    """Runs main.py in this repository; its output goes to stderr."""
    command = [sys.executable, "main.py", f"--workdir={workdir}", *fields.split()]
    subprocess.run(command, cwd=ROOT, check=True, stdout=sys.stderr)


def print_training(name: str, run: pathlib.Path) -> None:
    """Losses of all steps, and the state at the end."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for field in ("train/loss", "train/grad_norm"):
        values = {row["step"]: row[field] for row in rows if field in row}
        show(f"{name}: {len(values)} values of {field}", json.dumps(values).encode())
    for item in sorted(path for path in (run / "checkpoints" / "200").iterdir() if (path / "_METADATA").exists()):
        arrays = [np.asarray(array) for array in leaves(read_item(item))]
        if item.name == "opt_state":  # the counters in it depend on how the optimizer is composed
            arrays = [array for array in arrays if array.ndim]
        show(f"{name}: {item.name}", b"".join(array.tobytes() for array in arrays))


def read_item(item: pathlib.Path) -> object:
    """The arrays of an item of a checkpoint as NumPy, however they were sharded."""
    import jax
    import orbax.checkpoint as ocp

    with ocp.PyTreeCheckpointer() as checkpointer:
        tree = checkpointer.metadata(item).item_metadata.tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        return checkpointer.restore(item, args=ocp.args.PyTreeRestore(restore_args=as_numpy))


def leaves(tree: object) -> list:
    """Arrays of nested dictionaries and lists, sorted by name."""
    if isinstance(tree, dict):
        return [leaf for key in sorted(tree) for leaf in leaves(tree[key])]
    if isinstance(tree, list | tuple):
        return [leaf for value in tree for leaf in leaves(value)]
    return [] if tree is None else [tree]


def print_arrays(name: str, file: pathlib.Path) -> None:
    with np.load(file) as arrays:
        for key in sorted(arrays):
            if arrays[key].dtype.kind in "fiu":
                show(f"{name}: {key} {list(arrays[key].shape)}", arrays[key].tobytes())


def print_report(name: str, folder: pathlib.Path) -> None:
    """Prints every metric of the reports."""
    for file in sorted((folder / "results").glob("*.json")):
        row = json.loads(file.read_text())["row"]
        print(f"{name}: {json.dumps({key: value for key, value in row.items() if isinstance(value, float)}, sort_keys=True)}")


def show(name: str, data: bytes) -> None:
    print(f"{name}: {hashlib.sha256(data).hexdigest()[:16]}", flush=True)


if __name__ == "__main__":
    main()
