"""What joins engine and store in one process, without Celery."""
