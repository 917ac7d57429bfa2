import re
import subprocess

from ddpm_jax.runtime import versions


def test_versions_of_the_libraries():
    found = versions.program_versions()
    assert {"ddpm_jax", "python", "jax", "jaxlib", "flax", "optax", "numpy"} <= found.keys()
    assert all(re.match(r"\d+\.\d+", version) for version in found.values())


def test_the_commit_is_that_of_the_checkout(repository):
    git = ["git", "-C", str(repository), "rev-parse", "HEAD"]
    head = subprocess.run(git, capture_output=True, text=True, check=False)
    commit = versions.program_commit()
    assert commit is None if head.returncode else commit.removesuffix("-dirty") == head.stdout.strip()


def test_a_copy_inside_another_projects_checkout_has_no_commit(tmp_path, monkeypatch):
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "__init__.py").write_text("")
    monkeypatch.setattr(versions.ddpm_jax, "__file__", str(tmp_path / "site" / "__init__.py"))
    assert versions.program_commit() is None


def test_without_git_there_is_no_commit(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert versions.program_commit() is None
