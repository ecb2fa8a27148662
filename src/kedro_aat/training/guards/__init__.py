"""What keeps a run safe from faults of the user's functions, from hanging steps, and from signals.

Start with `user_functions.py`, which names the function in each error. The loop and the runner call these guards; none
of them changes the result of a run without faults.
"""
