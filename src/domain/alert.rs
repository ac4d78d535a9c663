//! A Defender alert and its evidence, read generously: what is missing is missing, what is unknown is kept as text.
//!
//! Evidence becomes Sentinel's entities as `sentinel.md` §20 pairs them. Both lists grow without notice, so a type that
//! this version does not know is named, and never fatal.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::domain::model::{DefenderClassification, DefenderDetermination, DefenderSeverity, Facts, words};

words! {
    /// Graph `alertStatus`.
    AlertStatus {
        /// Not computed.
        Unknown = "unknown",
        /// New work.
        New = "new",
        /// Somebody is on it.
        InProgress = "inProgress",
        /// Closed.
        Resolved = "resolved",
    }
}

/// An alert as read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alert {
    /// Graph's `id`.
    pub id: String,
    /// `title`.
    pub title: Option<String>,
    /// `severity`.
    pub severity: DefenderSeverity,
    /// `status`.
    pub status: AlertStatus,
    /// `productName`, or what `serviceSource` stands for.
    pub product: Option<String>,
    /// `category` and `categories`: tactics, in the service's order.
    pub tactics: Vec<String>,
    /// `mitreTechniques`.
    pub techniques: Vec<String>,
    /// `createdDateTime`.
    #[serde(with = "time::serde::rfc3339::option")]
    pub created: Option<OffsetDateTime>,
    /// `lastUpdateDateTime`.
    #[serde(with = "time::serde::rfc3339::option")]
    pub updated: Option<OffsetDateTime>,
    /// `firstActivityDateTime`.
    #[serde(with = "time::serde::rfc3339::option")]
    pub first_activity: Option<OffsetDateTime>,
    /// `lastActivityDateTime`.
    #[serde(with = "time::serde::rfc3339::option")]
    pub last_activity: Option<OffsetDateTime>,
    /// `alertWebUrl`.
    pub web_url: Option<String>,
    /// `assignedTo`.
    pub assigned_to: Option<String>,
    /// `classification`.
    pub classification: DefenderClassification,
    /// `determination`.
    pub determination: DefenderDetermination,
    /// `incidentId`.
    pub incident_id: Option<String>,
    /// What the evidence names, each once.
    pub entities: Vec<Entity>,
    /// `rbacGroupName` of its devices.
    pub device_groups: Vec<String>,
}

/// The kinds of entity that Sentinel has, and text for everything else.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum EntityKind {
    /// A person's or a service's account.
    Account,
    /// A device.
    Host,
    /// An address.
    Ip,
    /// A file by name and folder.
    File,
    /// A file's hash.
    FileHash,
    /// A process.
    Process,
    /// A URL.
    Url,
    /// Malware.
    Malware,
    /// A registry key.
    RegistryKey,
    /// A registry value.
    RegistryValue,
    /// An Azure resource.
    AzureResource,
    /// A cloud application.
    CloudApplication,
    /// A name resolution.
    DnsResolution,
    /// A security group.
    SecurityGroup,
    /// A mailbox.
    Mailbox,
    /// A mail message.
    MailMessage,
    /// A mail cluster.
    MailCluster,
    /// A mail that somebody submitted.
    SubmissionMail,
    /// An IoT device.
    IoTDevice,
    /// Something that Sentinel has no kind for: what Graph calls it.
    Text(String),
}

impl EntityKind {
    /// As Sentinel calls it, or as Graph does.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Account => "Account",
            Self::Host => "Host",
            Self::Ip => "IP",
            Self::File => "File",
            Self::FileHash => "FileHash",
            Self::Process => "Process",
            Self::Url => "URL",
            Self::Malware => "Malware",
            Self::RegistryKey => "RegistryKey",
            Self::RegistryValue => "RegistryValue",
            Self::AzureResource => "AzureResource",
            Self::CloudApplication => "CloudApplication",
            Self::DnsResolution => "DNS",
            Self::SecurityGroup => "SecurityGroup",
            Self::Mailbox => "Mailbox",
            Self::MailMessage => "MailMessage",
            Self::MailCluster => "MailCluster",
            Self::SubmissionMail => "SubmissionMail",
            Self::IoTDevice => "IoTDevice",
            Self::Text(name) => name,
        }
    }
}

/// One thing that an alert names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entity {
    /// What it is.
    pub kind: EntityKind,
    /// What people call it: its strongest identifier that can be read.
    pub name: String,
    /// Its identifiers as Sentinel calls them.
    pub facts: Vec<(String, String)>,
}

/// Reads an alert. Without an id there is nothing to go by.
pub fn alert(value: &Value) -> Result<Alert, String> {
    let object = value.as_object().ok_or("not an object")?;
    let evidence = object.get("evidence").unwrap_or(&Value::Null);
    let word = |member: &str| text(object, member).unwrap_or_default();
    let mut tactics = texts(object, "categories");
    if let Some(category) = text(object, "category")
        && !tactics.contains(&category)
    {
        tactics.insert(0, category);
    }
    let groups = evidence.as_array().into_iter().flatten().filter_map(Value::as_object);
    let mut device_groups: Vec<String> = groups.filter_map(|device| text(device, "rbacGroupName")).collect();
    device_groups.sort();
    device_groups.dedup();
    let unset = || "unknown".to_owned();
    Ok(Alert {
        id: text(object, "id").ok_or("no id")?,
        title: text(object, "title"),
        severity: DefenderSeverity::parse(&word("severity")),
        status: AlertStatus::parse(&word("status")),
        product: text(object, "productName")
            .or_else(|| text(object, "serviceSource").map(|source| product_of(&source))),
        tactics,
        techniques: texts(object, "mitreTechniques"),
        created: instant(object, "createdDateTime"),
        updated: instant(object, "lastUpdateDateTime"),
        first_activity: instant(object, "firstActivityDateTime"),
        last_activity: instant(object, "lastActivityDateTime"),
        web_url: text(object, "alertWebUrl"),
        assigned_to: text(object, "assignedTo"),
        classification: DefenderClassification::parse(&text(object, "classification").unwrap_or_else(unset)),
        determination: DefenderDetermination::parse(&text(object, "determination").unwrap_or_else(unset)),
        incident_id: text(object, "incidentId"),
        entities: entities(evidence),
        device_groups,
    })
}

/// What an incident's alerts come to.
pub fn facts(alerts: &[Alert], system_tags: Vec<String>) -> Facts {
    let mut ordered: Vec<(DefenderSeverity, u32)> = Vec::new();
    let mut severities: Vec<&DefenderSeverity> = alerts.iter().map(|alert| &alert.severity).collect();
    severities.sort_by_key(|severity| (rank(severity), severity.as_str().to_owned()));
    for severity in severities {
        match ordered.last_mut() {
            Some((last, count)) if last == severity => *count += 1,
            _ => ordered.push((severity.clone(), 1)),
        }
    }
    let all = |of: &dyn Fn(&Alert) -> Vec<String>| {
        let mut list: Vec<String> = alerts.iter().flat_map(of).collect();
        list.sort();
        list.dedup();
        list
    };
    Facts {
        alerts: ordered,
        products: all(&|alert| alert.product.iter().cloned().collect()),
        tactics: all(&|alert| alert.tactics.clone()),
        techniques: all(&|alert| alert.techniques.clone()),
        device_groups: all(&|alert| alert.device_groups.clone()),
        first_activity: alerts.iter().filter_map(|alert| alert.first_activity).min(),
        last_activity: alerts.iter().filter_map(|alert| alert.last_activity).max(),
        system_tags,
    }
}

/// The most severe first.
pub fn rank(severity: &DefenderSeverity) -> u8 {
    match severity {
        DefenderSeverity::High => 0,
        DefenderSeverity::Medium => 1,
        DefenderSeverity::Low => 2,
        DefenderSeverity::Informational => 3,
        DefenderSeverity::Unknown => 4,
        DefenderSeverity::Other(_) => 5,
    }
}

/// Graph's `serviceSource` as the portal spells it; a new one is taken apart at its capital letters.
fn product_of(source: &str) -> String {
    let known = match source {
        "microsoftDefenderForEndpoint" => "Microsoft Defender for Endpoint",
        "microsoftDefenderForIdentity" => "Microsoft Defender for Identity",
        "microsoftDefenderForCloudApps" => "Microsoft Defender for Cloud Apps",
        "microsoftDefenderForOffice365" => "Microsoft Defender for Office 365",
        "microsoft365Defender" => "Microsoft Defender XDR",
        "azureAdIdentityProtection" => "Microsoft Entra ID Protection",
        "microsoftAppGovernance" => "Microsoft App Governance",
        "dataLossPrevention" => "Microsoft Data Loss Prevention",
        "microsoftDefenderForCloud" => "Microsoft Defender for Cloud",
        "microsoftSentinel" => "Microsoft Sentinel",
        "microsoftInsiderRiskManagement" => "Microsoft Purview Insider Risk Management",
        "microsoftThreatIntelligence" => "Microsoft Threat Intelligence",
        other => return spaced(other),
    };
    known.to_owned()
}

fn spaced(name: &str) -> String {
    let mut out = String::new();
    for c in name.chars() {
        if c.is_uppercase() && !out.is_empty() {
            out.push(' ');
        }
        if out.is_empty() { out.extend(c.to_uppercase()) } else { out.push(c) }
    }
    out
}

// ---- evidence ----------------------------------------------------------------------------------------------------

/// The deepest that evidence holds evidence.
const DEEPEST: u8 = 4;

/// What a list of evidence names, each thing once, in its order.
pub fn entities(evidence: &Value) -> Vec<Entity> {
    let mut found = Found(Vec::new());
    for item in evidence.as_array().into_iter().flatten() {
        found.evidence(item, 0);
    }
    found.0
}

struct Found(Vec<Entity>);

impl Found {
    /// Adds a thing with those of its identifiers that are there; the first of them names it. False without any.
    fn add(&mut self, kind: EntityKind, facts: &[(&str, Option<String>)]) -> bool {
        let facts: Vec<(String, String)> =
            facts.iter().filter_map(|(name, value)| Some(((*name).to_owned(), value.clone()?))).collect();
        let Some((_, name)) = facts.first().cloned() else { return false };
        self.put(Entity { kind, name, facts });
        true
    }

    fn put(&mut self, entity: Entity) {
        let same = |known: &Entity| known.kind == entity.kind && known.facts == entity.facts;
        if !self.0.iter().any(same) {
            self.0.push(entity);
        }
    }

    /// Names what Sentinel has no kind for, by the first of these members that is there.
    fn name(&mut self, kind: &str, item: &Map<String, Value>, members: &[&str]) {
        let shown = members.iter().find_map(|member| text(item, member)).unwrap_or_else(|| first_text(item));
        let kind = kind.strip_suffix("Evidence").unwrap_or(kind).to_owned();
        let name = if shown.is_empty() { kind.clone() } else { shown };
        self.put(Entity {
            kind: EntityKind::Text(kind),
            facts: vec![("name".to_owned(), name.clone())],
            name,
        });
    }

    /// Evidence within evidence.
    fn inner(&mut self, item: &Map<String, Value>, member: &str, kind: &str, depth: u8) {
        match item.get(member) {
            Some(Value::Array(list)) => list.iter().for_each(|one| self.typed(one, kind, depth + 1)),
            Some(one @ Value::Object(_)) => self.typed(one, kind, depth + 1),
            _ => {}
        }
    }

    fn evidence(&mut self, item: &Value, depth: u8) {
        self.typed(item, "evidence", depth);
    }

    /// `fallback` names the type where the item does not: inside other evidence it may be left out.
    fn typed(&mut self, item: &Value, fallback: &str, depth: u8) {
        let Some(object) = item.as_object() else {
            if !item.is_null() {
                let empty = Map::new();
                self.name(fallback, &empty, &[]);
            }
            return;
        };
        if depth > DEEPEST {
            return;
        }
        let kind = text(object, "@odata.type").unwrap_or_else(|| fallback.to_owned());
        let kind = kind.rsplit('.').next().unwrap_or(&kind).to_owned();
        let before = self.0.len();
        if !self.known(&kind, object, depth) && self.0.len() == before {
            self.name(&kind, object, &["displayName", "name"]);
        }
    }

    /// False where nothing of it could be named.
    fn known(&mut self, kind: &str, item: &Map<String, Value>, depth: u8) -> bool {
        use EntityKind as K;
        let get = |member: &str| text(item, member);
        match kind {
            "deviceEvidence" => self.device(item),
            "userEvidence" => {
                item.get("userAccount").and_then(Value::as_object).is_some_and(|a| self.account(a))
            }
            "ipEvidence" => self.add(K::Ip, &[("address", get("ipAddress"))]),
            "urlEvidence" => self.add(K::Url, &[("url", get("url"))]),
            "fileEvidence" => {
                item.get("fileDetails").and_then(Value::as_object).is_some_and(|file| self.file(file))
            }
            "fileHashEvidence" => self.hash(&get("algorithm").unwrap_or_default(), get("value")),
            "processEvidence" => self.process(item),
            "registryKeyEvidence" => self.add(K::RegistryKey, &key_of(item)),
            "registryValueEvidence" => {
                let [key, hive] = key_of(item);
                self.add(K::RegistryKey, &[key.clone(), hive.clone()]);
                let value = [("valueName", get("registryValueName")), ("valueData", get("registryValue"))];
                let kind = ("valueType", get("registryValueType"));
                let [name, data] = value;
                self.add(K::RegistryValue, &[name, data, kind, key, hive])
            }
            "mailboxEvidence" => {
                if let Some(account) = item.get("userAccount").and_then(Value::as_object) {
                    self.account(account);
                }
                let facts = [
                    ("mailboxPrimaryAddress", get("primaryAddress")),
                    ("upn", get("upn")),
                    ("displayName", get("displayName")),
                ];
                self.add(K::Mailbox, &facts)
            }
            "analyzedMessageEvidence" => {
                let message = [
                    ("networkMessageId", get("networkMessageId")),
                    ("recipient", get("recipientEmailAddress")),
                    ("internetMessageId", get("internetMessageId")),
                    ("subject", get("subject")),
                    ("senderIP", get("senderIp")),
                    ("deliveryAction", get("deliveryAction")),
                    ("deliveryLocation", get("deliveryLocation")),
                ];
                let named = self.add(K::MailMessage, &message);
                for url in texts(item, "urls") {
                    self.add(K::Url, &[("url", Some(url))]);
                }
                self.add(K::Ip, &[("address", get("senderIp"))]);
                self.add(K::Mailbox, &[("mailboxPrimaryAddress", get("recipientEmailAddress"))]);
                named
            }
            "mailClusterEvidence" => {
                let facts = [
                    ("query", get("query")),
                    ("clusterBy", get("clusterBy")),
                    ("clusterByValue", get("clusterByValue")),
                    ("mailCount", get("emailCount")),
                ];
                self.add(K::MailCluster, &facts)
            }
            "submissionMailEvidence" => {
                let facts = [
                    ("submissionId", get("submissionId")),
                    ("networkMessageId", get("networkMessageId")),
                    ("recipient", get("recipient")),
                    ("submitter", get("submitter")),
                    ("sender", get("sender")),
                    ("senderIp", get("senderIp")),
                    ("subject", get("subject")),
                ];
                self.add(K::SubmissionMail, &facts)
            }
            "cloudApplicationEvidence" => {
                let id = get("saasAppId").or_else(|| get("appId"));
                let names = [("appName", get("displayName")), ("instanceName", get("instanceName"))];
                let [name, instance] = names;
                self.add(K::CloudApplication, &[name, ("appId", id), instance])
            }
            "oauthApplicationEvidence" | "servicePrincipalEvidence" => {
                let name = get("displayName").or_else(|| get("servicePrincipalName"));
                let object = get("objectId").or_else(|| get("servicePrincipalObjectId"));
                let facts =
                    [("appName", name), ("additionalAppId", get("appId")), ("additionalObjectId", object)];
                self.add(K::CloudApplication, &facts)
            }
            "azureResourceEvidence" => self.add(K::AzureResource, &[("resourceId", get("resourceId"))]),
            "blobEvidence" => {
                for hash in item.get("fileHashes").and_then(Value::as_array).into_iter().flatten() {
                    if let Some(hash) = hash.as_object() {
                        self.hash(&text(hash, "algorithm").unwrap_or_default(), text(hash, "value"));
                    }
                }
                let before = self.0.len();
                self.inner(item, "blobContainer", "blobContainerEvidence", depth);
                self.name(kind, item, &["url", "name"]);
                self.0.len() > before
            }
            "blobContainerEvidence" => {
                let before = self.0.len();
                self.inner(item, "storageResource", "azureResourceEvidence", depth);
                if self.0.len() == before {
                    self.name(kind, item, &["url", "name"]);
                }
                true
            }
            "containerRegistryEvidence" => match get("registry") {
                Some(id) if id.to_lowercase().starts_with("/subscriptions/") => {
                    self.add(K::AzureResource, &[("resourceId", Some(id))])
                }
                _ => {
                    self.name(kind, item, &["registry"]);
                    true
                }
            },
            "kubernetesClusterEvidence" => {
                self.inner(item, "cloudResource", "azureResourceEvidence", depth);
                self.name(kind, item, &["name"]);
                true
            }
            "securityGroupEvidence" => {
                let facts = [
                    ("distinguishedName", get("distinguishedName")),
                    ("sid", get("sid")),
                    ("objectGuid", get("activeDirectoryObjectGuid").or_else(|| get("securityGroupId"))),
                ];
                self.add(K::SecurityGroup, &facts)
            }
            "malwareEvidence" => {
                let named =
                    self.add(K::Malware, &[("malwareName", get("name")), ("category", get("category"))]);
                self.inner(item, "files", "fileEvidence", depth);
                self.inner(item, "processes", "processEvidence", depth);
                named
            }
            "dnsEvidence" => {
                let named = self.add(K::DnsResolution, &[("domainName", get("domainName"))]);
                for member in ["dnsServerIp", "hostIpAddress", "ipAddresses"] {
                    self.inner(item, member, "ipEvidence", depth);
                }
                named
            }
            "ioTDeviceEvidence" => {
                let facts = [
                    ("deviceName", get("deviceName")),
                    ("deviceId", get("deviceId")),
                    ("deviceType", get("deviceType")),
                    ("vendor", get("manufacturer")),
                    ("model", get("model")),
                    ("serialNumber", get("serialNumber")),
                    ("macAddress", get("macAddress")),
                    ("operatingSystem", get("operatingSystem")),
                ];
                let named = self.add(K::IoTDevice, &facts);
                self.inner(item, "ipAddress", "ipEvidence", depth);
                self.inner(item, "ioTHub", "azureResourceEvidence", depth);
                named
            }
            "hostLogonSessionEvidence" => {
                let before = self.0.len();
                self.inner(item, "host", "deviceEvidence", depth);
                self.inner(item, "account", "userEvidence", depth);
                self.0.len() > before
            }
            "cloudLogonSessionEvidence" => {
                self.inner(item, "account", "userEvidence", depth);
                self.name(kind, item, &["sessionId", "deviceName"]);
                true
            }
            "nicEvidence" => {
                let before = self.0.len();
                self.inner(item, "ipAddress", "ipEvidence", depth);
                if get("macAddress").is_some() || self.0.len() == before {
                    self.name(kind, item, &["macAddress"]);
                }
                true
            }
            "networkConnectionEvidence" => {
                let before = self.0.len();
                self.inner(item, "sourceAddress", "ipEvidence", depth);
                self.inner(item, "destinationAddress", "ipEvidence", depth);
                self.0.len() > before
            }
            _ => {
                let members: &[&str] = match kind {
                    "activeDirectoryDomainEvidence" => &["activeDirectoryDomainName"],
                    "aiAgentEvidence" => &["agentName", "agentId"],
                    "amazonResourceEvidence" => &["amazonResourceId", "resourceName"],
                    "googleCloudResourceEvidence" => &["fullResourceName", "resourceName"],
                    "cloudLogonRequestEvidence" => &["requestId"],
                    "containerEvidence" => &["name", "containerId"],
                    "containerImageEvidence" => &["imageId"],
                    "gitHubOrganizationEvidence" | "gitHubUserEvidence" => &["login", "displayName", "name"],
                    "gitHubRepoEvidence" => &["baseUrl", "login", "repoId"],
                    "mailboxConfigurationEvidence" => &["mailboxPrimaryAddress", "displayName"],
                    "sasTokenEvidence" => &["signatureHash"],
                    "teamsMessageEvidence" => &["messageId", "subject"],
                    _ => &["displayName", "name"],
                };
                self.name(kind, item, members);
                true
            }
        }
    }

    fn device(&mut self, item: &Map<String, Value>) -> bool {
        let get = |member: &str| text(item, member);
        let dns = get("deviceDnsName");
        let (first, rest) = match dns.as_deref().map(|name| name.split_once('.').unwrap_or((name, ""))) {
            Some((first, rest)) => (Some(first.to_owned()), Some(rest.to_owned()).filter(|r| !r.is_empty())),
            None => (None, None),
        };
        let family = get("osPlatform").map(|os| {
            let lower = os.to_lowercase();
            let family = match lower.as_str() {
                os if os.starts_with("windows") => "Windows",
                os if os.contains("linux") => "Linux",
                "android" => "Android",
                "ios" => "IOS",
                _ => "Unknown",
            };
            family.to_owned()
        });
        let vm = item.get("vmMetadata").and_then(Value::as_object);
        let facts = [
            ("hostName", get("hostName").or(first)),
            ("dnsDomain", get("dnsDomain").or(rest)),
            ("ntDomain", get("ntDomain")),
            ("azureID", vm.and_then(|vm| text(vm, "resourceId"))),
            ("osFamily", family),
            ("osVersion", get("version").or_else(|| get("osBuild"))),
            ("mdeDeviceId", get("mdeDeviceId")),
            ("azureAdDeviceId", get("azureAdDeviceId")),
        ];
        let named = facts[0].1.is_some() || facts[6].1.is_some() || facts[7].1.is_some();
        let added = named && self.add(EntityKind::Host, &facts);
        for address in texts(item, "ipInterfaces").into_iter().chain(get("lastIpAddress")) {
            self.add(EntityKind::Ip, &[("address", Some(address))]);
        }
        added
    }

    fn account(&mut self, account: &Map<String, Value>) -> bool {
        let get = |member: &str| text(account, member);
        let upn = get("userPrincipalName");
        let parts = upn.as_deref().and_then(|upn| upn.rsplit_once('@'));
        let (name, suffix) = match parts {
            Some((name, suffix)) => (Some(name.to_owned()), Some(suffix.to_owned())),
            None => (get("accountName"), None),
        };
        let domain = get("domainName");
        let dotted = domain.as_deref().is_some_and(|domain| domain.contains('.'));
        let facts = vec![
            ("name".to_owned(), name),
            ("upnSuffix".to_owned(), suffix),
            ((if dotted { "dnsDomain" } else { "ntDomain" }).to_owned(), domain),
            ("aadUserId".to_owned(), get("azureAdUserId")),
            ("sid".to_owned(), get("userSid")),
            ("objectGuid".to_owned(), get("activeDirectoryObjectGuid")),
            ("displayName".to_owned(), get("displayName")),
        ];
        let facts: Vec<(String, String)> =
            facts.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
        let Some(first) = facts.first().map(|(_, value)| value.clone()) else { return false };
        self.put(Entity { kind: EntityKind::Account, name: upn.unwrap_or(first), facts });
        true
    }

    fn file(&mut self, file: &Map<String, Value>) -> bool {
        let facts = [("fileName", text(file, "fileName")), ("directory", text(file, "filePath"))];
        let named = self.add(EntityKind::File, &facts);
        let mut hashed = false;
        for algorithm in ["sha256", "sha1", "md5", "sha256Ac"] {
            hashed |= self.hash(algorithm, text(file, algorithm));
        }
        named || hashed
    }

    fn hash(&mut self, algorithm: &str, value: Option<String>) -> bool {
        let algorithm = Some(algorithm.to_uppercase()).filter(|name| !name.is_empty());
        value.is_some() && self.add(EntityKind::FileHash, &[("hashValue", value), ("algorithm", algorithm)])
    }

    fn process(&mut self, item: &Map<String, Value>) -> bool {
        let get = |member: &str| text(item, member);
        let image = item.get("imageFile").and_then(Value::as_object);
        let facts = [
            ("commandLine", get("processCommandLine")),
            ("processId", get("processId")),
            ("creationTimeUtc", get("processCreationDateTime")),
            ("image", image.and_then(|file| text(file, "fileName"))),
            ("mdeDeviceId", get("mdeDeviceId")),
        ];
        let named = facts[..4].iter().any(|(_, value)| value.is_some());
        let added = named && self.add(EntityKind::Process, &facts);
        for member in ["imageFile", "parentProcessImageFile"] {
            if let Some(file) = item.get(member).and_then(Value::as_object) {
                self.file(file);
            }
        }
        if let Some(account) = item.get("userAccount").and_then(Value::as_object) {
            self.account(account);
        }
        added
    }
}

/// Key and hive of a registry item; the hive in Sentinel's spelling.
fn key_of(item: &Map<String, Value>) -> [(&'static str, Option<String>); 2] {
    let hive = text(item, "registryHive").map(|hive| match hive.to_uppercase().as_str() {
        "HKLM" => "HKEY_LOCAL_MACHINE".to_owned(),
        "HKCU" => "HKEY_CURRENT_USER".to_owned(),
        "HKCR" => "HKEY_CLASSES_ROOT".to_owned(),
        "HKU" => "HKEY_USERS".to_owned(),
        "HKCC" => "HKEY_CURRENT_CONFIG".to_owned(),
        other => other.to_owned(),
    });
    [("key", text(item, "registryKey")), ("hive", hive)]
}

fn first_text(item: &Map<String, Value>) -> String {
    let skipped =
        ["@odata.type", "createdDateTime", "verdict", "remediationStatus", "remediationStatusDetails"];
    item.iter()
        .filter(|(name, _)| !skipped.contains(&name.as_str()))
        .find_map(|(_, value)| value.as_str().filter(|text| !text.trim().is_empty()).map(str::to_owned))
        .unwrap_or_default()
}

fn text(object: &Map<String, Value>, member: &str) -> Option<String> {
    match object.get(member)? {
        Value::String(text) if !text.trim().is_empty() => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

fn texts(object: &Map<String, Value>, member: &str) -> Vec<String> {
    let list = object.get(member).and_then(Value::as_array);
    let list = list.into_iter().flatten().filter_map(Value::as_str).filter(|text| !text.trim().is_empty());
    list.map(str::to_owned).collect()
}

fn instant(object: &Map<String, Value>, member: &str) -> Option<OffsetDateTime> {
    OffsetDateTime::parse(object.get(member)?.as_str()?, &Rfc3339).ok()
}
