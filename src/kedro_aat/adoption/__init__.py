"""What brings the pipeline into another project: templates, checks without a run, and NNCF's files as parameters."""
