"""The contract: everything that a controller, the status API and the worker agree on.

Nothing in this package imports torch, an engine or `worker`; a machine without a GPU can
install it and read or steer rounds.
"""
