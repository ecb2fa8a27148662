"""What `kedro aat init` writes into a project: settings that fit model, data and task, and the dependency.

Start reading in `command.py`. Tasks and questions can change freely; what they replace must occur in
`adoption/templates`, which a test checks.
"""
