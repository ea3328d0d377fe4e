"""One run, wired: inputs, the driver from lease to last checkpoint, and what comes of the weights.

Here distillation, evaluation, export and the feature store meet, which know nothing of each other.
"""
