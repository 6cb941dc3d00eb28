"""What operators run beside a worker: benchmark, demo, doctor, models, a server."""
