#!/bin/sh
# Makes the namespace that the workers use, once Temporal answers. The address is TEMPORAL_ADDRESS.
set -eu

tries=60
until temporal operator cluster health; do
    tries=$((tries - 1))
    [ "$tries" -gt 0 ] || { echo "Temporal does not answer: look at the log of the service temporal." >&2; exit 1; }
    sleep 2
done
# How long the history of a finished operation can be looked at in the Temporal UI.
temporal operator namespace describe --namespace "$NAMESPACE" > /dev/null 2>&1 ||
    temporal operator namespace create --namespace "$NAMESPACE" --retention 720h
