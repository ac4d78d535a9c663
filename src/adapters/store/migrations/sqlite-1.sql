-- One row per incident that may need attention: a set, not a list. `wanted` counts hints, `done` what was served.
-- side: 0 Defender, 1 Sentinel. Instants are nanoseconds since 1970 in UTC.
CREATE TABLE jobs (
    side INTEGER NOT NULL,
    scope TEXT NOT NULL,
    native_id TEXT NOT NULL,
    wanted INTEGER NOT NULL,
    done INTEGER NOT NULL DEFAULT 0,
    -- What the hints since the last lease said. named: 0 none came, 1 all named `version`, 2 several or none.
    named INTEGER NOT NULL,
    version TEXT,
    sources TEXT NOT NULL,
    first_hint_at INTEGER,
    -- The same of the hints that the lease, if one is out, broke off or failed, is to serve.
    leased_named INTEGER NOT NULL DEFAULT 0,
    leased_version TEXT,
    leased_sources TEXT NOT NULL DEFAULT '',
    leased_first INTEGER,
    -- 1 if a hint since the lease named another version than it: such a row is not put aside.
    news INTEGER NOT NULL DEFAULT 0,
    -- 0 while every hint not yet served came from the background; fresh_live: the same of the hints since the lease.
    live INTEGER NOT NULL,
    fresh_live INTEGER NOT NULL,
    -- 1 while the row only waits to be looked at again: a hint ends that wait.
    wakes INTEGER NOT NULL DEFAULT 0,
    attempts INTEGER NOT NULL DEFAULT 0,
    -- The earliest next lease: the time of the hint, the end of a lease, of a wait or of a rest.
    ready_at INTEGER NOT NULL,
    served_at INTEGER,
    lease_token BLOB,
    parked_reason TEXT,
    parked_at INTEGER,
    parked_version TEXT,
    PRIMARY KEY (side, scope, native_id)
) WITHOUT ROWID;
-- Live rows and background rows stand apart, so that a lease of live work steps over no backlog.
CREATE INDEX jobs_ready ON jobs (live, side, scope, ready_at) WHERE wanted > done AND parked_reason IS NULL;
CREATE INDEX jobs_parked ON jobs (parked_at) WHERE parked_reason IS NOT NULL;
CREATE INDEX jobs_resting ON jobs (ready_at) WHERE wanted = done;

-- `key` is the UUIDv5 of the door and the sender's id, which may be of any length.
CREATE TABLE deliveries (
    key BLOB PRIMARY KEY NOT NULL,
    keep_until INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE fences (
    name TEXT PRIMARY KEY,
    token BLOB NOT NULL,
    held_until INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE links (
    tenant_id TEXT NOT NULL,
    incident_id TEXT NOT NULL,
    workspace TEXT NOT NULL,
    route TEXT NOT NULL,
    sentinel_id TEXT NOT NULL,
    state TEXT NOT NULL,
    parked TEXT,
    updated_at INTEGER NOT NULL,
    PRIMARY KEY (tenant_id, incident_id, workspace)
) WITHOUT ROWID;
CREATE INDEX links_twin ON links (workspace, sentinel_id);
-- Metrics count them at every scrape: not by reading every link.
CREATE INDEX links_parked ON links (tenant_id, incident_id) WHERE parked IS NOT NULL;
CREATE INDEX links_route ON links (route, tenant_id, incident_id, workspace);

CREATE TABLE journal (
    seq INTEGER PRIMARY KEY,
    at INTEGER NOT NULL,
    tenant_id TEXT NOT NULL,
    incident_id TEXT NOT NULL,
    workspace TEXT NOT NULL,
    kind TEXT NOT NULL,
    detail TEXT NOT NULL
);
CREATE INDEX journal_link ON journal (tenant_id, incident_id, workspace, seq);

CREATE TABLE named_values (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE holds (route TEXT PRIMARY KEY, since INTEGER NOT NULL, reason TEXT NOT NULL) WITHOUT ROWID;
