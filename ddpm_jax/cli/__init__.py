"""The entry points: one module per --mode, and `common` for shared code. Each mode is a function:

    run(config, folder, *, output="", defaults=None) -> exit code

of the resolved config, the workdir, the path of --output ("" for a default in the workdir), and a config with default
values for fields that the workdir's config lacks because it is older. It raises `ExpectedError`, on all processes.
"""
