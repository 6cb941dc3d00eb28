"""`poc bench`: what a worker computes, beside what it could and what others would.

run         one command: a worker, its opponents, a report
turns       candidates take turns, so that all meet the same machine
candidates  of a worker: its forward alone, its engine alone, a whole round
opponents   the published algorithm, and what the device can do at most
published   that algorithm, restated: the reference
report      table, JSON, picture
"""
