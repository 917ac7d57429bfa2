"""Random-access image sources and the pipeline that turns them into batches."""
