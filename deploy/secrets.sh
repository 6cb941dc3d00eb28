#!/bin/sh
# Writes what docker-compose.yml asks for to `.env` of the directory that it is called in, each
# secret made anew; only its owner may read it. One that is there is never overwritten:
#
#   sh deploy/secrets.sh
set -euC
umask 077

token() { head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \n'; }

if test -e .env; then
  echo "secrets.sh: .env is there already: a node may be running with its secrets;" \
    "move it away to make new ones" >&2
  exit 1
fi
{
  for user in WORKER CONTROLLER API FLOWER ADMIN; do
    echo "POC_REDIS_${user}_PASSWORD=$(token)"
  done
  echo "POC_FLOWER_PASSWORD=$(token)"
  echo "POC_GRAFANA_PASSWORD=$(token)"
  echo "POC_API_TOKENS=$(token)"
  echo "POC_GATEWAY_TOKENS=$(token)"
  echo "POC_CALLBACK_SECRET=$(head -c 32 /dev/urandom | base64)"
} > .env
