"""One module per --mode, and `common` for what they share. Each mode is a function:

    run(config, folder, *, output="", defaults=None) -> exit code

of the resolved config, the workdir, the file or folder that --output names ("" for one in the workdir), and a config with the
values of fields that the workdir's config is too old to have. It raises UserError or UsageError, in all processes alike.
"""
