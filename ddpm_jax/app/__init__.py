"""The page of --mode=app: model.py calls the Python interface, jobs.py runs one call at a time, page.py is the page."""
