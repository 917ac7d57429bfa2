"""The explorer: a page for a browser that shows a run. Its sources are index.html, style.css and the scripts beside it."""
