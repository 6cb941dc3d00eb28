"""For Celery's own command line.

    celery -A worker.queue.entry worker --without-gossip --without-mingle

Settings come from `POC_*` variables; `poc worker` does the same with options and a clear error.
"""

from shared.settings import load_settings
from worker.queue.app import create_app

app = create_app(load_settings())
