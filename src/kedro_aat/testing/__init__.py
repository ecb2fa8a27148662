"""Contract suites for policies, controllers and stores of your own; provisional until version 1.0.

Start with the suite that fits: `policies.py`, `controllers.py` or `stores.py` (each shows a test class that inherits
it); `simulated_search.py` and `strategies.py` drive policies, `training.py` has a small network and data. The suites
need the extra `kedro-aat[testing]`. Tests can be added safely; a stricter one is a change for everyone who runs them.
"""

try:
    import pytest
except ImportError as error:
    raise ImportError("kedro_aat.testing needs pytest and hypothesis: pip install pytest hypothesis") from error

for _suite in ("controllers", "policies", "stores", "store_saving", "store_damage"):
    pytest.register_assert_rewrite(f"{__name__}.{_suite}")  # so that failures show values
