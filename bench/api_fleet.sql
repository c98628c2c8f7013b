-- Organizations, providers, servers and instances: one organization has a tenth of all instances.
-- Their numbers come as settings: bench.organizations, bench.instances, bench.big_servers, bench.sealed.

-- What is inserted refers to what is inserted, and a million checks of that take their time.
SET session_replication_role = replica;

-- A UUID version 7 of a moment, so that ids rise with `created_at` as the API's own do.
CREATE FUNCTION pg_temp.id_at(moment timestamptz, seed text) RETURNS uuid LANGUAGE sql STABLE AS $$
    SELECT (lpad(to_hex((extract(epoch FROM moment) * 1000)::bigint), 12, '0')
        || '7' || substr(md5(seed), 1, 3) || '8' || substr(md5(seed), 4, 15))::uuid
$$;

CREATE TEMP TABLE organization_numbers AS
SELECT
    number,
    pg_temp.id_at(began, 'organization' || number) AS id,
    pg_temp.id_at(began, 'provider' || number) AS provider_id,
    began,
    CASE WHEN number = 0 THEN current_setting('bench.big_servers')::int ELSE 1 END AS servers
FROM generate_series(0, current_setting('bench.organizations')::int - 1) AS number,
    (SELECT now() - interval '700 days' AS began) AS beginning;

INSERT INTO organizations (id, created_at, updated_at, name, slug, event_sequence, plan)
SELECT id, began, began, 'Organization ' || number, 'org-' || number, 0, 'enterprise'
FROM organization_numbers;

INSERT INTO providers (id, created_at, updated_at, organization_id, name, kind, sealed_credentials)
SELECT provider_id, began, began, id, 'local', 'docker', current_setting('bench.sealed')
FROM organization_numbers;

CREATE TEMP TABLE server_numbers AS
SELECT
    organizations.number AS organization,
    server,
    pg_temp.id_at(began, 'server' || organizations.number || '.' || server) AS id
FROM organization_numbers AS organizations, generate_series(0, servers - 1) AS server;

INSERT INTO servers (id, created_at, updated_at, organization_id, provider_id, name, size, status,
    state_changed_at, health, node_id, address, ssh_port, http_port, https_port, engine_version)
SELECT
    server_numbers.id, began, began, organization_numbers.id, provider_id, 'server-' || server, 'large', 'running',
    began, 'healthy', 'node-' || server, '192.0.2.1', 22, 80, 443, '27.0.0'
FROM server_numbers JOIN organization_numbers ON organization = number;

CREATE TEMP TABLE instance_numbers AS
SELECT
    number,
    abs(hashint4(number)) AS draw,
    now() - interval '690 days' * (1 - number::float / current_setting('bench.instances')::int)
        - interval '1 hour' AS began,
    -- The organizations' rows lie between each other, as those of customers who come and grow.
    CASE WHEN number % 10 = 0 THEN 0
        ELSE 1 + number % (current_setting('bench.organizations')::int - 1) END AS organization,
    CASE WHEN number % 10 = 0 THEN number / 10 % current_setting('bench.big_servers')::int ELSE 0 END AS server
FROM generate_series(1, current_setting('bench.instances')::int) AS number;

INSERT INTO instances (id, created_at, updated_at, organization_id, server_id, name, slug, odoo_version,
    odoo_edition, environment_type, hostname, url, status, state_changed_at, health,
    sealed_env_vars, sealed_database_password,
    sealed_master_password, deployed_at, deleted_at)
SELECT
    pg_temp.id_at(rows.began, 'instance' || rows.number), rows.began, rows.began, organizations.id, servers.id,
    initcap(word) || ' ' || rows.number, word || '-' || rows.number, '19.0', 'community',
    (ARRAY['production', 'production', 'staging', 'development'])[1 + draw / 7 % 4],
    word || '-' || rows.number || '.example.com', 'https://' || word || '-' || rows.number || '.example.com',
    status, rows.began, 'healthy', sealed, sealed, sealed, rows.began, CASE WHEN status = 'deleted' THEN rows.began END
FROM instance_numbers AS rows
    JOIN organization_numbers AS organizations ON organizations.number = rows.organization
    JOIN server_numbers AS servers USING (organization, server),
    LATERAL (SELECT
        CASE WHEN draw % 10 < 9 THEN 'running'
            ELSE (ARRAY['stopped', 'failed', 'deleted', 'pending', 'deploying', 'stopping', 'starting',
                'restarting', 'updating', 'restoring', 'deleting'])[1 + draw / 10 % 11] END AS status,
        (ARRAY['bakery', 'clinic', 'garage', 'school', 'brewery', 'hotel', 'museum', 'studio'])[
            1 + draw / 100 % 8] AS word,
        current_setting('bench.sealed') AS sealed
    ) AS drawn
ORDER BY rows.number;

RESET session_replication_role;
DROP TABLE instance_numbers, server_numbers, organization_numbers;
