"""docs/gke_jobset.yaml: valid for Kubernetes, and its command for this program."""

import math

import kubernetes_validate
import pytest
import yaml

from ddpm_jax import config_file


@pytest.fixture(scope="module")
def job(repository):
    """The Job that the JobSet makes for a slice."""
    manifest = yaml.safe_load((repository / "docs/gke_jobset.yaml").read_text())
    (replicated,) = manifest["spec"]["replicatedJobs"]
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "slice"}, **replicated["template"]}


def test_it_matches_the_schema(job):
    kubernetes_validate.validate(job, "1.37", strict=True)
    job["spec"]["template"]["spec"]["containers"][0]["prots"] = []
    with pytest.raises(kubernetes_validate.ValidationError, match="prots"):
        kubernetes_validate.validate(job, "1.37", strict=True)
    del job["spec"]["template"]["spec"]["containers"][0]["prots"]


def test_the_hosts_have_all_chips_of_the_slice(job):
    spec = job["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    chips = container["resources"]["limits"]["google.com/tpu"]
    topology = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
    assert spec["completions"] == spec["parallelism"]
    assert spec["completions"] * chips == math.prod(int(side) for side in topology.split("x"))
    (rule,) = spec["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"] == {"containerName": container["name"], "operator": "In", "values": [2]}


def test_its_command_trains(job):
    program, *flags = job["spec"]["template"]["spec"]["containers"][0]["command"]
    values = dict(flag.removeprefix("--").split("=", 1) for flag in flags)
    config = config_file.load(values.pop("config"))
    assert program == "ddpm-jax"
    assert values.pop("workdir").startswith("gs://")
    config.update_from_flattened_dict({name.removeprefix("config."): yaml.safe_load(value) for name, value in values.items()})
    assert config.train.batch_size % 16 == 0
    assert config.model.dtype == "bfloat16"
