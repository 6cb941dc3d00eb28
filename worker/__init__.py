"""What runs beside the GPU: Celery app, tasks, manager, engines, generator, callbacks, command line."""
