"""Celery's settings that do not depend on where it runs, each with its reason.

What does depend on it (broker, result backend, queue, expiry) is set by `shared.broker`.
"""

# JSON only: a pickle can run code, and other languages must be able to write what we read.
task_serializer = "json"
result_serializer = "json"
event_serializer = "json"
accept_content = ["json"]
result_accept_content = ["json"]

# Acknowledge before running. Rounds live in Redis, so a killed worker loses nothing that a second
# delivery would bring back; late acknowledgement delivers long work again after the visibility
# timeout, and in 5.7.0 ends the worker when the broker goes away in the middle of a task.
task_acks_late = False
task_reject_on_worker_lost = False
worker_cancel_long_running_tasks_on_connection_loss = False
# Take a message only when a thread is free: other workers may have one.
worker_disable_prefetch = True
worker_prefetch_multiplier = 1

# STARTED would be written by the worker after the loop may already have written the end.
task_track_started = False
# A result holds the answer alone: arguments may be megabytes, and Flower has them from events.
result_extended = False
# Flower shows tasks from their first moment, also those that no worker has taken yet.
worker_send_task_events = True
task_send_sent_event = True

# Threads share the loaded model; tasks only write Redis, so four are plenty.
worker_pool = "threads"
worker_concurrency = 4
# What runs in this process (torch, vLLM) logs and prints as it does elsewhere.
worker_hijack_root_logger = False
worker_redirect_stdouts = False

# A broker that is away comes back: keep trying, from the start and for ever (100 is the default).
broker_connection_retry = True
broker_connection_retry_on_startup = True
broker_connection_max_retries = None
# So does one that refuses for a while: read-only in a fail-over, or out of memory.
broker_channel_error_retry = True
broker_transport_options = {
    # A silent peer (a pulled cable) is noticed instead of waited for: as soon as by the store, and
    # a worker that is told to end meanwhile has several of these to wait for.
    "socket_timeout": 5,
    "socket_connect_timeout": 5,
    "socket_keepalive": True,
    "health_check_interval": 10,
}
# The same for the result backend, and a lost reply is asked for again: its writes may be repeated.
redis_socket_timeout = 5
redis_socket_connect_timeout = 5
redis_socket_keepalive = True
redis_backend_health_check_interval = 10
redis_retry_on_timeout = True

# Queues are named by namespace; a message to another one is a mistake to be seen, not a new queue.
task_create_missing_queues = False
# Times are the same whatever the machine's zone is.
enable_utc = True
timezone = "UTC"
