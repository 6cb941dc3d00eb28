"""For Celery's own command line beside a worker: Flower, `inspect`, `control`.

    celery -A shared.entry inspect ping

Settings come from `POC_*` variables. It is what a `sentinel://` URL needs, of which Celery alone
would not know all.
"""

from shared.broker import celery_app
from shared.settings import load_settings

app = celery_app(load_settings())
