"""Contract suites for policies, controllers and stores of your own; provisional until version 1.0.

Start with the suite that fits: `policies.py`, `controllers.py` or `stores.py` (each shows a test class that inherits
it); `simulated_search.py` and `strategies.py` drive policies, `training.py` has a small network and data. The suites
need the extra `kedro-aat[testing]`. Tests can be added safely; a stricter one is a change for everyone who runs them.
"""
