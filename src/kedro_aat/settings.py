"""Kedro's settings of this project. The hooks come from the plugin's entry point, as in any other project."""

import sys
import warnings

import rich

# Kedro registers its resolvers under omegaconf's old name, which warns on every run and helps nobody.
warnings.filterwarnings("ignore", message=r"register_new_resolver\(\) is deprecated")

# Without a terminal rich takes 80 columns, and would break each log line of a file in two or three.
if not sys.stdout.isatty():
    rich.reconfigure(width=200)
