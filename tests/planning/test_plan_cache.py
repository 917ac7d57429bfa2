"""A plan is kept by all that the compiled program depends on."""

import importlib
import itertools

from ddpm_jax.planning import plan_cache
from ddpm_jax.planning.plan_cache import PlanCache


def test_the_cache_keeps_values_by_what_they_depend_on(tmp_path, monkeypatch):
    cache, what = PlanCache(tmp_path / "plans"), {"target": "h100", "config": {"a": (1, 2)}}
    key = plan_cache.digest(what)
    assert cache.get(key) is None
    cache.put(key, {"x": 1.5})
    assert cache.get(key) == {"x": 1.5}
    assert plan_cache.digest(what | {"target": "a100"}) != key
    monkeypatch.setattr(plan_cache.importlib.metadata, "version", lambda library: "0.0.1")
    assert plan_cache.digest(what) != key
    PlanCache(None).put(key, {})
    assert PlanCache(None).get(key) is None
    next((tmp_path / "plans").glob("*.json")).write_text("{")
    assert cache.get(key) is None


def test_a_cache_that_cannot_be_written_is_a_warning(tmp_path, log_lines):
    (tmp_path / "file").write_text("")
    PlanCache(tmp_path / "file" / "plans").put("key", {"x": 1})
    (line,) = log_lines
    assert "cannot keep the plan in" in line
    assert "choose another --compilation_cache" in line


def test_the_source_of_the_package_is_in_the_key_but_not_that_of_reports(tmp_path, monkeypatch):
    for folder in ("models", "cli", "planning"):
        (tmp_path / folder).mkdir()
    names = ("__init__.py", "models/unet.py", "cli/plan.py", "planning/report.py")
    for name in names:
        (tmp_path / name).write_text("x = 1\n")
    monkeypatch.setattr(plan_cache.ddpm_jax, "__file__", str(tmp_path / "__init__.py"))
    keys = [plan_cache.digest({})]
    for name in names:
        (tmp_path / name).write_text("x = 2\n")
        keys.append(plan_cache.digest({}))
    assert [new != old for old, new in itertools.pairwise(keys)] == [True, True, False, False]


def test_flags_of_the_compiler_are_in_the_key_but_not_folders():
    given = {"XLA_FLAGS": "--xla_x=1", "JAX_ENABLE_X64": "1", "HOME": "/root", "JAX_COMPILATION_CACHE_DIR": "/cache"}
    assert plan_cache.compiler_flags(given) == {"XLA_FLAGS": "--xla_x=1", "JAX_ENABLE_X64": "1"}


def test_what_a_users_own_part_imports_is_in_the_key(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    installed = tmp_path / "site-packages"
    monkeypatch.syspath_prepend(installed)
    (installed / "plan_installed").mkdir(parents=True)
    (installed / "plan_other.py").write_text("")
    (installed / "plan_installed" / "__init__.py").write_text("from plan_installed import blocks\n")
    (installed / "plan_installed" / "blocks.py").write_text("")
    (tmp_path / "plan_helper.py").write_text("WIDTH = 8\n")
    (tmp_path / "plan_own.py").write_text("import plan_helper, plan_installed, plan_other\n")
    importlib.import_module("plan_own")

    found = plan_cache.own_sources(["plan_own:network"])
    files = {str(tmp_path / name) for name in ("plan_own.py", "plan_helper.py")}
    assert files <= found.keys()
    assert not any("site-packages" in file or "/ddpm_jax/build.py" in file for file in found)
    (tmp_path / "plan_helper.py").write_text("WIDTH = 16\n")
    again = plan_cache.own_sources(["plan_own:network"])
    assert {file for file in files if again[file] != found[file]} == {str(tmp_path / "plan_helper.py")}

    found = plan_cache.own_sources(["plan_installed:network"])
    assert {str(installed / "plan_installed" / name) for name in ("__init__.py", "blocks.py")} <= found.keys()
    assert str(installed / "plan_other.py") not in found
    assert plan_cache.own_sources([]) == {}
