"""Proof, with real processes, that a round stays exact whatever breaks.

    python -m faults --seed 1 --seconds 600        (from `tests`, or `make faults SEED=1`)

                       Saboteur: faults by a schedule made from the seed
                          │         │          │            │
    Controller ─▶ Proxy ─▶ Valkey ◀─┴─ Proxy ─ workers ─▶ Receiver
        │                    │                 callbacks
        └─ what was answered │ what it holds   status API
                 │           ▼                              │
                 └───▶  invariants  ◀── what was received ──┘

A run is a series of *phases*, each on an empty server with another persistence, and a phase is a
series of *acts*: a round with its commands, repeats, poison and validations, under faults; then
the faults are healed, everything has to come to its end, and the invariants are checked.

An engine that gives wrong numbers does so here from its start, and its worker must never take part:
so the recount needs no exception. One that turns wrong later commits until its next check what is
in doubt then; what it listed would have to be believed, and a killed worker or a Redis that steps
back lists nothing. That is proved one at a time, by `tests/functional/test_quarantine.py`.
"""
