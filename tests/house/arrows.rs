//! Keeps the arrows of `ARCHITECTURE.md` true. Every path in `src` that leads out of its module (`crate::…`, as many
//! `super::` as it takes, a crate from outside) is found by reading tokens, not lines, and is held against one table.
//!
//! Code under `#[cfg(test)]` may reach where it likes: it is not in the program.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;

/// What one module of the top level may do.
struct Layer {
    name: &'static str,
    /// Which other modules it may import.
    may_import: &'static [&'static str],
    /// Which crates from outside it may name. `None`: any that is not in `never`.
    only_crates: Option<&'static [&'static str]>,
    /// Names that no path in it may hold; several segments stand side by side.
    never: &'static [&'static str],
}

/// Who may import whom. `main.rs` and `lib.rs` stand above the table.
const LAYERS: &[Layer] = &[
    Layer {
        name: "domain",
        may_import: &[],
        // Values and their text forms; aws_lc_rs and jsonwebtoken for the computation on signatures.
        only_crates: Some(&[
            "std",
            "core",
            "serde",
            "serde_json",
            "time",
            "uuid",
            "url",
            "thiserror",
            "base64",
            "secrecy",
            "aws_lc_rs",
            "jsonwebtoken",
        ]),
        never: &[
            "std::env",
            "std::fs",
            "std::net",
            "std::io",
            "std::process",
            "std::thread",
            "SystemTime",
            "Instant",
            "now_v7",
            "new_v4",
            "rand",
        ],
    },
    Layer {
        name: "trace",
        may_import: &["domain"],
        only_crates: Some(&["std", "serde", "time", "tokio"]),
        never: &["std::env", "std::fs", "std::net"],
    },
    Layer {
        name: "ports",
        may_import: &["domain"],
        only_crates: Some(&[
            "std",
            "core",
            "serde",
            "serde_json",
            "time",
            "uuid",
            "thiserror",
            "async_trait",
            "secrecy",
        ]),
        never: &["std::env", "std::fs", "std::net", "SystemTime", "Instant", "now_v7", "new_v4"],
    },
    Layer {
        name: "app",
        may_import: &["ports", "domain", "trace"],
        only_crates: None,
        never: &[
            "reqwest",
            "axum",
            "rusqlite",
            "sqlx",
            "azure_core",
            "azure_identity",
            "fastrand",
            "clap",
            "toml",
            "std::env",
            "std::fs",
            "std::net",
            "std::time::Instant",
            "std::time::SystemTime",
        ],
    },
    Layer {
        name: "adapters",
        may_import: &["ports", "domain", "trace"],
        only_crates: None,
        never: &["axum", "clap", "toml"],
    },
    Layer {
        name: "http",
        may_import: &["app", "ports", "domain", "config", "telemetry"],
        only_crates: None,
        never: &["reqwest", "rusqlite", "sqlx", "azure_core", "azure_identity", "clap"],
    },
    Layer {
        name: "config",
        may_import: &["domain"],
        only_crates: None,
        never: &["tokio", "reqwest", "axum", "rusqlite", "sqlx", "std::env"],
    },
    Layer {
        name: "telemetry",
        may_import: &["config"],
        only_crates: None,
        never: &["reqwest", "rusqlite", "sqlx"],
    },
    Layer {
        name: "emulator",
        may_import: &["ports", "domain"],
        only_crates: None,
        never: &["rusqlite", "sqlx", "azure_core", "azure_identity"],
    },
    Layer {
        name: "cli",
        may_import: &["app", "adapters", "http", "config", "telemetry", "emulator", "ports", "domain"],
        only_crates: None,
        never: &[],
    },
];

/// Who may ask the machine what time it is, or how time passes outside tokio. Everybody else is given a clock.
const MAY_ASK_THE_TIME: &[&str] = &[
    "src/adapters/clock.rs",
    // The credentials' crate stamps a token with the system's clock; this takes the stamp off again.
    "src/adapters/entra/mod.rs",
    "src/main.rs",
    "src/cli",
    "src/emulator",
];
const WALL_CLOCK: &[&str] = &["now_utc", "now_local", "SystemTime::now", "UNIX_EPOCH::elapsed"];

#[test]
fn every_import_follows_an_arrow() {
    let sources: BTreeMap<String, String> = crate::files("src")
        .into_iter()
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .map(|path| (path.to_string_lossy().into_owned(), crate::read(&path.to_string_lossy())))
        .collect();
    assert!(sources.len() > 10, "the walk found only {} source files", sources.len());
    let wrong = check(&sources, &dependencies(&crate::read("Cargo.toml")));
    assert!(wrong.is_empty(), "\n{}\n", wrong.iter().map(Wrong::to_string).collect::<Vec<_>>().join("\n"));
}

/// The checker finds what it is there for: one world with an error per line, and one with its harmless twin.
#[test]
fn planted_imports_are_found() {
    let outside: BTreeSet<String> =
        ["tokio", "reqwest", "axum", "rusqlite", "sqlx", "serde", "time", "fastrand", "uuid"]
            .map(str::to_owned)
            .into();
    let planted = [
        ("src/domain/plan.rs", "use crate::ports::Store;"),
        ("src/domain/plan.rs", "use crate::{domain::merge, app::worker::Step};"),
        ("src/domain/plan.rs", "fn f() { super::super::adapters::open() }"),
        ("src/domain/plan.rs", "mod inner { use super::super::super::http::router; }"),
        ("src/domain/mod.rs", "pub use super::config::Config;"),
        ("src/domain/plan.rs", "async fn f() {}"),
        ("src/domain/plan.rs", "fn f() { g().await }"),
        ("src/domain/plan.rs", "use tokio::sync::Mutex;"),
        ("src/domain/plan.rs", "fn f(c: &rusqlite::Connection) {}"),
        ("src/domain/plan.rs", "extern crate sqlx;"),
        ("src/domain/plan.rs", "fn f() { let _ = ::fastrand::f64(); }"),
        ("src/domain/plan.rs", "use std::{collections::BTreeMap, env, fs as files};"),
        ("src/domain/plan.rs", "use std::time; fn f() { time::Instant::now(); }"),
        ("src/domain/plan.rs", "fn f() { let at = std::time::SystemTime::now(); }"),
        ("src/domain/plan.rs", "fn f() { let id = uuid::Uuid::now_v7(); }"),
        ("src/ports.rs", "use crate::app::worker::Step;"),
        ("src/app/worker.rs", "use crate::adapters::store;"),
        ("src/app/worker.rs", "fn f() { OffsetDateTime::now_utc(); }"),
        ("src/app/worker.rs", "use reqwest as client;"),
        ("src/adapters/graph/client.rs", "use crate::app::health::Health;"),
        ("src/adapters/graph/client.rs", "fn f() { OffsetDateTime::now_utc(); }"),
        ("src/http/router.rs", "use crate::adapters::store::open;"),
        ("src/emulator/graph.rs", "use crate::http::router;"),
        ("src/emulator/graph.rs", "use crate::*;"),
        ("src/app/worker.rs", "use crate::Anything;"),
        ("src/elsewhere.rs", "fn f() {}"),
    ];
    for (path, text) in planted {
        let world = BTreeMap::from([(path.to_owned(), text.to_owned())]);
        assert!(!check(&world, &outside).is_empty(), "not found: {path}: {text}");
    }
    let harmless = [
        ("src/domain/plan.rs", "use crate::domain::{merge, model::Side}; use super::policy::Policy;"),
        ("src/domain/plan.rs", "// use crate::app::worker;\n/* tokio:: /* nested */ std::fs */"),
        (
            "src/domain/plan.rs",
            "const HELP: &str = \"crate::app\"; const RAW: &str = r#\"std::fs \" tokio::\"#;",
        ),
        ("src/domain/plan.rs", "fn f<'a>(c: &'a str) -> char { let quote = '\"'; '\\'' }"),
        ("src/domain/plan.rs", "#[cfg(test)] mod tests { use crate::adapters::clock; async fn f() {} }"),
        ("src/domain/plan.rs", "mod inner { use super::super::merge::judge; }"),
        ("src/domain/plan.rs", "use time::OffsetDateTime; use std::time::Duration;"),
        ("src/http/router.rs", "use crate::app::intake::Inbox; fn f() { axum::serve() }"),
        ("src/adapters/clock.rs", "fn f() { OffsetDateTime::now_utc(); }"),
        ("src/cli/demo.rs", "use crate::{adapters, emulator, app}; fn f() { SystemTime::now(); }"),
        ("src/main.rs", "use lockstep::cli; fn main() { lockstep::adapters::x() }"),
    ];
    for (path, text) in harmless {
        let world = BTreeMap::from([(path.to_owned(), text.to_owned())]);
        assert_eq!(check(&world, &outside), [], "{path}: {text}");
    }
    let test_file = BTreeMap::from([
        ("src/app/mod.rs".to_owned(), "#[cfg(test)]\nmod tests;".to_owned()),
        ("src/app/tests.rs".to_owned(), "use crate::adapters::store;".to_owned()),
        ("src/app/tests/more.rs".to_owned(), "use crate::http::router;".to_owned()),
    ]);
    assert_eq!(check(&test_file, &outside), []);
}

/// The crates that `Cargo.toml` names, as code spells them.
fn dependencies(manifest: &str) -> BTreeSet<String> {
    let manifest: toml::Table = toml::from_str(manifest).expect("Cargo.toml is TOML: cargo has read it");
    ["dependencies", "dev-dependencies"]
        .iter()
        .filter_map(|section| manifest.get(*section)?.as_table())
        .flat_map(|table| table.keys().map(|name| name.replace('-', "_")))
        .collect()
}

#[derive(Debug, PartialEq)]
struct Wrong {
    path: String,
    line: usize,
    why: String,
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path, self.line, self.why)
    }
}

/// Everything in these files that no arrow allows.
fn check(sources: &BTreeMap<String, String>, outside: &BTreeSet<String>) -> Vec<Wrong> {
    let read: BTreeMap<&str, File> =
        sources.iter().map(|(path, text)| (&**path, File::read(path, text))).collect();
    let test_modules: Vec<String> =
        read.values().flat_map(|file| file.test_modules.iter().map(|path| path.join("/"))).collect();
    let mut wrong = Vec::new();
    for (path, file) in &read {
        let module = file.module.join("/");
        if test_modules.iter().any(|test| module == *test || module.starts_with(&format!("{test}/"))) {
            continue;
        }
        wrong.extend(file.judge(path, outside));
    }
    wrong
}

// ---- one file ----------------------------------------------------------------------------------------------------

/// A path as code names it, with the module it stands in.
struct Named {
    line: usize,
    module: Vec<String>,
    segments: Vec<String>,
}

struct File {
    /// `src/app/worker.rs` is `app/worker`.
    module: Vec<String>,
    named: Vec<Named>,
    /// Lines with `async` or `await`.
    asynchronous: Vec<usize>,
    /// Modules that this file declares for tests only.
    test_modules: Vec<Vec<String>>,
}

impl File {
    fn read(path: &str, text: &str) -> Self {
        let inner = path.strip_prefix("src/").unwrap_or(path);
        let inner = inner.strip_suffix(".rs").unwrap_or(inner);
        let mut module: Vec<String> = inner.split('/').map(str::to_owned).collect();
        if matches!(module.last().map(String::as_str), Some("mod" | "lib" | "main")) {
            module.pop();
        }
        let mut file = Self { module, named: Vec::new(), asynchronous: Vec::new(), test_modules: Vec::new() };
        file.scan(&tokens(text));
        file
    }

    fn scan(&mut self, tokens: &[Token<'_>]) {
        let mut module = self.module.clone();
        // The depth at which each inline module opened.
        let mut open: Vec<usize> = Vec::new();
        let mut depth = 0;
        let mut at = 0;
        while at < tokens.len() {
            if starts(&tokens[at..], &["#", "[", "cfg", "(", "test", ")", "]"]) {
                at = self.skip_test_item(tokens, at + 7, &module);
                continue;
            }
            let Token { text, line } = tokens[at];
            match text {
                "{" => depth += 1,
                "}" => {
                    depth = usize::saturating_sub(depth, 1);
                    if open.last() == Some(&depth) {
                        open.pop();
                        module.pop();
                    }
                }
                "async" | "await" => self.asynchronous.push(line),
                "mod" if tokens.get(at + 2).is_some_and(|token| token.text == "{") => {
                    module.push(tokens[at + 1].text.to_owned());
                    open.push(depth);
                    depth += 1;
                    at += 3;
                    continue;
                }
                // `impl Trait + use<'a>` is no import.
                "use" if !starts(&tokens[at + 1..], &["<"]) => {
                    let (paths, end) = use_tree(tokens, at + 1);
                    let named =
                        paths.into_iter().map(|segments| Named { line, module: module.clone(), segments });
                    self.named.extend(named);
                    at = end;
                    continue;
                }
                "extern" if tokens.get(at + 1).is_some_and(|token| token.text == "crate") => {
                    let segments: Vec<String> =
                        tokens.get(at + 2).iter().map(|token| token.text.to_owned()).collect();
                    // A path of one segment would be taken for a local name.
                    let segments = [segments, vec!["*".to_owned()]].concat();
                    self.named.push(Named { line, module: module.clone(), segments });
                    at += 3;
                    continue;
                }
                _ if is_name(text) && !(at > 0 && matches!(tokens[at - 1].text, "." | "mod")) => {
                    let mut segments = vec![text.to_owned()];
                    while starts(&tokens[at + 1..], &["::"])
                        && tokens.get(at + 2).is_some_and(|token| is_name(token.text))
                    {
                        at += 2;
                        segments.push(tokens[at].text.to_owned());
                    }
                    if segments.len() > 1 {
                        self.named.push(Named { line, module: module.clone(), segments });
                    }
                }
                _ => {}
            }
            at += 1;
        }
    }

    /// Past the item that follows `#[cfg(test)]`: its closing brace, or its semicolon.
    fn skip_test_item(&mut self, tokens: &[Token<'_>], mut at: usize, module: &[String]) -> usize {
        let mut depth = 0;
        while at < tokens.len() {
            match tokens[at].text {
                "mod" if depth == 0 && tokens.get(at + 2).is_some_and(|token| token.text == ";") => {
                    self.test_modules.push([module, &[tokens[at + 1].text.to_owned()]].concat());
                }
                "{" | "(" | "[" => depth += 1,
                // A field or a variant that ended with what holds it.
                "}" | ")" | "]" if depth == 0 => return at,
                "}" | ")" | "]" => {
                    depth -= 1;
                    if depth == 0 && tokens[at].text == "}" {
                        return at + 1;
                    }
                }
                ";" if depth == 0 => return at + 1,
                _ => {}
            }
            at += 1;
        }
        at
    }

    fn judge(&self, path: &str, outside: &BTreeSet<String>) -> Vec<Wrong> {
        let mut wrong = Vec::new();
        let mut say = |line: usize, why: String| wrong.push(Wrong { path: path.to_owned(), line, why });
        let may_ask = MAY_ASK_THE_TIME.iter().any(|allowed| Path::new(path).starts_with(allowed));
        for named in self.named.iter().filter(|_| !may_ask) {
            if let Some(word) = WALL_CLOCK.iter().find(|word| holds(&named.segments, word)) {
                say(named.line, format!("{word} asks the machine for the time; take a ports::Clock"));
            }
        }
        // lib.rs and main.rs.
        let Some(own) = self.module.first() else { return wrong };
        let Some(layer) = LAYERS.iter().find(|layer| layer.name == own) else {
            say(1, format!("{own} is in no row of LAYERS: say there what it may import"));
            return wrong;
        };
        if own == "domain" {
            self.asynchronous.iter().for_each(|line| say(*line, "domain never awaits".to_owned()));
        }
        for Named { line, module, segments } in &self.named {
            let shown = segments.join("::");
            if let Some(target) = target(module, segments)
                && target != *own
                && !layer.may_import.contains(&target.as_str())
            {
                say(*line, format!("{shown}: {own} may not import {target}"));
            }
            let krate = segments[0].as_str();
            if let Some(only) = layer.only_crates
                && (outside.contains(krate) || ["std", "core", "alloc"].contains(&krate))
                && !only.contains(&krate)
            {
                say(*line, format!("{shown}: {own} does without {krate}"));
            }
            if let Some(word) = layer.never.iter().find(|word| holds(segments, word)) {
                say(*line, format!("{shown}: {word} has no place in {own}"));
            }
        }
        wrong
    }
}

/// Which module of the top level a path leads to, if it leads out of the one it stands in by name.
fn target(module: &[String], segments: &[String]) -> Option<String> {
    match segments[0].as_str() {
        "crate" | "lockstep" => segments.get(1).cloned(),
        "super" => {
            let up = segments.iter().take_while(|segment| *segment == "super").count();
            let kept = module.len().saturating_sub(up);
            module[..kept].first().or_else(|| segments.get(up)).cloned()
        }
        _ => None,
    }
}

/// Whether the segments of `word` stand side by side in a path.
fn holds(segments: &[String], word: &str) -> bool {
    let word: Vec<&str> = word.split("::").collect();
    segments.windows(word.len()).any(|window| window == word)
}

fn starts(tokens: &[Token<'_>], texts: &[&str]) -> bool {
    tokens.len() >= texts.len() && tokens.iter().zip(texts).all(|(token, text)| token.text == *text)
}

fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

/// The paths of one `use`, from after the keyword, and where the next item starts.
fn use_tree(tokens: &[Token<'_>], start: usize) -> (Vec<Vec<String>>, usize) {
    let mut paths = Vec::new();
    // What stands before each open brace.
    let mut stack: Vec<Vec<String>> = Vec::new();
    let mut path: Vec<String> = Vec::new();
    let mut at = start;
    let mut close = |path: &mut Vec<String>, prefix: usize| {
        if path.len() > prefix {
            paths.push(path.clone());
        }
    };
    while at < tokens.len() {
        let prefix = stack.last().map_or(0, Vec::len);
        match tokens[at].text {
            ";" => {
                close(&mut path, prefix);
                return (paths, at + 1);
            }
            "{" => stack.push(path.clone()),
            "}" => {
                close(&mut path, prefix);
                stack.pop();
                // What follows is a comma or the end: the group has been booked.
                path = stack.last().cloned().unwrap_or_default();
            }
            "," => {
                close(&mut path, prefix);
                path = stack.last().cloned().unwrap_or_default();
            }
            "as" => at += 1,
            "::" => {}
            segment => path.push(segment.to_owned()),
        }
        at += 1;
    }
    (paths, at)
}

// ---- tokens ------------------------------------------------------------------------------------------------------

#[derive(Clone, Copy, Debug, PartialEq)]
struct Token<'a> {
    text: &'a str,
    line: usize,
}

/// Names and punctuation of a Rust file. Comments, texts, numbers and characters are left out.
fn tokens(text: &str) -> Vec<Token<'_>> {
    let bytes = text.as_bytes();
    let mut found = Vec::new();
    let (mut at, mut line) = (0, 1);
    while at < bytes.len() {
        let start = at;
        let rest = &text[at..];
        match bytes[at] {
            b'/' if rest.starts_with("//") => at += rest.find('\n').unwrap_or(rest.len()),
            b'/' if rest.starts_with("/*") => at += block_comment(rest),
            b'"' => at += quoted(rest),
            b'r' | b'b' | b'c' if literal_prefix(rest).is_some() => {
                let (prefix, hashes) = literal_prefix(rest).expect("the guard has just seen it");
                let body = &rest[prefix..];
                at += prefix
                    + if hashes == usize::MAX {
                        quoted(body)
                    } else {
                        let end = format!("\"{}", "#".repeat(hashes));
                        body[1..].find(&end).map_or(body.len(), |found| 1 + found + end.len())
                    };
            }
            b'\'' => at += character(rest),
            b':' if rest.starts_with("::") => {
                found.push(Token { text: "::", line });
                at += 2;
            }
            byte if byte.is_ascii_digit() => {
                at += rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len())
            }
            byte if byte.is_ascii_alphabetic() || byte == b'_' || !byte.is_ascii() => {
                let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
                let end = if end == 0 { rest.chars().next().map_or(1, char::len_utf8) } else { end };
                found.push(Token { text: &rest[..end], line });
                at += end;
            }
            byte => {
                if !byte.is_ascii_whitespace() {
                    found.push(Token { text: &rest[..1], line });
                }
                at += 1;
            }
        }
        line += text[start..at].matches('\n').count();
    }
    found
}

fn block_comment(rest: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        match &rest.as_bytes()[at..] {
            [b'/', b'*', ..] => (depth, at) = (depth + 1, at + 2),
            [b'*', b'/', ..] => {
                (depth, at) = (depth - 1, at + 2);
                if depth == 0 {
                    return at;
                }
            }
            _ => at += 1,
        }
    }
    at
}

/// The length of a text in quotes, escapes minded.
fn quoted(rest: &str) -> usize {
    let bytes = rest.as_bytes();
    let mut at = 1;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    bytes.len()
}

/// `r"`, `r#"`, `b"`, `br#"`, `c"`: the length of the prefix and the number of hashes; `usize::MAX` where escapes count.
fn literal_prefix(rest: &str) -> Option<(usize, usize)> {
    let letters = rest.find(|c: char| !matches!(c, 'r' | 'b' | 'c'))?;
    let hashes = rest[letters..].find(|c| c != '#')?;
    let raw = rest[..letters].contains('r');
    let opens = rest[letters + hashes..].starts_with('"') && letters <= 2 && (raw || hashes == 0);
    opens.then_some((letters + hashes, if raw { hashes } else { usize::MAX }))
}

/// `'x'`, `'\n'`, or a lifetime, of which only the quote is passed.
fn character(rest: &str) -> usize {
    let mut chars = rest.char_indices().skip(1);
    match (chars.next(), chars.next()) {
        (Some((_, '\\')), Some((escaped, c))) => {
            let after = escaped + c.len_utf8();
            rest[after..].find('\'').map_or(rest.len(), |end| after + end + 1)
        }
        (Some(_), Some((end, '\''))) => end + 1,
        _ => 1,
    }
}
