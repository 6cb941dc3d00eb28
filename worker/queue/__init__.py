"""Celery, and only here: the application, its tasks, its transport and its results."""
