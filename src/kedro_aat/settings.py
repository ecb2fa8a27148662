"""Kedro settings of this repository's project. Hooks are registered by the plugin's entry point, as in any project."""

import sys
import warnings

import rich

# Kedro registers resolvers with a deprecated function of omegaconf; users cannot do anything about the warning.
warnings.filterwarnings("ignore", message=r"register_new_resolver\(\) is deprecated")

# Without a terminal, rich assumes 80 columns and would wrap most log lines in a file.
if not sys.stdout.isatty():
    rich.reconfigure(width=200)
