"""Training in several processes, one per device, with the batches, decisions and results of a single one.

Start with `leading`: rank 0 runs the loop as a single process would, and tells the others each call of the runner.
`launch` starts the processes where nobody else has. Rank 0's calls can be changed safely as long as all ranks make them
in the same order.
"""
