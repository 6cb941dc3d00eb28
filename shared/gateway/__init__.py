"""The gateway: the network's HTTP contract in front of the queue.

An unchanged controller of the network speaks to it as to its own nodes. It enqueues by the client
and reads the store, and keeps nothing itself: several may run, and each answers for all.

    messages   what callers send, as config, batch and judging of a round or a job
    node       what a request may be about, which is one of the next three
    deployed   the workers and their model, and what is refused because they have another
    rounds     a round: begun, stopped, shown
    jobs       a job: taken on, waited for, asked about
    in_time    how long each request may take
    routes     which path is which
    access     who may ask, how often, and how much
    tls        https, and whose certificate a client shows
    app        the app, and the process that serves it

    POST /api/v1/inference/pow/init/generate    begin a round
    POST /api/v1/inference/pow/generate         compute nonces, or judge claims: a job
    GET  /api/v1/inference/pow/generate/{id}    how a job stands, or ended
    GET  /api/v1/inference/pow/status           what the node does
    POST /api/v1/inference/pow/stop             end the round
    GET  /api/v1/inference/pow/versions

Each is below /api/v1/pow as well. Beside them are /api/v1/state, /api/v1/stop, /v1/models, /health,
/readyz, /livez, and /api/v1/gate for a proxy. docs/protocol.md has answers and deviations.
"""

from shared.gateway.app import create_app, serve

__all__ = ["create_app", "serve"]
