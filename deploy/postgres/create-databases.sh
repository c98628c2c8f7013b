#!/bin/bash
# Runs once, when PostgreSQL makes its cluster: for deployerp and for temporal a role and its databases.
set -euo pipefail

# Passwords come in through the environment, never as arguments, which everybody on the machine may read.
psql --quiet --no-psqlrc --set ON_ERROR_STOP=1 --username postgres --dbname postgres <<'SQL'
\getenv deployerp_password APPLICATION_ROLE_PASSWORD
\getenv temporal_password TEMPORAL_ROLE_PASSWORD

CREATE ROLE deployerp LOGIN PASSWORD :'deployerp_password';
CREATE ROLE temporal LOGIN PASSWORD :'temporal_password';
-- deployerp becomes it where it acts for one organization, and may not make roles by itself.
CREATE ROLE deployerp_tenant NOLOGIN;
GRANT deployerp_tenant TO deployerp;

CREATE DATABASE deployerp OWNER deployerp;
CREATE DATABASE temporal OWNER temporal;
CREATE DATABASE temporal_visibility OWNER temporal;

REVOKE CONNECT ON DATABASE deployerp, temporal, temporal_visibility FROM PUBLIC;
SQL
