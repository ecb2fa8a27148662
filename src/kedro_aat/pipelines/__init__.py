"""The Kedro pipelines: `aat` does the job, `digits` is the real data and model that it runs on here."""
