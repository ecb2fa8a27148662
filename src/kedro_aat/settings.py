"""Kedro's settings of this project. The hooks come from the plugin's entry point, as in any other project."""

import warnings

# Kedro registers its resolvers under omegaconf's old name, which warns on every run and helps nobody.
warnings.filterwarnings("ignore", message=r"register_new_resolver\(\) is deprecated")
