# One image for every role: worker, status API, Flower.
#   docker build -t poc-worker .
# It runs as a normal user, and with a read-only root: what it keeps is below /models.
# torch's wheels bring CUDA with them; the host adds only its driver (NVIDIA container toolkit).
FROM python:3.11-slim

ARG EXTRAS=cpu,flower

ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PIP_NO_CACHE_DIR=1 \
    HF_HOME=/models/cache

RUN useradd --create-home --uid 1000 poc \
    && install -d -o poc -g poc /models

WORKDIR /app
COPY pyproject.toml constraints.txt README.md LICENSE celeryconfig.py hatch_build.py ./
COPY shared shared
COPY worker worker
# The versions that the tests ran with, but for vLLM, which pins its own torch. They are pinned in
# files, which the linter does not see.
# hadolint ignore=DL3013
RUN case ",$EXTRAS," in *,vllm,*) ;; *) set -- -c constraints.txt ;; esac \
    && pip install "$@" ".[$EXTRAS]"

USER 1000
WORKDIR /home/poc
VOLUME /models
# Celery ends in an orderly way on SIGTERM.
STOPSIGNAL SIGTERM
ENTRYPOINT ["poc"]
CMD ["worker"]
