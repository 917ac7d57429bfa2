"""The explorer: a page for a browser that shows a run; index.html, *.css and *.js are its sources."""
