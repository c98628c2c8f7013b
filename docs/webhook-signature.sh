#!/bin/sh
# Prints the signature of a webhook, such as v1,K5oZfzN95Z9UVu1EsfQmfVNQhnkZ2pj9o9NDN/H/pI4=
#
#   WEBHOOK_SECRET=whsec_... webhook-signature.sh ID TIMESTAMP < BODY
#
# It is the HMAC-SHA256 of "ID.TIMESTAMP.BODY" in base64 (https://www.standardwebhooks.com).
#
# OpenSSL 3.0 takes the key of an HMAC as an argument only, and arguments can be seen by everybody on the
# machine. So this makes it of two plain hashes, as RFC 2104 defines it: the key passes through pipes alone.
set -eu

if [ $# -ne 2 ] || [ -z "${WEBHOOK_SECRET:-}" ]; then
    echo "Usage: WEBHOOK_SECRET=whsec_... $0 ID TIMESTAMP < BODY" >&2
    exit 2
fi
id=$1 timestamp=$2

# The bytes of the key, in hexadecimal.
key=$(printf %s "${WEBHOOK_SECRET#whsec_}" | openssl base64 -d -A | od -An -v -tx1)
length=$(echo "$key" | wc -w)
if [ "$length" -lt 24 ] || [ "$length" -gt 64 ]; then
    echo "WEBHOOK_SECRET must be whsec_ and 24 to 64 bytes in base64, as the API has shown it once." >&2
    exit 2
fi

# Prints the byte with this number. printf is a part of the shell: it has no arguments for others to see.
byte() {
    # shellcheck disable=SC2059
    printf "\\$(($1 / 64))$(($1 / 8 % 8))$(($1 % 8))"
}

# The key as a block of 64 bytes, each of them combined with the number.
block() {
    left=$((64 - length))
    for each in $key; do
        byte $((0x$each ^ $1))
    done
    while [ "$left" -gt 0 ]; do
        byte "$1"
        left=$((left - 1))
    done
}

sha256() {
    openssl dgst -sha256 -binary
}

inner() {
    block 0x36
    printf '%s.%s.' "$id" "$timestamp"
    cat
}

outer() {
    block 0x5c
    inner | sha256
}

signature=$(outer | sha256 | openssl base64 -A)
if [ ${#signature} -ne 44 ]; then
    echo "openssl has failed." >&2
    exit 2
fi
echo "v1,$signature"
