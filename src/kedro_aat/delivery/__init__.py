"""What comes after training: exported files are judged and measured, one is delivered, and it is certified.

Start reading in `deliver.py`; `candidates.py` says which models may be delivered, `certify.py` alone reads the test
split. The order is what makes a certificate true (nothing is chosen after the test split was read), so keep it;
costs, limits and objectives can be added in `deliver.py`.
"""
