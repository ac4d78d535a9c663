//! What may stand in `Cargo.lock`: no banned crate, no version below a fixed hole, one copy of what must be one, and
//! nothing from elsewhere than crates.io. `deny.toml` says the same to cargo-deny; this needs no tool.

use std::collections::{BTreeMap, BTreeSet};

/// Never, with what to take instead.
const BANNED: &[(&str, &str)] = &[
    ("openssl-sys", "TLS and crypto are aws-lc-rs"),
    ("native-tls", "TLS is rustls on aws-lc-rs"),
    ("rsa", "RUSTSEC-2023-0071 has no fix; aws-lc-rs does RSA"),
    ("sqlx-sqlite", "its libsqlite3-sys conflicts with rusqlite's; keep sqlx's features lean"),
    ("serde_yaml", "deprecated; configuration is TOML"),
    ("serde_yml", "RUSTSEC-2025-0068; configuration is TOML"),
    ("rustls-pemfile", "RUSTSEC-2025-0134; rustls reads PEM itself"),
    ("paste", "unmaintained"),
    ("bincode", "RUSTSEC-2025-0141; serde_json"),
    ("governor", "reads its own clock, which no test can move; the budgets are ours"),
    ("failsafe", "reads its own clock, which no test can move; the gates are ours"),
    ("backoff", "unmaintained; domain::retry"),
    ("dotenv", "unmaintained; the configuration is one file"),
];

/// At least this version. Where several lines were mended, each has its floor; later lines have the last one's.
const FLOORS: &[(&str, &[&str], &str)] = &[
    ("h2", &["0.4.16"], "RUSTSEC-2026-0258"),
    ("rustls-webpki", &["0.103.13"], "RUSTSEC-2026-0049, -0098, -0099, -0104"),
    ("aws-lc-sys", &["0.39.0"], "RUSTSEC-2026-0044 to -0048"),
    ("jsonwebtoken", &["10.3.0"], "CVE-2026-25537"),
    ("time", &["0.3.47"], "RUSTSEC-2026-0009"),
    ("rand", &["0.9.3", "0.10.1"], "RUSTSEC-2026-0097"),
    ("sqlx", &["0.8.1"], "RUSTSEC-2024-0363"),
    ("tracing-subscriber", &["0.3.20"], "RUSTSEC-2025-0055"),
    ("libsqlite3-sys", &["0.37.0"], "SQLite before 3.51.3 can corrupt a database when its WAL is reset"),
    ("tokio-postgres", &["0.7.18"], "RUSTSEC-2026-0178"),
    ("postgres-protocol", &["0.6.12"], "RUSTSEC-2026-0179"),
];

/// Two copies would be two TLS stacks, two clients whose settings differ, or two servers that share no types.
const ONE_COPY: &[&str] = &[
    "rustls",
    "reqwest",
    "axum",
    "hyper",
    "hyper-util",
    "tokio-rustls",
    "tokio",
    "aws-lc-rs",
    "aws-lc-sys",
    "sqlx-core",
    "libsqlite3-sys",
];

/// `ring` stands in the lock because these name it as an option that is off. Whoever else names it uses it. (`cargo tree
/// -i ring`, which the test script runs, knows about features and must print nothing.)
const NAME_RING_UNUSED: &[&str] = &["quinn-proto", "rustls-webpki"];

const CRATES_IO: &str = "registry+https://github.com/rust-lang/crates.io-index";

#[derive(serde::Deserialize)]
struct Lock {
    package: Vec<Package>,
}

#[derive(serde::Deserialize)]
struct Package {
    name: String,
    version: String,
    source: Option<String>,
    #[serde(default)]
    dependencies: Vec<String>,
}

fn check(text: &str) -> Vec<String> {
    let lock: Lock = toml::from_str(text).expect("Cargo.lock is TOML with packages: cargo has read it");
    let mut wrong = Vec::new();
    let mut copies: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for Package { name, version, source, dependencies } in &lock.package {
        copies.entry(name).or_default().insert(version);
        if let Some((_, instead)) = BANNED.iter().find(|(banned, _)| banned == name) {
            wrong.push(format!("{name} is banned: {instead}"));
        }
        if let Some((_, floors, why)) = FLOORS.iter().find(|(floored, _, _)| floored == name)
            && !reaches(version, floors)
        {
            wrong.push(format!("{name} {version} is below {}: {why}", floors.join(" or ")));
        }
        match source.as_deref() {
            Some(CRATES_IO) => {}
            None if name == "lockstep" => {}
            other => wrong.push(format!("{name} comes from {other:?}, not from crates.io")),
        }
        let names_ring = dependencies.iter().any(|dependency| dependency.split(' ').next() == Some("ring"));
        if names_ring && !NAME_RING_UNUSED.contains(&name.as_str()) {
            wrong.push(format!("{name} uses ring, a second crypto stack; choose its aws-lc-rs feature"));
        }
    }
    for name in ONE_COPY {
        if let Some(versions) = copies.get(name).filter(|versions| versions.len() > 1) {
            wrong.push(format!("{name} is there {} times: {versions:?}", versions.len()));
        }
    }
    wrong
}

fn reaches(version: &str, floors: &[&str]) -> bool {
    let version = numbers(version);
    let line = floors.iter().map(|floor| numbers(floor)).find(|floor| floor[..2] == version[..2]);
    let floor = line.or_else(|| floors.last().map(|floor| numbers(floor)));
    floor.is_none_or(|floor| version >= floor)
}

/// Major, minor, patch. What follows a plus or a minus is left out.
fn numbers(version: &str) -> [u64; 3] {
    let plain = version.split(['+', '-']).next().unwrap_or_default();
    let mut parts = plain.split('.').map(|part| part.parse().unwrap_or(0));
    std::array::from_fn(|_| parts.next().unwrap_or(0))
}

#[test]
fn the_lock_holds_nothing_banned_old_or_doubled() {
    let text = crate::read("Cargo.lock");
    let wrong = check(&text);
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
    for name in ["rustls", "aws-lc-rs", "rusqlite"] {
        assert!(
            text.contains(&format!("name = \"{name}\"")),
            "{name} was not found: is the lock read right?"
        );
    }
}

#[test]
fn planted_packages_are_found() {
    let package = |name: &str, version: &str, rest: &str| {
        format!("[[package]]\nname = \"{name}\"\nversion = \"{version}\"\n{rest}\n")
    };
    let source = format!("source = \"{CRATES_IO}\"");
    let bad = [
        package("openssl-sys", "0.9.1", &source),
        package("h2", "0.4.15", &source),
        package("rand", "0.9.2", &source),
        package("rand", "0.10.0", &source),
        package("rand", "0.8.5", &source),
        package("axum", "0.7.9", &source) + &package("axum", "0.8.9", &source),
        package("serde", "1.0.0", "source = \"git+https://example.com/serde#0123\""),
        package("serde", "1.0.0", ""),
        package("rcgen", "0.14.0", &format!("{source}\ndependencies = [\"ring\"]")),
    ];
    for text in &bad {
        assert_eq!(check(text).len(), 1, "{text}: {:?}", check(text));
    }
    let good = [
        package("h2", "0.4.16", &source),
        package("h2", "0.5.0", &source),
        package("rand", "0.9.3", &source),
        package("rand", "0.11.0-rc.1+x", &source),
        package("lockstep", "0.1.0", ""),
        package("quinn-proto", "0.12.0", &format!("{source}\ndependencies = [\"ring\", \"rustls\"]")),
    ];
    for text in &good {
        assert_eq!(check(text), [""; 0], "{text}");
    }
}

/// What is linked, whatever the lock says: a system's older library must not slip in.
#[test]
fn the_linked_sqlite_has_the_wal_reset_fix() {
    assert!(rusqlite::version_number() >= 3_051_003, "SQLite {}", rusqlite::version());
}
