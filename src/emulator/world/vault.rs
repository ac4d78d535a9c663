//! A vault of secrets, each with its versions, as Azure Key Vault keeps them.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use uuid::Uuid;

use super::{Answer, Refusal};

/// All secrets, by name: the newest version is the last.
#[derive(Clone, Debug, Default)]
pub struct Vault {
    secrets: BTreeMap<String, Vec<(String, String)>>,
}

impl Vault {
    /// Adds a version. Returns its name.
    pub fn put(&mut self, name: &str, value: &str) -> String {
        let versions = self.secrets.entry(name.to_lowercase()).or_default();
        let seed = format!("secret:{name}:{}", versions.len());
        let version = Uuid::new_v5(&Uuid::NAMESPACE_URL, seed.as_bytes()).simple().to_string();
        versions.push((version.clone(), value.to_owned()));
        version
    }

    /// `GET /secrets/{name}` or `/secrets/{name}/{version}`
    pub fn get(&self, base: &str, name: &str, version: Option<&str>) -> Answer {
        let versions = self.secrets.get(&name.to_lowercase()).map(Vec::as_slice).unwrap_or_default();
        let found = match version {
            None => versions.last(),
            Some(version) => versions.iter().find(|(known, _)| known == version),
        };
        let Some((version, value)) = found else {
            let message = format!("A secret with (name/id) {name} was not found in this key vault.");
            return Err(Refusal::new(404, "SecretNotFound", message));
        };
        Ok((
            200,
            json!({
                "value": value,
                "contentType": "application/x-pem-file",
                "id": format!("{base}/secrets/{name}/{version}"),
                "attributes": {"enabled": true, "recoveryLevel": "Recoverable+Purgeable"},
                "tags": Value::Object(serde_json::Map::new()),
            }),
        ))
    }
}
