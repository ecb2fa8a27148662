"""Search policies: which rate to train next, from where, and when to stop. Pure Python."""
