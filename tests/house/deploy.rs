//! Whether `deploy/` agrees with the program: the sample configurations are read by the program's own reader; what the
//! manifests promise (probes, no root, two doors open and the rest shut) is looked up in their text.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Error, ErrorKind};
use std::path::Path;

use lockstep::config::Config;

const SAMPLE: &str = "deploy/lockstep.sample.toml";

/// Stands in for the secret files: only those exist that the deployment would put there.
fn secret_file(path: &Path) -> std::io::Result<String> {
    let text = match path.file_name().and_then(|name| name.to_str()) {
        Some("contoso-client-secret" | "fabrikam-client-secret") => "a client secret",
        Some("contoso-graph-client-states") => "0123456789abcdef0123456789abcdef\n",
        Some("soc-webhook-secrets") => "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=\n",
        Some("tls.crt" | "senders-ca.crt") => "-----BEGIN CERTIFICATE-----\n",
        Some("tls.key") => "-----BEGIN PRIVATE KEY-----\n",
        _ => return Err(Error::new(ErrorKind::NotFound, "no manifest provides this file")),
    };
    Ok(text.to_owned())
}

fn parse(text: &str) -> Config {
    Config::parse(text, &BTreeMap::new(), &secret_file).unwrap_or_else(|errors| panic!("{errors}"))
}

/// A block text of a YAML file: the deeper lines after `key: |`.
fn block(yaml: &str, key: &str) -> String {
    let mut lines = yaml.lines().skip_while(|line| line.trim() != format!("{key}: |"));
    let head = lines.next().unwrap_or_else(|| panic!("{key}: | is not there"));
    let indent = |line: &str| line.len() - line.trim_start().len();
    let body: Vec<&str> =
        lines.take_while(|line| line.trim().is_empty() || indent(line) > indent(head)).collect();
    let margin = body.iter().filter(|line| !line.trim().is_empty()).map(|line| indent(line)).min();
    body.iter().map(|line| line.get(margin.unwrap_or(0)..).unwrap_or("")).collect::<Vec<_>>().join("\n")
}

/// The values of a key in a YAML file, wherever it stands, without quotes.
fn values<'a>(yaml: &'a str, key: &str) -> Vec<&'a str> {
    yaml.lines()
        .map(|line| line.trim_start().trim_start_matches("- "))
        .filter_map(|line| line.strip_prefix(key)?.strip_prefix(':'))
        .map(|value| value.trim().trim_matches('"'))
        .collect()
}

#[test]
fn the_sample_configuration_is_read_as_it_stands() {
    let config = parse(&crate::read(SAMPLE));
    assert_eq!((config.tenants.len(), config.workspaces.len(), config.routes.len()), (1, 1, 1));
    assert_eq!(config.tenants[0].graph_client_states.len(), 1);
    assert_eq!(config.workspaces[0].webhook_secrets.len(), 1);
}

/// Every optional part of the sample is right too, once somebody takes the `#` away.
#[test]
fn what_the_sample_has_commented_out_is_right_too() {
    let sample = crate::read(SAMPLE);
    // A line of settings that is switched off is `#key = …` or `#[table]`; prose has a blank after the `#`.
    let switched_on: Vec<&str> = sample
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(rest) if rest.starts_with(|c: char| c.is_ascii_lowercase() || c == '[') => rest,
            _ => line,
        })
        // Alternatives of a setting that is given: one of the two.
        .filter(|line| !line.starts_with("client_secret ="))
        .filter(|line| !line.starts_with("graph_client_states =") && !line.starts_with("webhook_secrets ="))
        .filter(|line| !line.starts_with("ca_file ="))
        .collect();
    let config = parse(&switched_on.join("\n"));
    assert_eq!((config.tenants.len(), config.workspaces.len(), config.routes.len()), (2, 1, 3));
    let overlaps = config.overlaps();
    assert!(overlaps.len() == 1 && !overlaps[0].never, "{overlaps:?}");
}

/// The README's table and the sample are written by hand: every key of the sample stands in the table.
#[test]
fn the_readme_lists_every_key_of_the_sample() {
    let readme = crate::read("README.md");
    let sample = crate::read(SAMPLE);
    let keys: BTreeSet<&str> = sample
        .lines()
        .map(|line| line.strip_prefix('#').unwrap_or(line))
        .filter_map(|line| Some(line.split_once(" = ")?.0))
        .filter(|key| key.chars().all(|c| c.is_ascii_lowercase() || c == '_'))
        .collect();
    assert!(keys.len() > 25, "{keys:?}");
    let missing: Vec<_> = keys.iter().filter(|key| !readme.contains(&format!("`{key}`"))).collect();
    assert!(missing.is_empty(), "not in the README: {missing:?}");
}

#[test]
fn kubernetes_runs_the_configuration_that_the_map_holds() {
    let map = crate::read("deploy/kubernetes/configmap.yaml");
    let config = parse(&block(&map, "lockstep.toml"));
    assert_eq!(config.routes.len(), 1);
    let secret = crate::read("deploy/kubernetes/secret.yaml");
    for file in values(&block(&map, "lockstep.toml").replace(" = ", ": "), "client_secret_file") {
        let name = Path::new(file).file_name().and_then(|name| name.to_str()).unwrap_or_default();
        assert!(!values(&secret, name).is_empty(), "the Secret has no {name}");
    }
}

#[test]
fn the_deployment_is_probed_and_has_no_rights() {
    let yaml = crate::read("deploy/kubernetes/deployment.yaml");
    assert_eq!(values(&yaml, "runAsNonRoot"), ["true"]);
    assert_eq!(values(&yaml, "readOnlyRootFilesystem"), ["true"]);
    assert_eq!(values(&yaml, "allowPrivilegeEscalation"), ["false"]);
    assert_eq!(values(&yaml, "automountServiceAccountToken"), ["false"]);
    let after = |probe: &str| {
        let rest = yaml.split(probe).nth(1).unwrap_or_else(|| panic!("no {probe}"));
        values(rest, "path").first().copied().unwrap_or_default().to_owned()
    };
    assert_eq!(after("livenessProbe:"), "/healthz");
    assert_eq!(after("readinessProbe:"), "/readyz");
}

#[test]
fn only_the_notification_doors_are_open_to_the_world() {
    let yaml = crate::read("deploy/kubernetes/ingress.yaml");
    let paths = values(&yaml, "path");
    assert_eq!(paths, ["/notify/graph", "/notify/sentinel/"]);
    assert!(!yaml.contains("defaultBackend"), "whatever matches no path would come in");
}

#[test]
fn every_form_starts_the_same_command() {
    let command = "serve --config /etc/lockstep/lockstep.toml";
    assert!(crate::read("deploy/systemd/lockstep.service").contains(command));
    let container = crate::read("deploy/Containerfile");
    let words: Vec<String> = command.split(' ').map(|word| format!("\"{word}\"")).collect();
    assert!(container.contains(&format!("CMD [{}]", words.join(", "))));
    assert!(container.contains("--no-default-features"), "the emulator stays out of the image");
    assert!(container.contains("--locked"));
}
