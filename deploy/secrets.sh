#!/bin/sh
# Prints what docker-compose.yml asks for, each secret made anew:
#
#   (umask 077; sh deploy/secrets.sh > .env)
set -eu

token() { head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \n'; }

for user in WORKER CONTROLLER API FLOWER ADMIN; do
  echo "POC_REDIS_${user}_PASSWORD=$(token)"
done
echo "POC_FLOWER_PASSWORD=$(token)"
echo "POC_API_TOKENS=$(token)"
echo "POC_CALLBACK_SECRET=$(head -c 32 /dev/urandom | base64)"
