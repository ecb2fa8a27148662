"""What a run and a test split are known by: hashes of source, models, data and examples.

Start reading at `identity.py`. A change of what is hashed makes runs of the version before unknown, so it needs a new
`identity_version` in the record of a run.
"""
