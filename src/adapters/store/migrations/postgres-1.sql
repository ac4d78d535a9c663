-- One row per incident that may need attention: a set, not a list. `wanted` counts hints, `done` what was served.
-- side: 0 Defender, 1 Sentinel. Instants are nanoseconds since 1970 in UTC.
CREATE TABLE jobs (
    side SMALLINT NOT NULL,
    scope TEXT COLLATE "C" NOT NULL,
    native_id TEXT COLLATE "C" NOT NULL,
    wanted BIGINT NOT NULL,
    done BIGINT NOT NULL DEFAULT 0,
    -- What the hints since the last lease said. named: 0 none came, 1 all named `version`, 2 several or none.
    named SMALLINT NOT NULL,
    version TEXT,
    sources TEXT NOT NULL,
    first_hint_at BIGINT,
    -- The same of the hints that the lease, if one is out, broke off or failed, is to serve.
    leased_named SMALLINT NOT NULL DEFAULT 0,
    leased_version TEXT,
    leased_sources TEXT NOT NULL DEFAULT '',
    leased_first BIGINT,
    -- 1 if a hint since the lease named another version than it: such a row is not put aside.
    news SMALLINT NOT NULL DEFAULT 0,
    -- 0 while every hint not yet served came from the background; fresh_live: the same of the hints since the lease.
    live SMALLINT NOT NULL,
    fresh_live SMALLINT NOT NULL,
    -- 1 while the row only waits to be looked at again: a hint ends that wait.
    wakes SMALLINT NOT NULL DEFAULT 0,
    attempts BIGINT NOT NULL DEFAULT 0,
    -- The earliest next lease: the time of the hint, the end of a lease, of a wait or of a rest.
    ready_at BIGINT NOT NULL,
    served_at BIGINT,
    lease_token BYTEA,
    parked_reason TEXT,
    parked_at BIGINT,
    parked_version TEXT,
    PRIMARY KEY (side, scope, native_id)
);
-- Live rows and background rows stand apart, so that a lease of live work steps over no backlog.
CREATE INDEX jobs_ready ON jobs (live, side, scope, ready_at, native_id) WHERE wanted > done AND parked_reason IS NULL;
CREATE INDEX jobs_parked ON jobs (parked_at) WHERE parked_reason IS NOT NULL;
CREATE INDEX jobs_resting ON jobs (ready_at) WHERE wanted = done;

-- `key` is the UUIDv5 of the door and the sender's id, which may be of any length.
CREATE TABLE deliveries (
    key BYTEA PRIMARY KEY,
    keep_until BIGINT NOT NULL
);

CREATE TABLE fences (
    name TEXT COLLATE "C" PRIMARY KEY,
    token BYTEA NOT NULL,
    held_until BIGINT NOT NULL
);

CREATE TABLE links (
    tenant_id TEXT COLLATE "C" NOT NULL,
    incident_id TEXT COLLATE "C" NOT NULL,
    workspace TEXT COLLATE "C" NOT NULL,
    route TEXT COLLATE "C" NOT NULL,
    sentinel_id TEXT COLLATE "C" NOT NULL,
    state TEXT NOT NULL,
    parked TEXT,
    updated_at BIGINT NOT NULL,
    PRIMARY KEY (tenant_id, incident_id, workspace)
);
CREATE INDEX links_twin ON links (workspace, sentinel_id);
-- Metrics count them at every scrape: not by reading every link.
CREATE INDEX links_parked ON links (tenant_id, incident_id) WHERE parked IS NOT NULL;
CREATE INDEX links_route ON links (route, tenant_id, incident_id, workspace);

CREATE TABLE journal (
    seq BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at BIGINT NOT NULL,
    tenant_id TEXT COLLATE "C" NOT NULL,
    incident_id TEXT COLLATE "C" NOT NULL,
    workspace TEXT COLLATE "C" NOT NULL,
    kind TEXT NOT NULL,
    detail TEXT NOT NULL
);
CREATE INDEX journal_link ON journal (tenant_id, incident_id, workspace, seq);

CREATE TABLE named_values (name TEXT COLLATE "C" PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE holds (route TEXT COLLATE "C" PRIMARY KEY, since BIGINT NOT NULL, reason TEXT NOT NULL);
