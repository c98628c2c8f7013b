#!/bin/bash
# Waits for PostgreSQL, then becomes Odoo. The database comes from HOST, PORT, USER and PASSWORD
# (or PASSWORD_FILE) as far as the configuration file does not name it.
set -euo pipefail

in_configuration() {
    sed -n "s/^[[:space:]]*$1[[:space:]]*=[[:space:]]*//p" "$ODOO_RC" | tail -n 1
}

# libpq's variables, not arguments: everybody may read the arguments of a process.
database_environment() {
    if [[ -n ${PASSWORD_FILE:-} ]]; then
        PASSWORD=$(< "$PASSWORD_FILE")
    fi
    PGHOST=$(in_configuration db_host)
    PGPORT=$(in_configuration db_port)
    PGUSER=$(in_configuration db_user)
    PGPASSWORD=$(in_configuration db_password)
    export PGHOST=${PGHOST:-${HOST:-db}} PGPORT=${PGPORT:-${PORT:-5432}}
    export PGUSER=${PGUSER:-${USER:-odoo}} PGPASSWORD=${PGPASSWORD:-${PASSWORD:-odoo}}
}

wait_for_database() {
    local deadline=$((SECONDS + 30)) answer
    until answer=$(psql --no-psqlrc --dbname postgres --command 'SELECT 1' 2>&1 > /dev/null); do
        if ((SECONDS >= deadline)); then
            echo "Database connection failure: $answer" >&2
            exit 1
        fi
        sleep 0.5
    done
}

serve() {
    database_environment
    wait_for_database
    exec odoo "$@"
}

case ${1:-odoo} in
    -- | odoo)
        shift || true
        if [[ ${1:-} == scaffold ]]; then
            exec odoo "$@"
        fi
        serve "$@"
        ;;
    -*) serve "$@" ;;
    *) exec "$@" ;;
esac
