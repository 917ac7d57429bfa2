"""Sphinx extension: the package's docstrings, signatures and members as autodoc is to show them, for modules that exist."""

import ast
import inspect
import re
import textwrap

FIELD_DOCSTRINGS = ("Alias for field number", "alias of ")  # what Python and Sphinx write where a field has no docstring


def remove_old_pages(app):
    """Deletes the pages that autosummary wrote in an earlier build if one is of a module that is gone or renamed.

    All of them, because the page of a package lists its modules.
    """
    pages = list((app.srcdir / "generated" / "api").glob("*.rst"))
    modules = [app.srcdir.parent.joinpath(*page.stem.split(".")) for page in pages]
    if not all(module.with_suffix(".py").exists() or (module / "__init__.py").exists() for module in modules):
        for page in pages:
            page.unlink()


def keep_equations(app, what, name, obj, options, lines):
    """Shows equations and figures as they are in the source: an indented block after a paragraph is code, as in Markdown.

    Sections such as `Args:` are indented as well; they follow their heading without an empty line and stay as they are.
    A line that begins with the number of an equation, such as (34), does not become an item of a list.
    """
    shown, in_block = [], False
    for line in lines:
        if line.startswith("    ") and not in_block and shown and not shown[-1]:
            before = next((other for other in reversed(shown) if other), "")
            if not before.startswith(" ") and not before.endswith("::"):
                shown += ["::", ""]
                in_block = True
        elif line and not line.startswith("    "):
            if in_block and shown[-1]:
                shown.append("")
            in_block = False
        shown.append(line if in_block else re.sub(r"^( *)(\(\d+\))", r"\1\\\2", line))
    lines[:] = shown


def signature_of_source(app, what, name, obj, options, signature, return_annotation):
    """The signature as it is written: `denoise_fn: DenoiseFn`, where autodoc would write out what the alias stands for."""
    if signature is None:  # an exception: autodoc takes no signature where it found none itself
        return None
    try:
        node = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(obj)))).body[0]
    except (OSError, TypeError, SyntaxError):
        return None
    if isinstance(node, ast.ClassDef):
        methods = [part for part in node.body if isinstance(part, ast.FunctionDef) and part.name == "__init__"]
        if methods:
            return _arguments(methods[0], bound=True), None
        fields = [part for part in node.body if isinstance(part, ast.AnnAssign) and not part.target.id.startswith("_")]
        return (f"({', '.join(ast.unparse(field) for field in fields)})" if fields else ""), None
    if isinstance(node, ast.FunctionDef):
        static = any(ast.unparse(decorator) == "staticmethod" for decorator in node.decorator_list)
        returns = ast.unparse(node.returns) if node.returns else None
        return _arguments(node, bound=what == "method" and not static), returns
    return None


def _arguments(function: ast.FunctionDef, *, bound: bool) -> str:
    """The arguments in parentheses, without self or cls where `bound`."""
    arguments = function.args
    if bound:
        del (arguments.posonlyargs or arguments.args)[0]
    return f"({ast.unparse(arguments)})"


def skip_member(app, what, name, obj, skip, options):
    """Shows what the package documents: also `__call__`, but nothing that a base class or a decorator added."""
    docstring = inspect.getdoc(obj) or ""
    if what == "class" and (docstring.startswith(FIELD_DOCSTRINGS) or isinstance(obj, type)):
        return True
    function = inspect.unwrap(obj) if callable(obj) else None
    if not inspect.isfunction(function):
        return None
    if not function.__module__.startswith("ddpm_jax"):
        return True
    return False if name == "__call__" and function.__doc__ else None


def setup(app):
    app.connect("builder-inited", remove_old_pages, priority=100)  # before autosummary, which reads all sources
    app.connect("autodoc-process-docstring", keep_equations, priority=100)  # before napoleon
    app.connect("autodoc-process-signature", signature_of_source)
    app.connect("autodoc-skip-member", skip_member)
    return {"parallel_read_safe": True}
