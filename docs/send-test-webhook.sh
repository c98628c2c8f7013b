#!/bin/sh
# Signs a message as deployERP does and sends it to a receiver: prints the answer's status.
#
#   WEBHOOK_SECRET=whsec_... send-test-webhook.sh URL [BODY]
#
# BODY is a file; without one it is a small event.
set -eu

if [ $# -lt 1 ] || [ $# -gt 2 ] || [ -z "${WEBHOOK_SECRET:-}" ]; then
    echo "Usage: WEBHOOK_SECRET=whsec_... $0 URL [BODY]" >&2
    exit 2
fi
url=$1 body=${2:-}
if [ -z "$body" ]; then
    body=$(mktemp)
    trap 'rm -f "$body"' EXIT
    printf '{"type":"test","timestamp":"%s","data":{}}' "$(date -u +%Y-%m-%dT%H:%M:%SZ)" >"$body"
fi

id=test_$(openssl rand -hex 16)
timestamp=$(date +%s)
signature=$("$(dirname "$0")/webhook-signature.sh" "$id" "$timestamp" <"$body")
curl --silent --show-error --max-time 15 --output /dev/null --write-out '%{http_code}\n' \
    --header "Content-Type: application/json" \
    --header "webhook-id: $id" \
    --header "webhook-timestamp: $timestamp" \
    --header "webhook-signature: $signature" \
    --data-binary "@$body" --url "$url"
