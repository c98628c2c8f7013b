#!/bin/bash
# Runs once, when PostgreSQL makes its cluster: one role and its databases for each of the two tenants.
set -euo pipefail

# Passwords come in through the environment, never as arguments, which everybody on the machine may read.
psql --quiet --no-psqlrc --set ON_ERROR_STOP=1 --username postgres --dbname postgres <<'SQL'
\getenv deployerp_password APPLICATION_ROLE_PASSWORD
\getenv temporal_password TEMPORAL_ROLE_PASSWORD

CREATE ROLE deployerp LOGIN PASSWORD :'deployerp_password';
CREATE ROLE temporal LOGIN PASSWORD :'temporal_password';

CREATE DATABASE deployerp OWNER deployerp;
CREATE DATABASE temporal OWNER temporal;
CREATE DATABASE temporal_visibility OWNER temporal;

REVOKE CONNECT ON DATABASE deployerp, temporal, temporal_visibility FROM PUBLIC;
SQL
