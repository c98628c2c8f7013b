#!/bin/bash
# Makes the cluster at the first start, then becomes the server.
set -euo pipefail

# NAME or NAME_FILE; a file keeps a secret out of the environment.
from_environment() {
    local name=$1 file="$1_FILE"
    if [[ -n ${!name:-} && -n ${!file:-} ]]; then
        echo "Set $name or $file, not both." >&2
        exit 1
    fi
    if [[ -n ${!file:-} ]]; then
        cat "${!file}"
    else
        printf '%s' "${!name:-${2:-}}"
    fi
}

initialise() {
    local user password database method
    user=$(from_environment POSTGRES_USER postgres)
    password=$(from_environment POSTGRES_PASSWORD)
    database=$(from_environment POSTGRES_DB "$user")
    method=${POSTGRES_HOST_AUTH_METHOD:-scram-sha-256}
    if [[ -z $password && $method != trust ]]; then
        echo "The first start needs POSTGRES_PASSWORD or POSTGRES_PASSWORD_FILE." >&2
        exit 1
    fi

    # shellcheck disable=SC2086  # several arguments in one variable is its contract
    initdb --username="$user" --pwfile=<(printf '%s\n' "$password") \
        --encoding=UTF8 --locale=C.UTF-8 --auth-local=trust --auth-host=scram-sha-256 \
        --set listen_addresses='*' ${POSTGRES_INITDB_ARGS:-}
    echo "host all all all $method" >> "$PGDATA/pg_hba.conf"

    # Only the socket listens until the database and the first scripts are there,
    # so nobody who asks over TCP meets a half-made cluster.
    pg_ctl --wait --silent -o "-c listen_addresses=''" start
    if [[ $database != postgres ]]; then
        psql --quiet --no-psqlrc --username "$user" --dbname postgres --set ON_ERROR_STOP=1 \
            --set database="$database" <<< 'CREATE DATABASE :"database"'
    fi
    local script
    for script in /docker-entrypoint-initdb.d/*; do
        case $script in
            *.sh) bash "$script" ;;
            *.sql) psql --quiet --no-psqlrc --username "$user" --dbname "$database" --set ON_ERROR_STOP=1 --file "$script" ;;
        esac
    done
    pg_ctl --wait --silent --mode=fast stop
}

if [[ ${1:-postgres} == -* ]]; then
    set -- postgres "$@"
fi

if [[ $1 == postgres && $(id -u) == 0 ]]; then
    mkdir -p "$PGDATA"
    chown -R postgres:postgres "$PGDATA" /var/run/postgresql
    chmod 0700 "$PGDATA"
    export HOME=/var/lib/postgresql
    exec setpriv --reuid=postgres --regid=postgres --init-groups -- "${BASH_SOURCE[0]}" "$@"
fi

if [[ $1 == postgres && ! -s $PGDATA/PG_VERSION ]]; then
    initialise
fi
unset POSTGRES_PASSWORD
exec "$@"
