# One image for every role: worker, status API, Flower.
#   docker build -t poc-worker .                        the transformers engine
#   docker build -t poc-worker --build-arg EXTRAS=vllm,flower --build-arg CONSTRAINTS= .
# torch's wheels bring CUDA with them; the host adds only its driver (NVIDIA container toolkit).
FROM python:3.11-slim

ARG EXTRAS=cpu,flower
# Empty for vllm, which pins a torch and a transformers of its own.
ARG CONSTRAINTS=constraints.txt

ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PIP_NO_CACHE_DIR=1 \
    HF_HOME=/models/cache

RUN useradd --create-home --uid 1000 poc \
    && install -d -o poc -g poc /models

WORKDIR /app
COPY pyproject.toml constraints.txt README.md LICENSE celeryconfig.py ./
COPY shared shared
COPY worker worker
RUN pip install ${CONSTRAINTS:+-c "$CONSTRAINTS"} ".[${EXTRAS}]"

USER poc
WORKDIR /home/poc
VOLUME /models
# Celery ends in an orderly way on SIGTERM.
STOPSIGNAL SIGTERM
ENTRYPOINT ["poc"]
CMD ["worker"]
