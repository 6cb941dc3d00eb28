#!/usr/bin/env bash
# Runs a round until it has 20 valid nonces, and prints how it ended. Needs a worker that lives,
# and redis-cli or valkey-cli.
#
#   POC_REDIS_URL=redis://127.0.0.1:6379/0 ./round.sh
set -euo pipefail

url=${POC_REDIS_URL:-redis://127.0.0.1:6379/0}
queue=poc.${POC_NAMESPACE:-default}
cli=$(command -v redis-cli || command -v valkey-cli)
redis() { "$cli" -u "$url" "$@"; }

# The arguments of the task, as base64.
arguments='{"config": {"block_hash": "ab12", "block_height": 7, "public_key": "me", "r_target": 1.4,
  "seq_len": 64}, "replace": true, "until_valid": 20}'
body=$(printf '[[], %s, {}]' "$arguments" | base64 -w0)
id=$(cat /proc/sys/kernel/random/uuid)

redis LPUSH "$queue" '{"body": "'"$body"'", "content-type": "application/json",
  "content-encoding": "utf-8", "headers": {"task": "poc.generate", "id": "'"$id"'"},
  "properties": {"correlation_id": "'"$id"'", "body_encoding": "base64", "delivery_tag": "'"$id"'",
    "delivery_info": {"exchange": "", "routing_key": "'"$queue"'"}}}' > /dev/null

for _ in $(seq 240); do
  answer=$(redis GET "celery-task-meta-$id")
  case $answer in
    *'"status": "SUCCESS"'*) echo "$answer"; exit 0 ;;
    *'"status": "FAILURE"'*) echo "$answer" >&2; exit 1 ;;
  esac
  sleep 0.25
done
echo "it has not ended after a minute" >&2
exit 1
