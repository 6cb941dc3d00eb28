"""What runs beside the GPU: Celery app, manager, engines, generator, callbacks, command line."""
