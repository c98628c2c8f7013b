#!/bin/sh
# Says whether a webhook is genuine and new: exits with 0 if so, with 1 if not, with 2 when it cannot say.
#
#   WEBHOOK_SECRET=whsec_... verify-webhook.sh HEADERS BODY
#
# HEADERS is a file with the request's headers, one to a line; BODY is one with its body, byte for byte.
set -euf

if [ $# -ne 2 ] || [ -z "${WEBHOOK_SECRET:-}" ]; then
    echo "Usage: WEBHOOK_SECRET=whsec_... $0 HEADERS BODY" >&2
    exit 2
fi
headers=$1 body=$2 tolerance=300

refuse() {
    echo "Refused: $1." >&2
    exit 1
}

header() {
    awk -v wanted="$1" '
        { sub(/\r$/, ""); name = $0; sub(/:.*/, "", name) }
        tolower(name) == wanted { sub(/^[^:]*:[ \t]*/, ""); print; exit }
    ' "$headers"
}

id=$(header webhook-id) || exit 2
timestamp=$(header webhook-timestamp)
signatures=$(header webhook-signature)

case $timestamp in
'' | 0* | *[!0-9]* | ???????????*) refuse "webhook-timestamp is not a number of seconds" ;;
esac
age=$(($(date +%s) - timestamp))
if [ "$age" -gt "$tolerance" ] || [ "$age" -lt "-$tolerance" ]; then
    refuse "it is $age seconds old, and more than $tolerance could mean that somebody sends it again"
fi

# While a secret is rotated there are two signatures, with a space in between.
expected=$("$(dirname "$0")/webhook-signature.sh" "$id" "$timestamp" <"$body") || exit 2
for signature in $signatures; do
    if [ "$signature" = "$expected" ]; then
        echo "Verified: $id"
        exit 0
    fi
done
refuse "no signature fits: it is another secret's, or the message was changed on its way"
