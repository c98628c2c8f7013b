#!/bin/sh
# Brings Temporal's two databases to the schema of this version of admin-tools; again it changes nothing.
# temporal-sql-tool takes the password from SQL_PASSWORD.
set -eu

bring_up_to_date() {
    database=$1 versions=/etc/temporal/schema/postgresql/v12/$2/versioned
    set -- --plugin postgres12 --ep postgres -p 5432 -u temporal --db "$database"
    temporal-sql-tool "$@" setup-schema -v 0.0
    temporal-sql-tool "$@" update-schema -d "$versions"
}

bring_up_to_date temporal temporal
bring_up_to_date temporal_visibility visibility
