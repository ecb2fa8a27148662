"""The processes of one run, one per device: who they are, what they agree on, and how they sum and gather.

Start with `group`. What is trained in several processes, and how they follow the first one, is in `training`.
"""
