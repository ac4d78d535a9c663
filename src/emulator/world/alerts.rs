//! A Defender alert as Sentinel holds it: a SecurityAlert entity, with the entities that its evidence stands for
//! (`sentinel.md` §9, §20). Only the kinds whose members both sides document are made; the rest is left out.

use serde_json::{Map, Value, json};
use uuid::Uuid;

/// The tactics that Sentinel knows; other categories of alerts are none.
const TACTICS: [&str; 17] = [
    "Reconnaissance",
    "ResourceDevelopment",
    "InitialAccess",
    "Execution",
    "Persistence",
    "PrivilegeEscalation",
    "DefenseEvasion",
    "CredentialAccess",
    "Discovery",
    "LateralMovement",
    "Collection",
    "Exfiltration",
    "CommandAndControl",
    "Impact",
    "PreAttack",
    "ImpairProcessControl",
    "InhibitResponseFunction",
];

/// An alert of a workspace, and what came with it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct SecurityAlert {
    /// The entity as `POST …/alerts` shows it.
    pub(super) entity: Value,
    /// The entities that it carries.
    pub(super) entities: Vec<Value>,
    /// The resource id of the analytics rule that made it, if one did.
    pub(super) rule: Option<String>,
    /// Whether it came from Defender: then only Defender relates it to incidents.
    pub(super) from_defender: bool,
}

impl SecurityAlert {
    /// `systemAlertId`
    pub(super) fn name(&self) -> &str {
        self.entity["name"].as_str().unwrap_or_default()
    }
}

/// A GUID that looks like any other and follows from a text, so that a run can be repeated.
pub(super) fn guid(seed: &str) -> String {
    let bytes = Uuid::new_v5(&Uuid::NAMESPACE_OID, seed.as_bytes()).into_bytes();
    uuid::Builder::from_random_bytes(bytes).into_uuid().to_string()
}

/// An entity. The name follows from kind and members, so that one thing seen twice is one entity.
pub(super) fn entity(provider: &str, kind: &str, friendly: &str, members: &Map<String, Value>) -> Value {
    let name = guid(&format!("entity:{kind}:{}", Value::Object(members.clone())));
    let mut properties = members.clone();
    properties.insert("friendlyName".into(), json!(friendly));
    json!({
        "id": format!("{provider}/Entities/{name}"), "name": name, "type": "Microsoft.SecurityInsights/Entities",
        "kind": kind, "properties": properties,
    })
}

/// The alert that a Graph alert becomes. `provider` is the workspace's id up to `Microsoft.SecurityInsights`.
pub(super) fn from_defender(provider: &str, alert: &Value) -> SecurityAlert {
    let text = |name: &str| alert[name].as_str().filter(|text| !text.is_empty());
    let id = text("id").unwrap_or_default();
    let name = guid(&format!("alert:{}:{id}", provider.to_lowercase()));
    let severity = match text("severity") {
        Some("high") => "High",
        Some("low") => "Low",
        Some("informational") => "Informational",
        _ => "Medium",
    };
    let status = match text("status") {
        Some("new") => "New",
        Some("inProgress") => "InProgress",
        Some("resolved") => "Resolved",
        _ => "Unknown",
    };
    let categories = alert["categories"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let mut tactics: Vec<&str> = Vec::new();
    for category in text("category").into_iter().chain(categories) {
        if TACTICS.contains(&category) && !tactics.contains(&category) {
            tactics.push(category);
        }
    }
    let mut properties = json!({
        "systemAlertId": name, "providerAlertId": id, "severity": severity, "status": status, "tactics": tactics,
        "techniques": alert["mitreTechniques"].as_array().cloned().unwrap_or_default(),
        "vendorName": "Microsoft", "productName": product(alert), "confidenceLevel": "Unknown",
    });
    for (to, from) in [
        ("alertDisplayName", "title"),
        ("friendlyName", "title"),
        ("alertType", "detectorId"),
        ("description", "description"),
        ("alertLink", "alertWebUrl"),
        ("timeGenerated", "createdDateTime"),
        ("processingEndTime", "lastUpdateDateTime"),
        ("startTimeUtc", "firstActivityDateTime"),
        ("endTimeUtc", "lastActivityDateTime"),
    ] {
        if let Some(value) = text(from) {
            properties[to] = json!(value);
        }
    }
    let rule = text("detectorId").filter(|_| text("serviceSource") == Some("microsoftSentinel"));
    let mut entities: Vec<Value> = Vec::new();
    for evidence in alert["evidence"].as_array().into_iter().flatten() {
        for one in of_evidence(provider, evidence) {
            if !entities.contains(&one) {
                entities.push(one);
            }
        }
    }
    SecurityAlert {
        entity: json!({
            "id": format!("{provider}/Entities/{name}"), "name": name,
            "type": "Microsoft.SecurityInsights/Entities", "kind": "SecurityAlert", "properties": properties,
        }),
        entities,
        rule: rule.map(|rule| format!("{provider}/alertRules/{rule}")),
        from_defender: true,
    }
}

fn product(alert: &Value) -> String {
    if let Some(name) = alert["productName"].as_str().filter(|name| !name.is_empty()) {
        return name.to_owned();
    }
    match alert["serviceSource"].as_str().unwrap_or_default() {
        "microsoftDefenderForEndpoint" => "Microsoft Defender for Endpoint",
        "microsoftDefenderForIdentity" => "Microsoft Defender for Identity",
        "microsoftDefenderForCloudApps" => "Microsoft Defender for Cloud Apps",
        "microsoftDefenderForOffice365" => "Microsoft Defender for Office 365",
        "microsoftDefenderForCloud" => "Microsoft Defender for Cloud",
        "azureAdIdentityProtection" => "Microsoft Entra ID Protection",
        "microsoftAppGovernance" => "Microsoft Application Protection",
        "dataLossPrevention" => "Microsoft Data Loss Prevention",
        "microsoftInsiderRiskManagement" => "Microsoft Insider Risk Management",
        "microsoftSentinel" => "Azure Sentinel",
        _ => "Microsoft Defender XDR",
    }
    .to_owned()
}

/// What a piece of evidence stands for (`sentinel.md` §20): nothing, one entity, or several.
fn of_evidence(provider: &str, evidence: &Value) -> Vec<Value> {
    let mut made = Vec::new();
    let mut make = |kind: &str, friendly: &Value, members: &[(&str, &Value)]| {
        let members: Map<String, Value> = members
            .iter()
            .filter(|(_, value)| !value.is_null() && **value != json!(""))
            .map(|(name, value)| ((*name).to_owned(), (*value).clone()))
            .collect();
        if !members.is_empty() {
            made.push(entity(provider, kind, friendly.as_str().unwrap_or(kind), &members));
        }
    };
    let kind = evidence["@odata.type"].as_str().unwrap_or_default();
    let kind = kind.rsplit('.').next().unwrap_or_default();
    match kind {
        "deviceEvidence" => {
            let dns = evidence["deviceDnsName"].as_str().unwrap_or_default();
            let (short, domain) = dns.split_once('.').unwrap_or((dns, ""));
            let host = &evidence["hostName"];
            let (short, domain) = (json!(short), json!(domain));
            let host = if host.is_string() { host } else { &short };
            make("Host", host, &[("hostName", host), ("dnsDomain", &domain)]);
        }
        "userEvidence" => {
            let account = &evidence["userAccount"];
            let suffix = account["userPrincipalName"].as_str().and_then(|upn| upn.split_once('@'));
            let suffix = suffix.map_or(Value::Null, |(_, suffix)| json!(suffix));
            let members = [
                ("accountName", &account["accountName"]),
                ("ntDomain", &account["domainName"]),
                ("sid", &account["userSid"]),
                ("aadUserId", &account["azureAdUserId"]),
                ("upnSuffix", &suffix),
            ];
            make("Account", &account["accountName"], &members);
        }
        "ipEvidence" => make("Ip", &evidence["ipAddress"], &[("address", &evidence["ipAddress"])]),
        "urlEvidence" => make("Url", &evidence["url"], &[("url", &evidence["url"])]),
        "fileEvidence" => {
            let file = &evidence["fileDetails"];
            let members = [("fileName", &file["fileName"]), ("directory", &file["filePath"])];
            make("File", &file["fileName"], &members);
            for (algorithm, member) in [("SHA1", "sha1"), ("SHA256", "sha256"), ("MD5", "md5")] {
                if file[member].is_string() {
                    let members = [("algorithm", &json!(algorithm)), ("hashValue", &file[member])];
                    make("FileHash", &file[member], &members);
                }
            }
        }
        "processEvidence" => {
            let id = evidence["processId"].as_i64().map_or(Value::Null, |id| json!(id.to_string()));
            let members = [
                ("processId", &id),
                ("commandLine", &evidence["processCommandLine"]),
                ("creationTimeUtc", &evidence["processCreationDateTime"]),
            ];
            make("Process", &evidence["imageFile"]["fileName"], &members);
        }
        "mailboxEvidence" => {
            let members = [
                ("mailboxPrimaryAddress", &evidence["primaryAddress"]),
                ("displayName", &evidence["displayName"]),
                ("upn", &evidence["upn"]),
            ];
            make("Mailbox", &evidence["primaryAddress"], &members);
        }
        "analyzedMessageEvidence" => {
            let members = [
                ("networkMessageId", &evidence["networkMessageId"]),
                ("recipient", &evidence["recipientEmailAddress"]),
                ("subject", &evidence["subject"]),
            ];
            make("MailMessage", &evidence["subject"], &members);
        }
        "cloudApplicationEvidence" => {
            let members =
                [("appName", &evidence["displayName"]), ("instanceName", &evidence["instanceName"])];
            make("CloudApplication", &evidence["displayName"], &members);
        }
        "azureResourceEvidence" => {
            make("AzureResource", &evidence["resourceName"], &[("resourceId", &evidence["resourceId"])]);
        }
        _ => {}
    }
    made
}
