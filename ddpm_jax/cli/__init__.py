"""The entry points: one module per --mode, and `common` for shared code. Each mode is a function:

    run(config, folder, *, output="") -> exit code

of the resolved config, the workdir and the path of --output ("" for a default in the workdir). It raises `ExpectedError`,
on all processes.
"""
