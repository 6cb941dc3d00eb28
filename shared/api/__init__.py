"""The status API and the page: what Redis holds about a node, over HTTP. It only reads.

    GET /                                 the live page
    GET /api/v1/pow/status                the current round, the workers, the open validations
    GET /api/v1/pow/overview              all that the page shows
    GET /api/v1/pow/events                the same again and again, as server-sent events
    GET /api/v1/pow/rounds                the rounds that are still kept
    GET /api/v1/pow/rounds/{round_id}     a round that is still kept
    GET /api/v1/pow/nonces                valid nonces in pages, in order of discovery
    GET /metrics                          all of it in numbers, for Prometheus
    GET /livez                            the process lives
    GET /readyz                           Redis answers and a worker is ready

Each answers HEAD, too, with which load balancers probe. The pages at /, /docs and /redoc take
nothing from elsewhere, so that they work where there is no internet.

Commands go through Celery; there is nothing here that changes a round. While Redis is away every
route that needs it answers 503, the events and the metrics say so, and all recover by themselves.

With POC_API_TOKENS what is told about rounds is for those who send one of the tokens. Health, the
description of the routes and the page, which is empty until it has one, stay open.
"""

from shared.api.app import create_app, serve
from shared.api.events import MAX_FOLLOWERS

__all__ = ["MAX_FOLLOWERS", "create_app", "serve"]
