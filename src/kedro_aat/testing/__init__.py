"""Contract suites for policies, controllers and stores of your own; provisional until version 1.0.

Start with the suite that fits: `controllers.py` or `stores.py` (each shows a test class that inherits it), with the
network and data of `training.py`. The suites need the extra `kedro-aat[testing]`. Tests can be added safely; a stricter
one is a change for everyone who runs the suites.
"""
