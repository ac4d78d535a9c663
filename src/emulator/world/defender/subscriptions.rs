//! Subscriptions to change notifications and what they tell (`graph.md` §13): what can be watched, which orders are
//! refused, how long they live, and who hears of a change.

use std::time::Duration;

use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

use super::super::{Answer, Moment, Refusal};
use super::{Query, Tenant, Touched, bad, entity, format_instant};
use crate::emulator::seal;

/// The longest life of a subscription, in minutes (graph.md 13.1).
const LONGEST: i64 = 43_200;
/// The shortest, in minutes: less is raised to it (graph.md 13.2).
const SHORTEST: i64 = 45;
/// How many characters `clientState` and `encryptionCertificateId` may have.
const LONGEST_TEXT: usize = 128;

/// What happens to a subscription itself (graph.md 13.6).
pub const LIFECYCLE: [&str; 3] = ["reauthorizationRequired", "subscriptionRemoved", "missed"];

/// One notification before it is sent.
#[derive(Clone, Debug)]
pub struct News {
    /// Where to.
    pub url: String,
    /// The item, without its encrypted content.
    pub item: Value,
    /// The changed resource, to be sealed for this certificate (DER in base64, and its id), of this application's
    /// subscription.
    pub sealed: Option<Sealing>,
}

/// What is sealed, and for whom.
#[derive(Clone, Debug)]
pub struct Sealing {
    /// The resource.
    pub resource: Value,
    /// The certificate.
    pub certificate: String,
    /// Its id.
    pub certificate_id: String,
    /// The application that subscribed: the audience of the token.
    pub app_id: String,
}

/// What can be watched.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Watched {
    Incidents,
    Alerts,
    LegacyAlerts,
}

impl Watched {
    fn of(resource: &str) -> Option<Self> {
        let path = resource.trim_start_matches('/').to_lowercase();
        let path = path.split(['?', '(']).next().unwrap_or_default().trim_end_matches('/').to_owned();
        let within = |collection: &str| path == collection || path.starts_with(&format!("{collection}/"));
        if within("security/incidents") {
            Some(Self::Incidents)
        } else if within("security/alerts_v2") {
            Some(Self::Alerts)
        } else if within("security/alerts") {
            Some(Self::LegacyAlerts)
        } else {
            None
        }
    }

    /// The path of a resource, and its type.
    const fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Incidents => ("security/incidents", "#microsoft.graph.security.incident"),
            Self::Alerts => ("security/alerts_v2", "#microsoft.graph.security.alert"),
            Self::LegacyAlerts => ("security/alerts", "#Microsoft.Graph.alert"),
        }
    }
}

impl Tenant {
    /// Checks an order for a subscription and completes it. It counts only after both URLs proved themselves: then
    /// call [`Tenant::keep_subscription`].
    pub fn check_subscription(&self, body: &Value, moment: &Moment<'_>) -> Result<Value, Refusal> {
        let text = |name: &str| body[name].as_str().filter(|text| !text.is_empty());
        let (Some(change_type), Some(url), Some(resource)) =
            (text("changeType"), text("notificationUrl"), text("resource"))
        else {
            return Err(bad("changeType, notificationUrl and resource are required."));
        };
        if change_type.split(',').any(|kind| !["created", "updated", "deleted"].contains(&kind.trim())) {
            return Err(bad(format!("'{change_type}' is not a valid changeType.")));
        }
        let offered = match Watched::of(resource) {
            Some(Watched::LegacyAlerts) => true,
            Some(_) => moment.switches.is("graphIncidentSubscriptions", "on"),
            None => false,
        };
        if !offered {
            let message = format!("Resource '{resource}' is not supported for change notifications.");
            return Err(Refusal::new(400, "ExtensionError", message));
        }
        if text("clientState").is_some_and(|state| state.len() > LONGEST_TEXT) {
            return Err(bad("clientState is longer than 128 characters."));
        }
        let rich = body["includeResourceData"] == true;
        if rich && Watched::of(resource) == Some(Watched::LegacyAlerts) {
            let message = format!("Resource data is not supported for '{resource}'.");
            return Err(Refusal::new(400, "ExtensionError", message));
        }
        if rich {
            check_certificate(body)?;
        } else if text("encryptionCertificate").is_some() {
            return Err(bad("encryptionCertificate needs includeResourceData."));
        }
        let expires = text("expirationDateTime").and_then(|text| OffsetDateTime::parse(text, &Rfc3339).ok());
        let expires = expires.ok_or_else(|| bad("expirationDateTime is required."))?;
        let app = &moment.caller.app_id;
        let alive = |known: &&Value| ends(known).is_some_and(|until| until > moment.now);
        let own =
            || self.subscriptions.values().filter(alive).filter(|known| known["applicationId"] == **app);
        if let Some(known) =
            own().find(|known| known["resource"] == resource && known["changeType"] == change_type)
        {
            let id = known["id"].as_str().unwrap_or_default();
            let message = format!("Subscription Id {id} already exists for the requested combination");
            return Err(Refusal::new(409, "Conflict", message));
        }
        let quota = match () {
            () if moment.switches.is("graphSubscriptionQuota", "0") => 0,
            () if moment.switches.is("graphSubscriptionQuota", "1") => 1,
            () => usize::MAX,
        };
        if own().count() >= quota {
            let message = "Operation: Create; Exception: [Status Code: Forbidden; Reason: The limit of \
                           subscriptions has been reached.]";
            return Err(Refusal::new(403, "Forbidden", message));
        }
        let seed = format!("subscription:{}:{app}:{resource}:{change_type}:{}", self.id, moment.now);
        Ok(json!({
            "id": Uuid::new_v5(&Uuid::NAMESPACE_URL, seed.as_bytes()),
            "resource": resource,
            "applicationId": app,
            "changeType": change_type,
            "clientState": body["clientState"],
            "notificationUrl": url,
            "lifecycleNotificationUrl": body["lifecycleNotificationUrl"],
            "expirationDateTime": format_instant(bounded(expires, moment.now)?),
            "creatorId": moment.caller.object_id,
            "latestSupportedTlsVersion": "v1_2",
            "includeResourceData": rich,
            "encryptionCertificate": body["encryptionCertificate"],
            "encryptionCertificateId": body["encryptionCertificateId"],
            "notificationContentType": "application/json",
        }))
    }

    /// Keeps a subscription that was checked.
    pub fn keep_subscription(&mut self, subscription: Value) {
        if let Some(id) = subscription["id"].as_str() {
            self.subscriptions.insert(id.to_owned(), subscription);
        }
    }

    /// `GET /subscriptions`: those of the calling application, without their secret.
    pub fn list_subscriptions(&mut self, query: &Query, moment: &Moment<'_>) -> Answer {
        self.expire(moment.now);
        let own = self.subscriptions.values().filter(|s| s["applicationId"] == *moment.caller.app_id);
        let list: Vec<Value> = own.map(hidden).collect();
        let context = format!("{}/v1.0/$metadata#subscriptions", query.base);
        Ok((200, json!({"@odata.context": context, "value": list})))
    }

    /// `GET /subscriptions/{id}`
    pub fn get_subscription(&mut self, id: &str, query: &Query, moment: &Moment<'_>) -> Answer {
        let found = self.own_subscription(id, moment)?;
        Ok((200, entity(&hidden(found), "subscriptions", query)))
    }

    /// `PATCH /subscriptions/{id}`: renews, which authorises too; gives it another certificate or address.
    pub fn renew_subscription(
        &mut self,
        id: &str,
        body: &Value,
        query: &Query,
        moment: &Moment<'_>,
    ) -> Answer {
        let found = self.own_subscription(id, moment)?;
        let mut next = found.clone();
        let renewed = body["expirationDateTime"].as_str();
        if let Some(text) = renewed {
            let expires = OffsetDateTime::parse(text, &Rfc3339)
                .map_err(|_| bad("expirationDateTime is no instant."))?;
            next["expirationDateTime"] = json!(format_instant(bounded(expires, moment.now)?));
        }
        if let Some(url) = body["notificationUrl"].as_str() {
            next["notificationUrl"] = json!(url);
        }
        if body["encryptionCertificate"].is_string() || body["encryptionCertificateId"].is_string() {
            if next["includeResourceData"] != true {
                return Err(bad("encryptionCertificate needs includeResourceData."));
            }
            check_certificate(body)?;
            for name in ["encryptionCertificate", "encryptionCertificateId"] {
                next[name] = body[name].clone();
            }
        }
        *found = next.clone();
        if renewed.is_some() {
            self.paused.remove(id);
        }
        Ok((200, entity(&hidden(&next), "subscriptions", query)))
    }

    /// `POST /subscriptions/{id}/reauthorize`
    pub fn reauthorize_subscription(&mut self, id: &str, moment: &Moment<'_>) -> Answer {
        self.own_subscription(id, moment)?;
        self.paused.remove(id);
        Ok((204, Value::Null))
    }

    /// `DELETE /subscriptions/{id}`
    pub fn delete_subscription(&mut self, id: &str, moment: &Moment<'_>) -> Answer {
        self.own_subscription(id, moment)?;
        self.subscriptions.remove(id);
        Ok((204, Value::Null))
    }

    fn own_subscription(&mut self, id: &str, moment: &Moment<'_>) -> Result<&mut Value, Refusal> {
        self.expire(moment.now);
        let found = self.subscriptions.get_mut(id);
        found
            .filter(|found| found["applicationId"] == *moment.caller.app_id)
            .ok_or_else(|| Refusal::new(404, "ResourceNotFound", "The object was not found."))
    }

    /// A subscription, with all its members.
    pub fn subscription(&self, id: &str) -> Option<&Value> {
        self.subscriptions.get(id)
    }

    /// Lets one of [`LIFECYCLE`] happen to a subscription. The notification of it; none where no address was given.
    pub fn lifecycle(&mut self, id: &str, event: &str, now: OffsetDateTime) -> Result<Option<News>, String> {
        self.expire(now);
        if !LIFECYCLE.contains(&event) {
            return Err(format!("event can be {}", LIFECYCLE.join(" or ")));
        }
        let subscription = self.subscriptions.get(id).ok_or("there is no such subscription")?;
        let item = json!({
            "subscriptionId": id,
            "subscriptionExpirationDateTime": subscription["expirationDateTime"],
            "tenantId": self.id,
            "clientState": subscription["clientState"],
            "lifecycleEvent": event,
        });
        let url = subscription["lifecycleNotificationUrl"].as_str().map(str::to_owned);
        match event {
            "subscriptionRemoved" => drop(self.subscriptions.remove(id)),
            "reauthorizationRequired" => drop(self.paused.insert(id.to_owned())),
            _ => {}
        }
        Ok(url.map(|url| News { url, item, sealed: None }))
    }

    fn expire(&mut self, now: OffsetDateTime) {
        self.subscriptions.retain(|_, subscription| ends(subscription).is_some_and(|until| until > now));
        let subscriptions = &self.subscriptions;
        self.paused.retain(|id| subscriptions.contains_key(id));
    }

    /// The notifications that all changes since the last call cause.
    pub fn take_news(&mut self, now: OffsetDateTime) -> Vec<News> {
        self.expire(now);
        let (incidents, alerts) =
            (std::mem::take(&mut self.touched), std::mem::take(&mut self.touched_alerts));
        let mut news = Vec::new();
        for touched in &incidents {
            news.extend(self.news(touched, false));
        }
        for touched in &alerts {
            news.extend(self.news(touched, true));
        }
        news
    }

    /// The basic notifications that a change of an incident causes: where to, and the body (graph.md 13.4).
    pub fn notifications(&mut self, touched: &Touched, now: OffsetDateTime) -> Vec<(String, Value)> {
        self.expire(now);
        self.news(touched, false).into_iter().map(|news| (news.url, json!({"value": [news.item]}))).collect()
    }

    fn news(&self, touched: &Touched, alert: bool) -> Vec<News> {
        let Touched { incident: id, change } = touched;
        let resource = match alert {
            true => self.alerts.get(id),
            false => self.incidents.get(id),
        };
        let resource = resource.map_or(Value::Null, |kept| kept.now.clone());
        let mut news = Vec::new();
        for (subscription_id, subscription) in &self.subscriptions {
            let watched = subscription["resource"].as_str().and_then(Watched::of);
            let Some(watched) = watched.filter(|watched| alert != (*watched == Watched::Incidents)) else {
                continue;
            };
            let kinds = subscription["changeType"].as_str().unwrap_or_default();
            if !kinds.split(',').any(|kind| kind.trim() == *change) || self.paused.contains(subscription_id) {
                continue;
            }
            news.push(self.item_of(subscription, watched, id, change, &resource));
        }
        news
    }

    /// The notification that a subscription would get of an incident or an alert.
    pub fn news_of(&self, subscription: &str, id: &str, change: &str) -> Option<News> {
        let subscription = self.subscriptions.get(subscription)?;
        let watched = subscription["resource"].as_str().and_then(Watched::of)?;
        let kept = match watched {
            Watched::Incidents => self.incidents.get(id),
            Watched::Alerts | Watched::LegacyAlerts => self.alerts.get(id),
        };
        let resource = kept.map_or(json!({"id": id}), |kept| kept.now.clone());
        Some(self.item_of(subscription, watched, id, change, &resource))
    }

    fn item_of(
        &self,
        subscription: &Value,
        watched: Watched,
        id: &str,
        change: &str,
        resource: &Value,
    ) -> News {
        let (path, kind) = watched.names();
        let text = |name: &str| subscription[name].as_str().unwrap_or_default().to_owned();
        let item = json!({
            "id": Uuid::new_v4(),
            "subscriptionId": subscription["id"],
            "subscriptionExpirationDateTime": subscription["expirationDateTime"],
            "clientState": subscription["clientState"],
            "changeType": change,
            "resource": format!("{path}/{id}"),
            "tenantId": self.id,
            "resourceData": {"@odata.type": kind, "@odata.id": format!("{path}/{id}"), "id": id},
        });
        let sealed = (subscription["includeResourceData"] == true).then(|| Sealing {
            resource: resource.clone(),
            certificate: text("encryptionCertificate"),
            certificate_id: text("encryptionCertificateId"),
            app_id: text("applicationId"),
        });
        News { url: text("notificationUrl"), item, sealed }
    }
}

fn check_certificate(body: &Value) -> Result<(), Refusal> {
    let id = body["encryptionCertificateId"].as_str().unwrap_or_default();
    if id.is_empty() || id.len() > LONGEST_TEXT {
        return Err(bad("encryptionCertificateId must have 1 to 128 characters."));
    }
    let certificate = body["encryptionCertificate"].as_str().unwrap_or_default();
    seal::seal(certificate, id, b"{}")
        .map(|_| ())
        .map_err(|why| bad(format!("The encryptionCertificate {why}.")))
}

fn ends(subscription: &Value) -> Option<OffsetDateTime> {
    OffsetDateTime::parse(subscription["expirationDateTime"].as_str()?, &Rfc3339).ok()
}

fn bounded(expires: OffsetDateTime, now: OffsetDateTime) -> Result<OffsetDateTime, Refusal> {
    let minutes = |count: i64| Duration::from_secs(u64::try_from(count * 60).unwrap_or(0));
    if expires > now + minutes(LONGEST) {
        return Err(bad("Subscription expiration can only be 43200 minutes in the future."));
    }
    Ok(expires.max(now + minutes(SHORTEST)))
}

/// As an answer shows it: neither the secret nor the certificate comes back.
fn hidden(subscription: &Value) -> Value {
    let mut subscription = subscription.clone();
    subscription["clientState"] = Value::Null;
    subscription["encryptionCertificate"] = json!("");
    if subscription["encryptionCertificateId"].is_null() {
        subscription["encryptionCertificateId"] = json!("");
    }
    subscription
}
