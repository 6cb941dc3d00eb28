#!/bin/sh
# Writes the users of a node's Redis as an ACL file. Redis 7 or newer, or Valkey, reads it:
#
#   (umask 077; set -a; . ./.env; sh deploy/users.acl.sh > users.acl)
#   valkey-server --aclfile users.acl
#
# Needs POC_REDIS_WORKER_PASSWORD, _CONTROLLER_, _API_, _FLOWER_ and _ADMIN_ (deploy/secrets.sh
# makes them) and takes POC_NAMESPACE. The file holds only hashes of the passwords.
# Keys and channels are those of database 0. docs/security.md says what each user can do, and
# tests/functional/test_redis_users.py proves it.
set -euf

hash() {
  test -n "$2" || { echo "users.acl.sh: $1 is empty or not set" >&2; exit 1; }
  printf %s "$2" | sha256sum | cut -d ' ' -f 1
}

worker=$(hash POC_REDIS_WORKER_PASSWORD "${POC_REDIS_WORKER_PASSWORD-}")
controller=$(hash POC_REDIS_CONTROLLER_PASSWORD "${POC_REDIS_CONTROLLER_PASSWORD-}")
api=$(hash POC_REDIS_API_PASSWORD "${POC_REDIS_API_PASSWORD-}")
flower=$(hash POC_REDIS_FLOWER_PASSWORD "${POC_REDIS_FLOWER_PASSWORD-}")
admin=$(hash POC_REDIS_ADMIN_PASSWORD "${POC_REDIS_ADMIN_PASSWORD-}")

namespace=${POC_NAMESPACE:-default}
case $namespace in
  *[!A-Za-z0-9_.-]*) echo "users.acl.sh: POC_NAMESPACE=$namespace can't be one" >&2; exit 1 ;;
esac
node="poc:$namespace"
queue="poc.$namespace"
# Celery's queues of other priorities than 0; we use none, but a worker looks into them.
priorities="$(printf '\006\026')?"

# What a status is made of; not the outbox, whose messages are for their receivers.
status="%R~$node:status %R~$node:kept %R~$node:round:* %R~$node:nonces:* %R~$node:found:* %R~$node:tombstone:*
  %R~$node:workers %R~$node:worker:* %R~$node:incidents %R~$node:jobs %R~$node:job:* %R~$node:callbacks
  %R~$node:clock %R~$node:history:* %R~$node:histogram:* %R~$node:claims:*
  %R~$node:totals %R~$node:outcomes"
# What tells the names of all keys, of other namespaces as well.
blind="-scan -randomkey -client|tracking"
look="+@read -@keyspace +exists +time +@connection -@dangerous $blind"
# Celery's own: bindings of its exchanges, mailboxes for remote control, and their answers.
celery="~_kombu.binding* ~*.celery.pidbox ~*.celery.pidbox$priorities"
# Of these what Flower needs: where to ask, and the answers. Of the keys of messages that were taken
# it has Celery's own, which nobody else looks at: workers have theirs in the namespace.
asking="~*.reply.celery.pidbox ~*.reply.celery.pidbox$priorities ~celeryev.*
  ~_kombu.binding_deadlines ~unacked_index ~unacked_mutex"
for exchange in celery.pidbox reply.celery.pidbox celeryev; do
  asking="$asking ~_kombu.binding.$exchange ~_kombu.binding_permanent.$exchange"
done

# What the gateway's one script does: it keeps room for a job that it is about to send.
room="+time +llen +zrangebyscore +zrem +zadd +hgetall +hset +hdel +set"

# Unquoted: newlines and runs of blanks become single ones, as the file needs it.
user() { echo user "$@"; }

user default off
user admin on "#$admin" "~*" "&*" +@all
user worker on "#$worker" -@all \
  +@read +@write +@transaction +@scripting -function +@pubsub +@connection +time -@dangerous $blind \
  "~$node:*" "~$queue" "~$queue$priorities" "~celery-task-meta-*" $celery \
  "&$node:wake" "&celery-task-meta-*" "&/0.celery.pidbox" "&/0.celeryev/*"
user controller on "#$controller" -@all $look +@transaction $status \
  "(-@all" +lpush +llen "~$queue)" "(-@all" +llen "~$queue$priorities)" \
  "(-@all" +sadd "~_kombu.binding.$queue" "~_kombu.binding_permanent.$queue)" \
  "(-@all" +get +mget "%R~celery-task-meta-*" "%R~$node:expected:*)" \
  "(-@all" $room +evalsha "+script|load" "~$queue" "~$node:reserved" "~$node:owed" "~$node:expected:*)" \
  "(-@all" +xlen "%R~$node:outbox)" \
  "(-@all" +subscribe +unsubscribe "&celery-task-meta-*)" \
  "(-@all" +publish "&/0.celeryev/task.sent)"
user api on "#$api" -@all $look +@transaction $status \
  "(-@all" +llen "%R~$queue)" "(-@all" +xlen "%R~$node:outbox)"
user flower on "#$flower" -@all \
  +@read +@write +@transaction +@pubsub +@connection +time -@dangerous \
  -@scripting +evalsha "+script|load" "+script|exists" $blind \
  $asking \
  "&/0.celery.pidbox" "&/0.celeryev/*" "(-@all" +llen "%R~$queue)" "(-@all" +llen "%R~$queue$priorities)"
